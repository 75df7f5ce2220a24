//! `kernels` makes them ahead; a machine with a card takes them as they are, if they are whole and its own.

use super::{nvrtc, run, stderr, stdout, text};
use proxytune::backend::cuda::kernels::MODULES;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A directory of ready kernels for two architectures, made once, without a card.
pub(super) fn ready() -> &'static Path {
    static READY: OnceLock<PathBuf> = OnceLock::new();
    READY.get_or_init(|| {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda_driver_ready/kernels");
        // Of another run.
        let _ = fs::remove_dir_all(&out);
        let made = run("cards=0", &["kernels", "--arch", "sm_90,sm_80", "--out", &text(&out), "--nvrtc", &nvrtc()]);
        assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
        let mut lines = stdout(&made).lines();
        for arch in ["sm_90", "sm_80"] {
            for stem in MODULES.iter().map(|module| module.stem) {
                let file = out.join(format!("{stem}.{arch}.cubin"));
                let line = lines.next().expect("a line for each file");
                assert!(line.starts_with(&format!("{}  ", file.display())), "{line}");
                let bytes = fs::read(&file).expect("it was written");
                assert!(bytes.starts_with(b"\x7fELF") && bytes.ends_with(b"proxytune cubin\n"), "{stem}");
            }
        }
        assert_eq!(fs::read_dir(&out).expect("a directory").count(), 2 * MODULES.len());
        out
    })
}

#[test]
fn ready_kernels_need_no_compiler() {
    let directory = tempfile::tempdir().expect("a directory");
    for entry in fs::read_dir(ready()).expect("a directory") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), directory.path().join(entry.file_name())).expect("copied");
    }
    let (out, path) = (directory.path(), &text(directory.path())[..]);
    let shown = |played: &str| stdout(&run(played, &["devices", "--cubins", path])).to_string();
    // Cards of a generation run what was made for an earlier one.
    for arch in ["90", "80", "86"] {
        let shown = shown(&format!("arch={arch}"));
        assert!(shown.contains(&format!("sm_{arch}, ready in {path}")), "{shown}");
    }
    for arch in ["100", "120"] {
        let shown = shown(&format!("arch={arch}"));
        assert!(shown.contains(&format!("no kernels of this version of proxytune for sm_{arch}")), "{shown}");
    }
    let listed = run("cards=2 memory=12345678", &["devices", "--json", "--cubins", path]);
    let listed: serde_json::Value = serde_json::from_str(stdout(&listed)).expect("JSON");
    let card = serde_json::json!({ "name": "Played Card", "arch": "sm_90", "memory_bytes": 12_345_678,
        "multiprocessors": 132, "kernels": format!("ready in {path}") });
    assert_eq!(listed["cuda"], serde_json::json!({ "driver": "12.9", "cards": [card, card], "missing": [] }));
    assert_eq!(listed["auto"], "cuda");
    let doctor = run("", &["doctor", "--backend", "cuda", "--cubins", path]);
    assert_eq!(doctor.status.code(), Some(0), "{}", stderr(&doctor));
    assert!(stdout(&doctor).contains(&format!("Played Card, sm_90, ready in {path}")), "{}", stdout(&doctor));
    let asked = ["generate", "--demo", "-p", "a", "--backend", "cuda", "--max-tokens", "2", "--cubins", path];
    let text = run("", &asked);
    assert_eq!(text.status.code(), Some(0), "{}", stderr(&text));

    // One of them is of something else.
    let file = out.join("record.sm_90.cubin");
    fs::copy(out.join("embed.sm_90.cubin"), &file).expect("copied");
    let foreign = run("", &asked);
    assert_eq!(foreign.status.code(), Some(5), "{}", stderr(&foreign));
    assert!(stderr(&foreign).contains("has no kernels of this version"), "{}", stderr(&foreign));
}

#[test]
fn kernels_refuses_what_it_cannot_make() {
    let directory = tempfile::tempdir().expect("a directory");
    let out = directory.path().to_str().expect("a path of text");
    let file = directory.path().join("file");
    fs::write(&file, "").expect("written");
    let (file, nvrtc) = (file.to_str().expect("a path of text"), nvrtc());
    let cases: [(&[&str], i32, &str); 7] = [
        (&["--out", out], 2, "--arch"),
        (&["--arch", "sm_90"], 2, "--out"),
        (&["--arch", "sm_75", "--out", out], 2, "is not sm_80, sm_90 or another from sm_80 on"),
        (&["--arch", "90", "--out", out], 2, "is not sm_80"),
        (&["--arch", "sm_90,sm_999", "--out", out], 2, "NVRTC 12.9 does not know sm_999; it knows sm_"),
        (&["--arch", "sm_80", "--arch", "sm_998", "--out", out], 2, "does not know sm_998"),
        (&["--arch", "sm_90", "--out", file], 6, file),
    ];
    for (args, code, said) in cases {
        let refused = run("", &[&["kernels", "--nvrtc", &nvrtc], args].concat());
        assert_eq!(refused.status.code(), Some(code), "{args:?}: {}", stderr(&refused));
        assert!(stderr(&refused).contains(said), "{args:?}: {}", stderr(&refused));
    }
    let none = run("", &["kernels", "--arch", "sm_90", "--out", out, "--nvrtc", file]);
    assert_eq!(none.status.code(), Some(5), "{}", stderr(&none));
    assert!(stderr(&none).contains(&format!("cuda: nvrtc: {file}: ")), "{}", stderr(&none));
    assert_eq!(fs::read_dir(out).expect("a directory").count(), 1, "nothing was written");
}
