//! Flags that were not typed: from PROXYTUNE_* variables and from a `--config` file. Both become flags in front of
//! those that were typed (`PROXYTUNE_ALPHA=0.5` and `alpha = 0.5` are `--alpha=0.5`), so that clap reads and checks
//! all of them alike. What flags there are is read off clap's definitions: there is no second list.
//!
//! Typed flags win over variables, those over the file. A value also gives way where a flag that wins excludes it:
//! `--demo` sets aside the `base` of a file. So it does where it says nothing without a flag that is not given: the
//! `output_file` of a file has no say in a run with `-p`.

mod file;

use super::args::Cli;
use super::generate::NEEDED_BESIDE;
use super::output;
use crate::Error;
use clap::builder::{BoolishValueParser, Resettable, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches, value_parser};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

const CONFIG: &str = "config";
const PREFIX: &str = "PROXYTUNE_";
/// No role with a chat template, as a value and as a flag.
const NO_ROLES: &str = "none";
const NO_CHAT: &str = "--chat=none";

/// Why a command line cannot be carried out; or, from clap, what it asks to be shown in place of that.
pub(super) enum Refusal {
    Usage(clap::Error),
    Layer(Error),
}

impl From<clap::Error> for Refusal {
    fn from(error: clap::Error) -> Self {
        Refusal::Usage(error)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Refusal::Layer(error)
    }
}

/// The definition of the command line: what it accepts, for parsing, completions and manuals.
pub fn definition() -> Command {
    Cli::command().mut_subcommands(|command| {
        let has_flags = flags(&command).next().is_some();
        if has_flags { command.arg(config_flag()) } else { command }
    })
}

fn config_flag() -> Arg {
    Arg::new(CONFIG)
        .long(CONFIG)
        .value_name("FILE.toml")
        .value_parser(value_parser!(PathBuf))
        // Beside --help, whatever heading the command's own flags end with.
        .help_heading(Resettable::Reset)
        .help("Read flags from a TOML file: any flag by its name, as in `top_p = 0.9`")
        .long_help(
            "Read flags from a TOML file: any flag by its name, as in `top_p = 0.9`, `stop = [\"a\", \"b\"]` or `json = \
             true`; [COMMAND] begins those of one command. Every flag can be given in the environment too, as in \
             PROXYTUNE_TOP_P=0.9; a repeatable flag has one value there. What is typed wins over the environment, and \
             that over the file",
        )
}

/// Reads a command line, program name first, with the layers below it.
pub(super) fn parse(typed: Vec<OsString>) -> Result<Cli, Refusal> {
    let definition = definition();
    let whole = whole(&definition, typed)?;
    Ok(Cli::from_arg_matches(&definition.try_get_matches_from(whole)?)?)
}

/// The command line with the flags of lower layers put in.
fn whole(definition: &Command, typed: Vec<OsString>) -> Result<Vec<OsString>, Refusal> {
    // Errors have their turn when all is known: `--overwrite` needs an `-o`, which may stand in a lower layer.
    let seen = definition.clone().ignore_errors(true).try_get_matches_from(&typed)?;
    let mut whole = typed;
    if let Some((name, matches)) = seen.subcommand()
        // The program itself may be called like a command.
        && let Some(at) = (1..whole.len()).find(|&at| whole[at] == name)
        && let Some(command) = definition.find_subcommand(name)
    {
        let mut layers = Layers::new(definition, command, matches);
        if flags(command).next().is_some() {
            layers.read(matches)?;
        }
        layers.set_aside_lone_flags();
        whole.splice(at + 1..at + 1, layers.given.into_iter().flat_map(|given| given.typed));
    }
    Ok(whole)
}

/// The flags of a command that a layer can give.
fn flags(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| arg.get_long().is_some_and(|long| long != CONFIG))
}

fn variable(name: &str) -> String {
    format!("{PREFIX}{}", name.replace('-', "_").to_uppercase())
}

/// The name of a flag, and the others that its help shows.
fn names(flag: &Arg) -> impl Iterator<Item = &str> {
    flag.get_long_and_visible_aliases().into_iter().flatten()
}

fn long(flag: &Arg) -> &str {
    flag.get_long().expect("`flags` has asked for it")
}

/// What a flag takes.
#[derive(PartialEq)]
enum Takes {
    Nothing,
    ValueOrNothing,
    Value,
    Values,
}

impl Takes {
    fn of(flag: &Arg) -> Self {
        let count = flag.get_num_args();
        let repeats = matches!(flag.get_action(), clap::ArgAction::Append) || flag.get_value_delimiter().is_some();
        match count.map(|count| (count.min_values(), count.max_values())) {
            _ if !flag.get_action().takes_values() => Takes::Nothing,
            Some((_, 0)) => Takes::Nothing,
            Some((0, _)) => Takes::ValueOrNothing,
            _ if repeats => Takes::Values,
            _ => Takes::Value,
        }
    }
}

/// A flag as a layer gives it.
struct Given<'a> {
    flag: &'a Arg,
    /// Where it stands, for messages: a variable, or a line of a file.
    place: Place,
    /// As it would be typed; nothing for `false`.
    typed: Vec<OsString>,
}

/// Who is at fault, for messages.
struct Place {
    /// The parameter of the error.
    param: String,
    /// Begins its message.
    at: String,
    /// The same in the message of another.
    name: String,
}

impl Place {
    fn refuse(&self, message: impl std::fmt::Display) -> Error {
        Error::argument(&self.param, format!("{}{message}", self.at))
    }
}

struct Layers<'a> {
    definition: &'a Command,
    command: &'a Command,
    /// Flags that higher layers have spoken about, and whether they gave them.
    settled: Vec<(&'a Arg, bool)>,
    given: Vec<Given<'a>>,
    /// Whether `--chat none` is typed.
    no_chat_typed: bool,
}

impl<'a> Layers<'a> {
    fn new(definition: &'a Command, command: &'a Command, matches: &ArgMatches) -> Self {
        let typed = |arg: &&Arg| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
        let settled = command.get_arguments().filter(typed).map(|arg| (arg, true)).collect();
        let chat = matches.try_get_one::<String>("chat").ok().flatten();
        let no_chat_typed = chat.is_some_and(|roles| roles == NO_ROLES);
        Self { definition, command, settled, given: Vec::new(), no_chat_typed }
    }

    fn read(&mut self, matches: &ArgMatches) -> crate::Result<()> {
        self.warn_of_unknown_variables();
        let named = flags(self.command).flat_map(|flag| names(flag).map(move |name| (flag, variable(name))));
        let given = named.filter_map(|(flag, name)| self.given_by_environment(flag, name).transpose());
        self.add(given.collect::<crate::Result<_>>()?)?;
        let config = matches.get_one::<PathBuf>(CONFIG).cloned();
        if let Some(path) = config.or_else(|| std::env::var_os(format!("{PREFIX}CONFIG")).map(PathBuf::from)) {
            for layer in file::layers(self, &path)? {
                self.add(layer)?;
            }
        }
        Ok(())
    }

    fn given_by_environment(&self, flag: &'a Arg, name: String) -> crate::Result<Option<Given<'a>>> {
        let Some(value) = std::env::var_os(&name) else { return Ok(None) };
        let place = Place { param: name.clone(), at: String::new(), name };
        let on = match Takes::of(flag) {
            Takes::Nothing => {
                let on = BoolishValueParser::new().parse_ref(self.command, None, &value);
                Some(on.map_err(|_| place.refuse(format!("{value:?} is neither true nor false")))?)
            }
            // The two words that a file has for it.
            Takes::ValueOrNothing => value.to_str().and_then(|value| value.parse().ok()),
            Takes::Value | Takes::Values => None,
        };
        let typed = match on {
            Some(true) => vec![typed(flag, None)],
            Some(false) => Vec::new(),
            None => vec![typed(flag, Some(&value))],
        };
        Ok(Some(Given { flag, place, typed }))
    }

    /// Takes from a layer what higher ones leave room for.
    fn add(&mut self, layer: Vec<Given<'a>>) -> crate::Result<()> {
        let excluded = |given: &Given| self.settled.iter().any(|(flag, on)| *on && self.exclude(flag, given.flag));
        let settled = |given: &Given| self.settled.iter().any(|(flag, _)| flag.get_id() == given.flag.get_id());
        let layer: Vec<Given> = layer.into_iter().filter(|given| !settled(given) && !excluded(given)).collect();
        for (index, given) in layer.iter().enumerate() {
            let clashes = |other: &&Given| {
                let both = !other.typed.is_empty() && !given.typed.is_empty();
                other.flag.get_id() == given.flag.get_id() || both && self.exclude(other.flag, given.flag)
            };
            if let Some(other) = layer[..index].iter().find(clashes) {
                return Err(given.place.refuse(format!("cannot be given together with {}", other.place.name)));
            }
            self.check(given)?;
        }
        for given in layer {
            self.settled.push((given.flag, !given.typed.is_empty()));
            self.given.push(given);
        }
        Ok(())
    }

    /// Drops what says nothing without a flag that no layer gives.
    fn set_aside_lone_flags(&mut self) {
        while let Some(at) = self.given.iter().position(|given| self.is_lone(given.flag)) {
            let lone = self.given.remove(at).flag.get_id();
            self.settled.retain(|(flag, _)| flag.get_id() != lone);
        }
    }

    fn is_lone(&self, flag: &Arg) -> bool {
        let no_chat = self.no_chat_typed || self.given.iter().any(|given| given.typed == [NO_CHAT]);
        let is_on = |id: &str| self.settled.iter().any(|(flag, on)| *on && flag.get_id() == id);
        let is_given = |id: &str| is_on(id) && !(id == "chat" && no_chat);
        let needed = NEEDED_BESIDE.iter().find(|(id, _)| flag.get_id() == *id);
        let lacks = |beside: &[&str]| !beside.iter().any(|id| is_given(id));
        match self.command.get_name() {
            "generate" => needed.is_some_and(|(_, beside)| lacks(beside)),
            // Which has a template in use unless it is told otherwise.
            "chat" => flag.get_id() == "chat_template" && no_chat,
            _ => false,
        }
    }

    fn exclude(&self, a: &Arg, b: &Arg) -> bool {
        let names = |a: &Arg, b: &Arg| {
            self.command.get_arg_conflicts_with(a).iter().any(|conflict| conflict.get_id() == b.get_id())
        };
        names(a, b) || names(b, a)
    }

    /// Lets clap read the flag alone, so that a bad value is laid to its place and not to a flag that nobody typed.
    fn check(&self, given: &Given) -> crate::Result<()> {
        match self.parse_alone(given.typed.iter().cloned()) {
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::InvalidValue
                        | ErrorKind::ValueValidation
                        | ErrorKind::InvalidUtf8
                        | ErrorKind::TooManyValues
                        | ErrorKind::TooFewValues
                        | ErrorKind::WrongNumberOfValues
                ) =>
            {
                Err(given.place.refuse(sentence(&error)))
            }
            // What a flag needs beside it may stand anywhere.
            _ => Ok(()),
        }
    }

    fn parse_alone(&self, flags: impl IntoIterator<Item = OsString>) -> Result<ArgMatches, clap::Error> {
        let start = [self.definition.get_name().into(), self.command.get_name().into()];
        self.definition.clone().try_get_matches_from(start.into_iter().chain(flags))
    }

    /// The flag of any command whose name is most like this one, by clap's own measure; `None` where it is one.
    fn unknown(&self, name: &str) -> Option<Option<String>> {
        if self.definition.get_subcommands().any(|command| flag_named(command, name).is_some()) {
            return None;
        }
        let commands = std::iter::once(self.command).chain(self.definition.get_subcommands());
        let suggestion = |command: &'a Command| {
            let layers = Layers {
                command,
                definition: self.definition,
                settled: Vec::new(),
                given: Vec::new(),
                no_chat_typed: false,
            };
            let error = layers.parse_alone([OsString::from(format!("--{}", name.replace('_', "-")))]).err()?;
            match error.get(ContextKind::SuggestedArg) {
                Some(ContextValue::String(flag)) => Some(flag.trim_start_matches('-').replace('-', "_")),
                _ => None,
            }
        };
        Some(commands.into_iter().find_map(suggestion))
    }

    /// A variable that is no flag of any command is a slip, and would else go unseen.
    fn warn_of_unknown_variables(&self) {
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        for name in names.filter(|name| name != &format!("{PREFIX}CONFIG")) {
            let Some(flag) = name.strip_prefix(PREFIX).map(str::to_lowercase) else { continue };
            if let Some(nearest) = self.unknown(&flag) {
                let nearest = nearest.map(|flag| format!("{PREFIX}{}", flag.to_uppercase()));
                output::warn(&format!("{name} is no flag of proxytune{}", did_you_mean(nearest)));
            }
        }
    }
}

/// The flag of this name, in kebab or snake case.
fn flag_named<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    let name = name.replace('_', "-");
    flags(command).find(|flag| names(flag).any(|known| known == name))
}

fn did_you_mean(nearest: Option<String>) -> String {
    nearest.map_or(String::new(), |name| format!("; did you mean {name}?"))
}

fn typed(flag: &Arg, value: Option<&OsStr>) -> OsString {
    let mut typed = OsString::from(format!("--{}", long(flag)));
    if let Some(value) = value {
        typed.push("=");
        typed.push(value);
    }
    typed
}

/// The first paragraph of clap's message, on one line.
fn sentence(error: &clap::Error) -> String {
    let text = error.to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let line = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    line.strip_prefix("error: ").unwrap_or(&line).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value for the flag, as a file writes it and as it would be typed.
    fn example(flag: &Arg) -> (String, OsString) {
        let possible = flag.get_value_parser().possible_values().and_then(|mut values| values.next());
        let text = match (Takes::of(flag), possible) {
            (Takes::Nothing, _) => return ("true".into(), typed(flag, None)),
            (_, Some(value)) => value.get_name().to_string(),
            // A text, a path or a number; what else there is refuses it.
            _ => "1".into(),
        };
        (format!("{text:?}"), typed(flag, Some(OsStr::new(&text))))
    }

    #[test]
    fn a_file_can_give_every_flag_of_every_command() {
        let definition = definition();
        let file = tempfile::NamedTempFile::new().expect("a file");
        for command in definition.get_subcommands() {
            for flag in flags(command) {
                let (value, expected) = example(flag);
                let needed = NEEDED_BESIDE.iter().find(|(id, _)| flag.get_id() == *id);
                let beside = needed.map(|(_, beside)| format!("--{}=1", beside[0].replace('_', "-")).into());
                for table in ["".to_string(), format!("[{}]\n", command.get_name())] {
                    for name in names(flag).flat_map(|name| [name.to_string(), name.replace('-', "_")]) {
                        std::fs::write(file.path(), format!("{table}{name} = {value}\n")).expect("written");
                        let start = ["proxytune", command.get_name(), "--config"].map(OsString::from);
                        match whole(&definition, [&start[..], &[file.path().into()], beside.as_slice()].concat()) {
                            Ok(whole) => assert_eq!(whole[2], expected, "{name} of {}", command.get_name()),
                            // It was read, and clap has found that it is no value of this flag.
                            Err(Refusal::Layer(error)) => {
                                let said = format!(": {name}: invalid value '1' for '--{}", long(flag));
                                assert!(error.to_string().contains(&said), "{name}: {error}");
                            }
                            Err(Refusal::Usage(error)) => panic!("{name}: {error}"),
                        }
                    }
                }
            }
        }
    }
}
