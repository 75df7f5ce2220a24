//! What the benches that run whole models share.

use proxytune::checkpoint::Source;
use proxytune::cli::demo;
use proxytune::engine::trio::TrioSources;

/// Arguments of a bench of models: names of backends, batches, and directories.
pub(crate) struct Args {
    names: Vec<String>,
    /// Texts at a time.
    pub(crate) batches: Vec<usize>,
    dirs: Vec<String>,
}

impl Args {
    /// Those of this process; `batches` where it names none.
    pub(crate) fn parse(batches: &[usize]) -> Self {
        let mut args = Args { names: Vec::new(), batches: Vec::new(), dirs: Vec::new() };
        for arg in std::env::args().skip(1).filter(|arg| arg != "--bench") {
            match arg.parse() {
                Ok(batch) => args.batches.push(batch),
                Err(_) if ["cpu", "wgpu"].contains(&arg.as_str()) => args.names.push(arg),
                Err(_) => args.dirs.push(arg),
            }
        }
        if args.batches.is_empty() {
            args.batches = batches.into();
        }
        args
    }

    /// Whether a backend is named, or none is.
    pub(crate) fn wants(&self, backend: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|name| name == backend)
    }

    /// See [`sources`].
    pub(crate) fn sources(&self) -> TrioSources {
        sources(&self.dirs)
    }
}

/// The demo's models, or those in the directories of a base, an expert and an anti-expert. Ends the program where the
/// arguments are neither: a table of other models than were asked for would mislead.
fn sources(dirs: &[String]) -> TrioSources {
    match dirs {
        [] => demo::sources(),
        [base, expert, anti] => {
            let [base, expert, anti] = [base, expert, anti].map(Source::directory);
            TrioSources { base, expert: Some(expert), anti_expert: Some(anti) }
        }
        _ => {
            eprintln!("expected nothing or BASE EXPERT ANTI-EXPERT, got {dirs:?}");
            std::process::exit(2);
        }
    }
}
