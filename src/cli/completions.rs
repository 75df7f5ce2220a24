//! `completions`: the shell's script for this command line.

use super::args::CompletionsArgs;
use super::layers::definition;
use super::output::Stdout;
use crate::Result;

pub(super) fn run(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut definition(), "proxytune", &mut script);
    Stdout::new().text(&String::from_utf8_lossy(&script))
}
