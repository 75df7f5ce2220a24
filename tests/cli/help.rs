//! What the help shows, and the completions of shells.

use super::{command, good, run, stderr};
use std::process::Stdio;

/// The commands, as the help lists them.
fn commands() -> Vec<String> {
    let definition = proxytune::cli::definition();
    definition.get_subcommands().map(|command| command.get_name().to_string()).collect()
}

#[test]
fn the_help_names_every_command_and_flag_in_plain_text() {
    let whole = run(&["--help"]);
    for name in commands() {
        assert!(good(&whole).contains(&format!("\n  {name} ")), "{name}: {}", good(&whole));
        let definition = proxytune::cli::definition();
        let defined = definition.find_subcommand(&name).expect("a command");
        for form in ["-h", "--help"] {
            let help = run(&[&name, form]);
            for flag in defined.get_arguments().filter_map(|flag| flag.get_long()) {
                assert!(good(&help).contains(&format!("--{flag}")), "--{flag} of {name} {form}");
            }
            assert!(!good(&help).contains('\x1b'), "{name} {form}");
        }
    }
}

#[test]
fn the_help_fits_the_terminal() {
    for (columns, name) in
        [80, 120].into_iter().flat_map(|columns| commands().into_iter().map(move |name| (columns, name)))
    {
        let help = command(&[&name, "--help"]).env("COLUMNS", columns.to_string()).stdin(Stdio::null()).output();
        let help = help.expect("it ends");
        // Usage lines and tables of defaults are not wrapped; texts are.
        let long = good(&help).lines().find(|line| line.chars().count() > columns && !line.starts_with("Usage:"));
        assert_eq!(long, None, "{name} at {columns} columns");
    }
}

#[test]
fn every_flag_stands_under_a_heading_and_its_help_is_a_sentence() {
    let definition = proxytune::cli::definition();
    let generate = definition.find_subcommand("generate").expect("a command");
    for flag in generate.get_arguments().filter(|flag| flag.get_long().is_some_and(|long| long != "config")) {
        assert!(flag.get_help_heading().is_some(), "{flag} has no heading");
        let help = flag.get_help().map(|help| help.to_string()).unwrap_or_default();
        assert!(!help.is_empty() && !help.ends_with('.'), "{flag}: {help:?}");
    }
}

#[test]
fn shells_are_completed() {
    for (shell, mark) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef proxytune"),
        ("fish", "complete -c proxytune"),
        ("powershell", "Register-ArgumentCompleter"),
        ("elvish", "edit:completion:arg-completer"),
    ] {
        let script = run(&["completions", shell]);
        for part in [mark, "anti-expert", "kv-cache-dtype", "config", "input-file"] {
            assert!(good(&script).contains(part), "{shell}: {part}");
        }
    }
    let unknown = run(&["completions", "tcsh"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(stderr(&unknown).contains("bash"), "{}", stderr(&unknown));
}

/// The script, taken in by the shell itself.
#[cfg(target_os = "linux")]
#[test]
fn bash_completes_by_the_script() {
    let script = "source <(\"$0\" completions bash); COMP_WORDS=(proxytune generate --kv-cache-d); COMP_CWORD=2; \
                  _proxytune proxytune --kv-cache-d generate; echo \"${COMPREPLY[@]}\"";
    let bash = std::process::Command::new("bash").args(["-c", script, env!("CARGO_BIN_EXE_proxytune")]).output();
    let bash = bash.expect("bash is part of every Debian");
    assert_eq!(String::from_utf8_lossy(&bash.stdout).trim(), "--kv-cache-dtype", "{bash:?}");
}
