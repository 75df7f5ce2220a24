//! The command line. Two stages: `args` holds what was written, `fields` makes checked library types of it; then
//! one file per command. Standard output holds results, standard error everything else.

mod args;
mod bench;
mod chat;
mod compat;
mod completions;
pub mod demo;
mod devices;
mod doctor;
mod fields;
mod generate;
mod hub;
mod interrupt;
mod jsonl;
mod kernels;
mod layers;
mod loading;
mod machine;
mod open;
mod output;
mod plan;
mod progress;
mod result;
mod sampling;

use crate::{Error, Result};
use args::{Cli, Command};
use layers::Refusal;
use std::ffi::OsString;

pub use jsonl::request_of_line;
pub use layers::definition;

/// What is shown where no command is named.
const SHORT_HELP: &str = "\
proxytune steers a large language model with a small tuned pair: base + alpha * (expert - anti-expert).

  proxytune demo                               see it at work; nothing to download
  proxytune generate --demo --chat -p \"Where was Tilda Thorn born?\"
  proxytune chat --demo                        a conversation; /help lists its commands
  proxytune generate --base DIR --expert DIR --anti-expert DIR --chat -p TEXT
  proxytune compat --base DIR --expert DIR --anti-expert DIR
  proxytune plan --shape-base qwen2.5-7b --shape-pair qwen2.5-0.5b
  proxytune devices
  proxytune doctor --self-test
  proxytune bench --shape-base smollm2-1.7b --shape-pair smollm2-135m

`proxytune --help` lists the commands, `proxytune COMMAND --help` their flags.
";

/// Runs one command line, program name first; gives the process's exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> u8 {
    let done = match layers::parse(args.into_iter().collect()) {
        Ok(cli) => interrupt::install().and_then(|()| command(cli)),
        Err(Refusal::Layer(error)) => Err(error),
        Err(Refusal::Usage(error)) => match error.print() {
            Ok(()) => return error.exit_code() as u8,
            Err(error) => Err(output::io_error(&error)),
        },
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            if !matches!(error, Error::Interrupted | Error::ClosedPipe) {
                output::to_stderr(&format!("error: {error}"));
            }
            error.exit_code()
        }
    }
}

fn command(cli: Cli) -> Result<()> {
    match cli.command {
        None => output::Stdout::new().line(SHORT_HELP.trim_end()),
        Some(Command::Demo(args)) => demo::run(&args),
        Some(Command::Generate(args)) => generate::run(*args),
        Some(Command::Chat(args)) => chat::run(*args),
        Some(Command::Compat(args)) => compat::run(&args),
        Some(Command::Devices(args)) => devices::run(&args),
        Some(Command::Doctor(args)) => doctor::run(&args),
        Some(Command::Bench(args)) => bench::run(&args),
        Some(Command::Plan(args)) => plan::run(&args),
        Some(Command::Kernels(args)) => kernels::run(&args),
        Some(Command::Completions(args)) => completions::run(&args),
    }
}
