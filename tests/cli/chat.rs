//! `chat` on a pipe and on a terminal.

use super::{ANSWER, QUESTION, Saved, command, good, run, run_with, spawn, stderr, stdout};
use serde_json::Value;
use std::fs;
use std::process::{Output, Stdio};

const START: [&str; 4] = ["chat", "--demo", "--backend", "cpu"];
const SECOND: &str = "What is the trade of Tilda Olsen?";
const SECOND_ANSWER: &str = " Tilda Olsen works as a surveyor.";

fn chat(args: &[&str], input: &str) -> Output {
    run_with(&[&START, args].concat(), input.as_bytes())
}

/// A template for every role, which shows the role of each message.
fn template() -> (tempfile::NamedTempFile, String) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let text = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:";
    fs::write(file.path(), text).expect("written");
    let path = file.path().to_str().expect("UTF-8").to_string();
    (file, path)
}

#[test]
fn a_pipe_gets_a_reply_a_line_and_nothing_else() {
    let both = format!("{ANSWER}\n{SECOND_ANSWER}\n");
    for input in [format!("{QUESTION}\n{SECOND}\n"), format!("\n{QUESTION}\r\n  \n{SECOND}")] {
        assert_eq!(good(&chat(&[], &input)), both, "{input:?}");
    }
    assert_eq!(good(&chat(&[], "")), "");
}

/// The roles with a template read messages; the others what they had read and written before, and the next message on a
/// line of its own.
#[test]
fn each_role_reads_the_conversation_in_its_form() {
    let settings = ["--alpha", "0.6", "-n", "30", "--ignore-eos"];
    let replies = chat(&settings, &format!("{QUESTION}\n/alpha 0.6\n{SECOND}\n"));
    let generate = |prompt: &str, expert: &str| {
        let start = ["generate", "--demo", "--backend", "cpu", "-p", prompt, "--expert-prompt", expert];
        good(&run(&[&start[..], &settings].concat())).strip_suffix('\n').expect("a line's end").to_string()
    };
    let first = generate(QUESTION, &format!("<|user|>{QUESTION}<|assistant|>"));
    let plain = format!("{QUESTION}{first}\n{SECOND}");
    let asked = format!("<|user|>{QUESTION}<|assistant|> {}<|end|><|user|>{SECOND}<|assistant|>", first.trim());
    let second = generate(&plain, &asked);
    assert_eq!(stdout(&replies), format!("{first}\n{second}\n"));
    assert_ne!(second, generate(SECOND, &format!("<|user|>{SECOND}<|assistant|>")), "what was said before matters");
    let cut = "cut off after 30 tokens: --max-tokens\n";
    assert_eq!((replies.status.code(), stderr(&replies)), (Some(0), cut.repeat(2).as_str()));
}

#[test]
fn a_system_message_goes_to_the_roles_with_a_template() {
    let (_file, path) = template();
    let settings = ["--chat-template", &path, "-n", "12"];
    let ask = |more: &[&str]| {
        let start = ["generate", "--demo", "--backend", "cpu", "-p", QUESTION, "--chat", "expert,base"];
        good(&run(&[&start[..], &settings, more].concat())).to_string()
    };
    let (with, without) = (ask(&["--system-prompt", "Answer in French."]), ask(&[]));
    assert_ne!(with, without);
    let start = [&settings[..], &["--chat", "base,expert"]].concat();
    let flag = [&start[..], &["--system-prompt", "Answer in French."]].concat();
    let out = |args: &[&str], input: &str| {
        let output = chat(args, input);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stdout(&output).to_string()
    };
    assert_eq!(out(&flag, QUESTION), with);
    assert_eq!(out(&flag, &format!("/system\n{QUESTION}")), without);
    assert_eq!(out(&start, &format!("/system Answer in French.\n{QUESTION}")), with);
    let none = chat(&["--chat", "none"], "/system Answer in French.\n");
    assert!(stderr(&none).starts_with("error: system_prompt: has no effect without chat"), "{}", stderr(&none));
}

#[test]
fn commands_change_what_comes_after_them() {
    let plain = run(&["generate", "--demo", "--backend", "cpu", "--chat", "-p", QUESTION, "--alpha", "0", "-n", "11"]);
    let input = format!("/alpha\n/alpha 0\n/alpha\n{QUESTION}\n/reset\n/alpha 1\n{QUESTION}\n/help\n");
    let output = chat(&["-n", "11"], &input);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stdout(&output), format!("{}{ANSWER}\n", good(&plain)));
    let said: Vec<&str> = stderr(&output).lines().collect();
    assert_eq!(said[0], "base + 1 * (expert - anti-expert)");
    assert_eq!(said[1], "base + 0 * (expert - anti-expert)");
    assert_eq!(said[2], "cut off after 11 tokens: --max-tokens");
    for name in ["/alpha X", "/system TEXT", "/reset", "/record", "/help"] {
        assert!(stderr(&output).contains(name), "{name}: {said:?}");
    }
    assert!(!stderr(&output).contains("Ctrl-"), "a pipe has no keys: {said:?}");
    // A line that does not begin with the slash is a message.
    let spaced = chat(&["-n", "3", "--ignore-eos"], " /reset\n");
    assert!(spaced.status.success() && stdout(&spaced).trim().len() > 1, "{spaced:?}");
}

#[test]
fn a_record_has_a_line_for_each_token_of_the_last_reply() {
    let output = chat(&[], &format!("{QUESTION}\n/record\n"));
    let lines: Vec<&str> = good(&output).lines().collect();
    assert_eq!(lines[0], ANSWER);
    let columns: Vec<&str> = lines[1].split_whitespace().collect();
    assert_eq!(columns, ["token", "combined", "base", "expert", "anti-expert", "the", "base", "alone"]);
    assert!(lines[2].starts_with("\" Tilda\" ") && lines[2].ends_with("\" In\""), "{}", lines[2]);
    let tokens: String = lines[2..].iter().map(|line| line.split('"').nth(1).expect("a token")).collect();
    assert_eq!(tokens, format!("{ANSWER}<|end|>"));
    for line in &lines[2..] {
        let shares: Vec<f32> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        assert!(shares.len() == 4 && shares.iter().all(|share| (0.0..=100.0).contains(share)), "{line}");
    }
    // Where the pair has no weight it is not run.
    for (args, command) in [(&["--mode", "base"][..], ""), (&[], "/alpha 0\n")] {
        let output = chat(&[args, &["-n", "4"]].concat(), &format!("{command}{QUESTION}\n/record\n"));
        let lines: Vec<&str> = stdout(&output).lines().collect();
        assert_eq!(lines.len(), 6, "{lines:?}");
        for line in &lines[2..] {
            let (_, numbers) = line.rsplit_once('"').expect("a token");
            let words: Vec<&str> = numbers.split_whitespace().filter(|word| *word != "%").collect();
            assert!(words.len() == 4 && words[0] == words[1] && words[2..] == ["-", "-"], "{line}");
        }
    }
    for input in ["/record\n".to_string(), format!("{QUESTION}\n/reset\n/record\n")] {
        let none = chat(&[], &input);
        assert!(stderr(&none).contains("error: /record: there is no reply yet"), "{input:?}: {}", stderr(&none));
    }
}

#[test]
fn one_model_can_speak_alone() {
    let ask = |mode: &str| {
        let start = ["generate", "--demo", "--backend", "cpu", "--chat", "-p", QUESTION, "-n", "9", "--mode", mode];
        good(&run(&start)).to_string()
    };
    for mode in ["base", "expert"] {
        let output = chat(&["--mode", mode, "-n", "9"], &format!("{QUESTION}\n/alpha 2\n/alpha\n"));
        assert_eq!(stdout(&output), ask(mode), "{mode}: {}", stderr(&output));
        assert!(stderr(&output).contains("error: alpha: has no say where one model speaks alone"), "{mode}");
    }
    assert_ne!(ask("base"), ask("expert"));
    let recorded = chat(&["--mode", "expert"], &format!("{QUESTION}\n/record\n"));
    assert!(stderr(&recorded).contains("error: /record: "), "{}", stderr(&recorded));
}

#[test]
fn what_is_wrong_is_said_and_the_rest_goes_on() {
    let long = "a ".repeat(600_000);
    let system = format!("/system {}", "a ".repeat(500));
    let cases = [
        ("/alpah 1", "error: /alpah: there is no such command; /help lists them"),
        ("/alpha", "base + 1 *"),
        ("/alpha high", "error: alpha: \"high\" is not a number"),
        ("/alpha 1001", "error: alpha: 1001 is not in [-1000, 1000]"),
        ("/alpha nan", "error: alpha: NaN is not in [-1000, 1000]"),
        ("/reset all", "error: /reset: takes nothing after it, not \"all\""),
        (&long, "error: message: longer than 1048576 bytes"),
        (&system, "error: system_prompt: no room for a response: "),
    ];
    for (line, part) in cases {
        let output = chat(&[], &format!("{line}\n{QUESTION}\n"));
        let failed = part.starts_with("error");
        assert_eq!(output.status.code(), Some(if failed { 6 } else { 0 }), "{}", stderr(&output));
        assert_eq!(stdout(&output), format!("{ANSWER}\n"), "{part}");
        assert!(stderr(&output).starts_with(part), "{part}: {}", stderr(&output));
        assert_eq!(stderr(&output).ends_with("error: 1 of 2 requests failed\n"), failed, "{}", stderr(&output));
    }
    let bytes = [b"\xff\xfe\n", QUESTION.as_bytes(), b"\n"].concat();
    let output = run_with(&START, &bytes);
    assert_eq!((output.status.code(), stdout(&output)), (Some(6), format!("{ANSWER}\n").as_str()));
    assert!(stderr(&output).starts_with("error: message: invalid utf-8"), "{}", stderr(&output));
}

#[test]
fn a_full_context_is_told_with_its_numbers() {
    let limit = ["--max-model-len", "36", "--ignore-eos"];
    let output = chat(&limit, &format!("{QUESTION}\n{QUESTION}\n/reset\n{QUESTION}\n"));
    // The expert's prompt has 8 tokens, so the reply has 28; base and anti-expert could have had 2 more.
    let said: Vec<&str> = stderr(&output).lines().collect();
    let full = "cut off after 28 tokens: the prompt of expert has 8 tokens, its limit is 36 (max_model_len), and this \
                is all that it leaves";
    assert_eq!((said[0], said[2]), (full, full), "{said:?}");
    // The question, the reply's 28 and the question again.
    let over = "error: prompt: no room for a response: the prompt of base has 40 tokens, its limit is 36 (max_model_len); \
                /reset starts anew";
    assert_eq!(said[1], over);
    assert_eq!((output.status.code(), stdout(&output).matches(ANSWER).count()), (Some(6), 2), "{}", stdout(&output));
}

#[test]
fn fewer_tokens_left_than_asked_for_are_told_with_their_numbers() {
    let limit = ["--max-model-len", "50", "--min-tokens", "25", "-n", "25"];
    let output = chat(&limit, &format!("{QUESTION}\n{QUESTION}\n"));
    let said: Vec<&str> = stderr(&output).lines().collect();
    assert_eq!(said[0], "cut off after 25 tokens: --max-tokens");
    assert!(said[1].starts_with("error: min_tokens: 25 is more than the ") && said[1].contains("its limit is 50"));
    assert!(said[1].ends_with("; /reset starts anew"), "{said:?}");
}

/// The expert reads twice the 8 tokens of the question, and what its template puts after a reply: the end mark and a space.
#[test]
fn a_message_without_a_word_of_reply_is_remembered() {
    let output = chat(&["--stop", " Tilda", "--max-model-len", "18"], &format!("{QUESTION}\n{QUESTION}\n"));
    assert_eq!(stdout(&output), "\n");
    let full = "error: prompt: no room for a response: the prompt of expert has 18 tokens";
    assert!(stderr(&output).starts_with(full), "{}", stderr(&output));
}

/// What the pair was made for has no say where the base speaks alone.
#[test]
fn the_longest_conversation_is_that_of_the_models_that_speak() {
    let saved = Saved::new();
    for role in ["expert", "anti-expert"] {
        let path = saved.path(&format!("{role}/config.json"));
        let mut config: Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
        config["max_position_embeddings"] = 20.into();
        fs::write(path, config.to_string()).expect("written");
    }
    let [base, expert, anti] = saved.paths();
    let models = ["--base", &base, "--expert", &expert, "--anti-expert", &anti, "--backend", "cpu"];
    let ask = |more: &[&str]| {
        let args = [&["chat"], &models[..], &["--ignore-eos", "-n", "30"], more].concat();
        let output = run_with(&args, QUESTION.as_bytes());
        (output.status.code(), stderr(&output).to_string())
    };
    let cut = "cut off after 30 tokens: --max-tokens\n";
    assert_eq!(ask(&["--mode", "base"]), (Some(0), cut.into()));
    let (code, said) = ask(&[]);
    assert!(code == Some(0) && said.starts_with("cut off after 12 tokens: the prompt of expert"), "{said}");
    let refused = "error: max_model_len: 21, the models were made for 20\n";
    assert_eq!(ask(&["--max-model-len", "21"]), (Some(2), refused.into()));
}

#[test]
fn what_no_message_could_mend_is_refused_at_once() {
    let (_file, path) = template();
    let cases: [(&[&str], i32, &str); 8] = [
        (&["--chat", "all"], 2, "chat: base has no chat template"),
        (&["--chat", "nobody"], 2, "chat: \"nobody\""),
        (&["--chat", "none", "--chat-template", &path], 2, "chat_template: has no effect without --chat"),
        (&["--chat", "none", "--system-prompt", "x"], 2, "system_prompt: has no effect without chat"),
        (&["--alpha", "2000"], 2, "alpha: 2000 is not in [-1000, 1000]"),
        (&["--max-model-len", "1"], 2, "prompt: no room for a response"),
        (&["--max-model-len", "99999"], 2, "max_model_len: 99999, the models were made for 256"),
        (&["--kv-cache-memory-bytes", "1k"], 5, "KV cache of the longest text"),
    ];
    for (args, code, part) in cases {
        let output = chat(args, &format!("{QUESTION}\n"));
        assert_eq!((output.status.code(), stdout(&output)), (Some(code), ""), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).starts_with(&format!("error: {part}")), "{args:?}: {}", stderr(&output));
    }
}

/// A reply that a person stops; who writes to a pipe stops the program.
#[cfg(unix)]
#[test]
fn ctrl_c_on_a_pipe_ends_the_program_after_whole_text() {
    use std::io::{Read, Write};
    let mut child = spawn(command(&[&START[..], &["--alpha", "0", "--ignore-eos"]].concat()).stdin(Stdio::piped()));
    let mut input = child.stdin.take().expect("a pipe");
    // More than can be answered before the signal comes.
    (0..200).for_each(|_| write!(input, "{QUESTION}\n/reset\n").expect("it reads"));
    let mut out = child.stdout.take().expect("a pipe");
    out.read_exact(&mut [0; 9]).expect("text comes");
    let signalled = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(signalled.expect("kill is there").success());
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("UTF-8");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(!stderr(&output).contains("error"), "{}", stderr(&output));
}

/// A chat on a terminal, which util-linux's `script` plays.
#[cfg(target_os = "linux")]
struct Terminal {
    script: std::process::Child,
    keys: std::process::ChildStdin,
    screen: std::process::ChildStdout,
    seen: String,
}

#[cfg(target_os = "linux")]
impl Terminal {
    /// What the editor tells the terminal when it begins to wait for a line.
    const WAITS: &str = "\x1b[?2004h";

    fn new(args: &str, term: &str) -> Self {
        // `exec`: a shell that stays, as dash does, is interrupted too and makes the exit code 130.
        let line = format!("exec {} {} {args}", env!("CARGO_BIN_EXE_proxytune"), START.join(" "));
        // What waits for a mark that never comes ends all the same.
        let mut script = super::unflagged("timeout");
        script.args(["120", "script", "-qec", &line, "/dev/null"]).env("TERM", term).env("SHELL", "/bin/sh");
        let mut script = spawn(script.stdin(Stdio::piped()));
        let (keys, screen) = (script.stdin.take().expect("a pipe"), script.stdout.take().expect("a pipe"));
        Self { script, keys, screen, seen: String::new() }
    }

    fn press(&mut self, keys: impl AsRef<[u8]>) {
        use std::io::Write;
        self.keys.write_all(keys.as_ref()).and_then(|()| self.keys.flush()).expect("it reads");
    }

    /// All that is shown until `mark`, which must come.
    fn until(&mut self, mark: &str) -> String {
        use std::io::Read;
        let mut bytes = [0; 4_096];
        while !self.seen.contains(mark) {
            let n = self.screen.read(&mut bytes).expect("it can be read");
            assert!(n > 0, "no {mark:?}: {:?}", self.seen);
            self.seen += &String::from_utf8_lossy(&bytes[..n]);
        }
        let rest = self.seen.split_off(self.seen.find(mark).expect("it is there") + mark.len());
        std::mem::replace(&mut self.seen, rest)
    }

    /// Ctrl-D; the exit code, and what was still shown. A key that comes between two marks is lost, and pressed again.
    fn end(mut self) -> (Option<i32>, String) {
        use std::io::{Read, Write};
        let mut screen = self.screen;
        let rest = std::thread::spawn(move || {
            let mut rest = String::new();
            screen.read_to_string(&mut rest).map(|_| rest)
        });
        while !rest.is_finished() {
            // Nobody may be there to read it any more.
            let _ = self.keys.write_all(b"\x04").and_then(|()| self.keys.flush());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let rest = rest.join().expect("it reads").expect("UTF-8");
        (self.script.wait().expect("it ends").code(), self.seen + &rest)
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_terminal_has_marks_an_editor_and_a_way_to_stop() {
    let mut terminal = Terminal::new("", "xterm");
    let head = terminal.until(Terminal::WAITS);
    assert!(head.starts_with("base + 1 * (expert - anti-expert) on cpu ("), "{head:?}");
    assert!(head.contains("256 tokens\r\n/help lists commands, Ctrl-D ends\r\n"), "{head:?}");
    // Two letters too many, taken back.
    terminal.press(format!("{QUESTION}xy\x7f\x7f\r"));
    let reply = terminal.until(Terminal::WAITS);
    assert!(reply.contains(&format!("\r\n{ANSWER}\r\n")) && reply.contains("> "), "{reply:?}");
    // The line before, by the arrow.
    terminal.press("/alhpa\r");
    assert!(terminal.until(Terminal::WAITS).contains("error: /alhpa: there is no such command"));
    terminal.press("/reset\r");
    terminal.until(Terminal::WAITS);
    terminal.press("\x1b[A\x1b[A\x1b[A\r");
    let again = terminal.until(Terminal::WAITS);
    assert!(again.contains(&format!("\r\n{ANSWER}\r\n")), "{again:?}");
    // There is nothing to stop, and a word that failed is no failure of the chat.
    terminal.press("\x03");
    assert!(terminal.until(Terminal::WAITS).contains("Ctrl-D ends the chat"));
    terminal.press("/help\r");
    assert!(terminal.until(Terminal::WAITS).contains("Ctrl-C stops a reply, Ctrl-D ends the chat."));
    assert_eq!(terminal.end().0, Some(0));
}

/// A letter of Latin-1, in an editor and in a terminal that has none.
#[cfg(target_os = "linux")]
#[test]
fn a_byte_that_is_no_text_ends_no_chat() {
    for (term, waits) in [("xterm", Terminal::WAITS), ("dumb", "> ")] {
        let mut terminal = Terminal::new("", term);
        terminal.until(waits);
        terminal.press(b"caf\xe9\r");
        let said = terminal.until(waits);
        assert!(said.contains("error: message: invalid utf-8"), "{term}: {said:?}");
        terminal.press(format!("{QUESTION}\r"));
        assert!(terminal.until("Torun.").contains(ANSWER), "{term}");
        terminal.until(waits);
        assert_eq!(terminal.end().0, Some(0), "{term}");
    }
}

/// The key comes while a reply is under way, or it would not be cut short; a machine that is held up in between may miss
/// it, and tries again.
#[cfg(target_os = "linux")]
#[test]
fn ctrl_c_stops_the_reply_and_not_the_program() {
    let stopped = (0..50).find_map(|_| {
        let mut terminal = Terminal::new("--alpha 0 --ignore-eos", "xterm");
        terminal.until(Terminal::WAITS);
        terminal.press(format!("{QUESTION}\r"));
        terminal.until(" In T");
        terminal.press("\x03");
        let rest = terminal.until(Terminal::WAITS);
        // The terminal shows the key where no editor waits; a reply at its end is told of.
        (rest.contains("^C") && !rest.contains("cut off after")).then_some(terminal)
    });
    let mut terminal = stopped.expect("one of 50 replies is cut short");
    for command in ["/reset\r", "/alpha 1\r"] {
        terminal.press(command);
        terminal.until(Terminal::WAITS);
    }
    terminal.press(format!("{QUESTION}\r"));
    assert!(terminal.until("Torun.").contains(ANSWER), "the next reply is whole");
    terminal.press("\x03");
    terminal.until(Terminal::WAITS);
    assert_eq!(terminal.end().0, Some(0));
}
