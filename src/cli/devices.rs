//! `devices`: what can run models here.

use super::args::{Backend, DevicesArgs};
use super::machine::Machine;
use super::output::{self, Stdout};
use crate::Result;

pub(super) fn run(args: &DevicesArgs) -> Result<()> {
    let machine = Machine::look(Backend::Auto, &args.kernels.sources())?;
    if args.json {
        return Stdout::new().json(&machine);
    }
    Stdout::new().line(&format!(
        "{}\n{}\n--backend auto takes {}; software adapters run only when --backend wgpu asks for them.",
        output::table(&machine.rows()),
        machine.missing(),
        machine.auto
    ))
}
