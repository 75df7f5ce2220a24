//! What the benches that run whole models share.

use proxytune::checkpoint::Source;
use proxytune::cli::demo;
use proxytune::engine::trio::TrioSources;

/// The demo's models, or those in the directories of a base, an expert and an anti-expert. Ends the program where the
/// arguments are neither: a table of other models than were asked for would mislead.
pub(crate) fn sources(dirs: &[String]) -> TrioSources {
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
