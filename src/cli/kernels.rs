//! `kernels`: cubins of the CUDA backend's kernels, made without a card.

use super::args::KernelsArgs;
use super::output::Stdout;
use crate::Result;
use crate::backend::cuda::write_kernels;

pub(super) fn run(args: &KernelsArgs) -> Result<()> {
    let mut out = Stdout::new();
    write_kernels(args.nvrtc.as_deref(), &args.arch, &args.out, &mut |written| {
        out.line(&format!("{}  {} bytes", written.file.display(), written.bytes))
    })
}
