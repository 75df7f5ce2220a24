//! Models by directory or by id: what the flags name becomes sources, and a person sees what is fetched.

use super::output;
use super::progress::Bar;
use crate::checkpoint::Source;
use crate::checkpoint::hub::{Event, Hub, Place, Revision, Weights};
use crate::{Error, Result};
use indicatif::DecimalBytes;
use std::path::PathBuf;

/// Finds the models of one command line.
pub(super) struct Places<'a> {
    /// `--revision`, for every id without one of its own.
    revision: Option<&'a str>,
    revision_is_used: bool,
    weights: Weights,
    hub: Option<Hub>,
}

impl<'a> Places<'a> {
    pub(super) fn new(revision: Option<&'a str>, weights: Weights) -> Self {
        Self { revision, revision_is_used: false, weights, hub: None }
    }

    /// The model that a person named, if any; `own` is the revision of its role alone, given by the flag `param`.
    pub(super) fn source(
        &mut self,
        named: &Option<PathBuf>,
        param: &str,
        own: &Option<String>,
    ) -> Result<Option<Source>> {
        let place = named.as_deref().map(Place::of).transpose()?;
        let id = match place {
            Some(Place::Hub(id)) => id,
            _ if own.is_some() => return Err(Error::argument(param, "has no effect: its model is no id on the hub")),
            Some(Place::Directory(directory)) => return Ok(Some(Source::directory(directory))),
            None => return Ok(None),
        };
        let (param, revision) = match (own, self.revision) {
            (Some(own), _) => (param, Revision::parse(own)),
            (None, Some(shared)) => ("revision", Revision::parse(shared)),
            (None, None) => (param, Ok(Revision::main())),
        };
        let revision = revision.map_err(|why| Error::argument(param, why))?;
        self.revision_is_used |= own.is_none();
        let hub = match &mut self.hub {
            Some(hub) => hub,
            none => none.insert(Hub::from_env()?),
        };
        let mut shown = Shown::default();
        hub.open(&id, &revision, self.weights, &mut |event| shown.show(event)).map(Some)
    }

    /// Refuses a `--revision` that was of no model.
    pub(super) fn check_used(&self) -> Result<()> {
        if self.revision.is_some() && !self.revision_is_used {
            return Err(Error::argument(
                "revision",
                "has no effect: no model is an id on the hub without a revision of its own",
            ));
        }
        Ok(())
    }
}

/// One line per file, and below it a bar on a terminal.
#[derive(Default)]
struct Shown(Option<Bar>);

impl Shown {
    fn show(&mut self, event: Event) {
        match event {
            Event::Begin { repo, file, total, done } => {
                self.0 = None;
                let there = if done > 0 { format!(", {} are there", DecimalBytes(done)) } else { String::new() };
                output::to_stderr(&format!("fetching {repo} {file}, {}{there}", DecimalBytes(total)));
                self.0 = Some(Bar::of_bytes(file, total, done));
            }
            Event::Header { repo, file } => output::to_stderr(&format!("reading the header of {repo} {file}")),
            Event::Bytes(n) => self.0.iter().for_each(|bar| bar.advance(n)),
            Event::Done => self.0 = None,
            Event::Waiting { file } => output::to_stderr(&format!("waiting for another process that fetches {file}")),
            Event::Warning { message } => output::warn(&message),
        }
    }
}
