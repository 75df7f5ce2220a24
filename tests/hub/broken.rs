//! When the way is bad: cut, stalled and stuttering connections, wrong bytes, wrong partial files.

use super::server::Fault;
use super::{Desk, WEIGHTS, good, refused, text, weights};
use std::fs;
use std::process::{Command, Stdio};

/// First bytes of the ranges that were asked of the weights.
fn starts(desk: &Desk) -> Vec<Option<usize>> {
    let log = desk.hub.log().into_iter().filter(|asked| asked.file() == WEIGHTS);
    log.map(|asked| asked.start).collect()
}

#[test]
fn a_cut_connection_is_taken_up_again() {
    let desk = Desk::new();
    desk.hub.plan(WEIGHTS, 1, Fault::Cut(100_000));
    // Of the rest.
    desk.hub.plan(WEIGHTS, 1, Fault::Cut(50_000));
    good(&desk.base());
    assert_eq!(starts(&desk), [None, Some(100_000), Some(150_000)]);
    // As often as it has to be, as long as each attempt brings something.
    let desk = Desk::new();
    desk.hub.plan(WEIGHTS, usize::MAX, Fault::Cut(50_000));
    good(&desk.base());
    assert_eq!(starts(&desk).len(), 7);
}

#[test]
fn another_run_asks_for_the_rest_only() {
    let desk = Desk::new();
    desk.hub.plan(WEIGHTS, 1, Fault::Cut(100_000));
    desk.hub.plan(WEIGHTS, usize::MAX, Fault::Status(503, ""));
    let broken = desk.base();
    refused(&broken, &["tiny/base at main, model.safetensors: HTTP 503", "run again to go on where it stopped"]);
    assert_eq!(fs::read(desk.partial()).expect("it is kept"), weights()[..100_000]);
    desk.hub.heal();
    desk.hub.log();
    let output = desk.base();
    good(&output);
    assert!(text(&output.stderr).contains("324.27 kB, 100.00 kB are there\n"), "{}", text(&output.stderr));
    assert_eq!(starts(&desk), [Some(100_000)]);
    assert!(!desk.partial().exists());
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_what_came() {
    let desk = Desk::new();
    desk.hub.plan(WEIGHTS, 1, Fault::Stall(100_000));
    let mut command = desk.command(&["generate", "--backend", "cpu", "-p", "abc", "--base", "tiny/base"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary runs");
    while fs::metadata(desk.partial()).map_or(0, |partial| partial.len()) < 100_000 {
        std::thread::yield_now();
    }
    let signalled = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill is there");
    assert!(signalled.success());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(130), ""));
    desk.hub.log();
    good(&desk.base());
    assert_eq!(starts(&desk), [Some(100_000)]);
}

#[test]
fn a_stuttering_hub_is_borne() {
    for (part, fault) in [
        ("/api/models/tiny/base", Fault::Status(500, "")),
        ("/api/models/tiny/base", Fault::Cut(10)),
        ("config.json", Fault::Status(502, "")),
        (WEIGHTS, Fault::Status(500, "")),
        (WEIGHTS, Fault::Busy(429, 1)),
        (WEIGHTS, Fault::Cut(0)),
    ] {
        let desk = Desk::new();
        desk.hub.plan(part, 2, fault);
        good(&desk.base());
    }
}

#[test]
fn patience_ends() {
    for (part, fault, parts) in [
        ("/api/models", Fault::Status(500, ""), ["tiny/base at main: HTTP 500", "internal server error"]),
        (WEIGHTS, Fault::Cut(0), ["model.safetensors: ", "the connection broke after 0 bytes"]),
        // Without a length before it, nothing is a whole answer.
        (WEIGHTS, Fault::Unannounced(Vec::new()), ["model.safetensors: ", "the connection broke after 0 bytes"]),
    ] {
        let desk = Desk::new();
        desk.hub.plan(part, usize::MAX, fault);
        refused(&desk.base(), &parts);
        let n_asked = desk.hub.log().into_iter().filter(|asked| asked.path.contains(part)).count();
        assert_eq!(n_asked, 5);
    }
    // All of it is sent anew every time, and no attempt gets farther than the first.
    let desk = Desk::new();
    for _ in 0..3 {
        desk.hub.plan(WEIGHTS, 1, Fault::Whole(100_000));
        desk.hub.plan(WEIGHTS, 1, Fault::Whole(50_000));
    }
    refused(&desk.base(), &["model.safetensors: ", "the connection broke after 100000 bytes"]);
    assert_eq!(starts(&desk), [None, Some(100_000), Some(50_000), Some(100_000), Some(50_000)]);
    // Longer than anybody waits: the attempt is the only one.
    let desk = Desk::new();
    desk.hub.plan("/api/models", usize::MAX, Fault::Busy(429, 3600));
    refused(&desk.base(), &["HTTP 429", "too many requests"]);
    assert_eq!(desk.hub.log().len(), 1);
}

#[test]
fn a_stalled_hub_is_given_up() {
    for (part, fault, n_asked) in [
        // Bytes came: the next attempts are counted anew.
        (WEIGHTS, Fault::Stall(100_000), 4),
        ("/api/models", Fault::Stall(0), 5),
    ] {
        let desk = Desk::new();
        desk.hub.plan(part, usize::MAX, fault);
        let output = desk.generate(&["--base", "tiny/base"], &[("HF_HUB_DOWNLOAD_TIMEOUT", "1")]);
        let log = desk.hub.log();
        let asked = log.iter().filter(|asked| asked.path.contains(part)).count();
        assert_eq!(asked, n_asked, "{log:?}");
        if part == WEIGHTS {
            // 324,272 bytes come in four pieces of up to 100,000.
            good(&output);
        } else {
            refused(&output, &["nothing came for 1 s (HF_HUB_DOWNLOAD_TIMEOUT)"]);
        }
    }
}

/// The weights with their last byte changed.
fn tampered() -> Vec<u8> {
    let mut bytes = weights();
    *bytes.last_mut().expect("not empty") ^= 1;
    bytes
}

#[test]
fn wrong_bytes_are_refused_and_not_kept() {
    let longer = [weights(), b"x".to_vec()].concat();
    let shorter = weights()[..1000].to_vec();
    let offers = |n: usize| format!("the server offers {n} bytes, the hub's listing says 324272");
    for (part, fault, file, said) in [
        (WEIGHTS, Fault::Other(tampered()), WEIGHTS, "what came hashes to ".to_string()),
        (WEIGHTS, Fault::Other(longer.clone()), WEIGHTS, offers(324_273)),
        (WEIGHTS, Fault::Other(shorter), WEIGHTS, offers(1000)),
        (WEIGHTS, Fault::Unannounced(longer), WEIGHTS, "more than 324272 bytes came".into()),
        (WEIGHTS, Fault::Unannounced(tampered()), WEIGHTS, "what came hashes to ".into()),
        // Of the same length; kept by git itself, so that its hash is git's.
        ("/config.json", Fault::Other(vec![b' '; 466]), "config.json", "what came hashes to ".into()),
    ] {
        let desk = Desk::new();
        desk.hub.plan(part, usize::MAX, fault);
        let output = desk.base();
        refused(&output, &[&format!("tiny/base at main, {file}: {said}")]);
        assert!(desk.blobs().iter().all(|blob| !blob.ends_with(".incomplete")), "{:?}", desk.blobs());
        let hash = super::server::hash(file, &super::golden("base")[file]);
        assert!(!desk.blobs().contains(&hash), "{said}");
        desk.hub.heal();
        good(&desk.base());
    }
}

#[test]
fn wrong_partial_files_are_fetched_anew() {
    let n = weights().len();
    for (partial, expected) in [
        (vec![7; 1000], vec![Some(1000), None]),
        (tampered(), vec![None]),
        (vec![7; n + 1], vec![None]),
        // Whole and right: nothing is left to ask for.
        (weights(), vec![]),
        (Vec::new(), vec![None]),
    ] {
        let desk = Desk::new();
        fs::create_dir_all(desk.partial().parent().expect("a directory")).expect("made");
        fs::write(desk.partial(), &partial).expect("written");
        good(&desk.base());
        assert_eq!(starts(&desk), expected);
        assert!(!desk.partial().exists());
    }
}

#[test]
fn what_is_wrong_twice_is_given_up() {
    let desk = Desk::new();
    fs::create_dir_all(desk.partial().parent().expect("a directory")).expect("made");
    fs::write(desk.partial(), vec![7; 1000]).expect("written");
    desk.hub.plan(WEIGHTS, usize::MAX, Fault::Other(tampered()));
    refused(&desk.base(), &["tiny/base at main, model.safetensors: what came hashes to "]);
    assert_eq!(starts(&desk), [Some(1000), None]);
    assert!(!desk.partial().exists());
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let desk = Desk::new();
    desk.hub.plan(WEIGHTS, 1, Fault::Cut(100_000));
    desk.hub.plan(WEIGHTS, 1, Fault::Whole(usize::MAX));
    good(&desk.base());
    assert_eq!(starts(&desk), [None, Some(100_000)]);
}

#[test]
fn an_answer_that_cannot_be_it_takes_nothing_away() {
    let page = b"<html>Log in</html>".to_vec();
    for (fault, part) in [
        (Fault::Other(page.clone()), "the server offers 19 bytes, the hub's listing says 324272"),
        (Fault::Unannounced(page), "the server sends something of unknown length; remove "),
        (Fault::Range("bytes 7-9/10"), "asked from byte 100000 on, the server answers Some(\"bytes 7-9/10\")"),
        (Fault::Status(404, ""), "HTTP 404"),
    ] {
        let desk = Desk::new();
        desk.hub.plan(WEIGHTS, 1, Fault::Cut(100_000));
        desk.hub.plan(WEIGHTS, usize::MAX, fault);
        refused(&desk.base(), &["tiny/base at main, model.safetensors: ", part]);
        assert_eq!(fs::read(desk.partial()).expect("it is kept"), weights()[..100_000], "{part}");
        desk.hub.heal();
        good(&desk.base());
        assert_eq!(starts(&desk), [None, Some(100_000), Some(100_000)], "{part}");
    }
}

#[test]
fn a_truncated_blob_is_fetched_anew() {
    let desk = Desk::new();
    let expected = desk.base();
    let blob = desk.cached("base").join("blobs").join(super::server::hash(WEIGHTS, &weights()));
    fs::write(blob, b"lost").expect("written");
    desk.hub.log();
    assert_eq!(good(&desk.base()), good(&expected));
    assert_eq!(starts(&desk), [None]);
}
