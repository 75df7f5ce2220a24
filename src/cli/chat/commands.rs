//! What begins with a slash.

use crate::{Error, Result};

/// Shown by `/help`.
pub(super) const HELP: &str = "\
/alpha X      weight of expert - anti-expert from the next reply on; without X: what it is
/system TEXT  system message of the roles with a chat template; without TEXT: none
/reset        forget what was said
/record       how each token of the last reply came about
/help         this list
A message that begins with / has a space before it.";
/// Shown below it to a person.
pub(super) const KEYS: &str = "Ctrl-C stops a reply, Ctrl-D ends the chat.";

/// A command, as it was typed.
#[derive(Debug, PartialEq)]
pub(super) enum Command {
    /// A new alpha, or a question about it.
    Alpha(Option<f32>),
    /// A new system message, or none from now on.
    System(Option<String>),
    Reset,
    Record,
    Help,
}

impl Command {
    /// The command that `line` is; none where it is a message.
    pub(super) fn parse(line: &str) -> Option<Result<Self>> {
        let (name, rest) = line.strip_prefix('/')?.split_once(char::is_whitespace).unwrap_or((&line[1..], ""));
        let rest = rest.trim();
        let alone = |command| match rest {
            "" => Ok(command),
            _ => Err(Error::argument(format!("/{name}"), format!("takes nothing after it, not {rest:?}"))),
        };
        Some(match name {
            "alpha" if rest.is_empty() => Ok(Command::Alpha(None)),
            "alpha" => match rest.parse() {
                Ok(alpha) => Ok(Command::Alpha(Some(alpha))),
                Err(_) => Err(Error::argument("alpha", format!("{rest:?} is not a number"))),
            },
            "system" => Ok(Command::System((!rest.is_empty()).then(|| rest.to_string()))),
            "reset" => alone(Command::Reset),
            "record" => alone(Command::Record),
            "help" => alone(Command::Help),
            _ => Err(Error::argument(format!("/{name}"), "there is no such command; /help lists them")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        for message in ["", "Who?", " /etc is what?", "1/2"] {
            assert_eq!(Command::parse(message), None, "{message:?}");
        }
        let right = [
            ("/alpha", Command::Alpha(None)),
            ("/alpha  -0.5 ", Command::Alpha(Some(-0.5))),
            ("/system\tBe  brief. ", Command::System(Some("Be  brief.".into()))),
            ("/system", Command::System(None)),
            ("/reset ", Command::Reset),
            ("/record", Command::Record),
            ("/help", Command::Help),
        ];
        for (line, command) in right {
            assert_eq!(Command::parse(line), Some(Ok(command)), "{line:?}");
        }
        let wrong = [
            ("/", "/: there is no such command"),
            ("/Reset", "/Reset: there is no such command; /help"),
            ("/alpha high", "alpha: \"high\" is not a number"),
            ("/alpha 1 2", "alpha: \"1 2\" is not a number"),
            ("/reset all", "/reset: takes nothing after it, not \"all\""),
            ("/päth x", "/päth: there is no such command"),
        ];
        for (line, part) in wrong {
            let Some(Err(error)) = Command::parse(line) else { panic!("{line:?} is wrong") };
            assert!(error.to_string().contains(part), "{line:?}: {error}");
        }
    }
}
