//! `kernels` makes them ahead; a machine with a card takes them as they are, if they are whole and its own.

use super::{nvrtc, run, stderr, stdout};
use std::fs;

const STEMS: [&str; 10] = [
    "copy_pages",
    "embed",
    "norm_matmul",
    "rope_append",
    "attention",
    "matmul_add",
    "norm_add",
    "norm_gate_up",
    "combine_sample",
    "record",
];

#[test]
fn ready_kernels_need_no_compiler() {
    let directory = tempfile::tempdir().expect("a directory");
    let out = directory.path().join("new/kernels");
    let path = out.to_str().expect("a path of text");
    // No card, no driver.
    let made = run("cards=0", &["kernels", "--arch", "sm_90", "--out", path, "--nvrtc", &nvrtc()]);
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    for (stem, line) in STEMS.iter().zip(stdout(&made).lines()) {
        let file = out.join(format!("{stem}.sm_90.cubin"));
        assert!(line.starts_with(&format!("{}  ", file.display())), "{line}");
        let bytes = fs::read(&file).expect("it was written");
        assert!(bytes.starts_with(b"\x7fELF") && bytes.ends_with(b"proxytune cubin\n"), "{stem}");
    }
    assert_eq!(fs::read_dir(&out).expect("a directory").count(), STEMS.len());

    let ready = format!("sm_90, ready in {path}");
    let shown = |played: &str| stdout(&run(played, &["devices", "--cubins", path])).to_string();
    assert!(shown("arch=90").contains(&ready), "{}", shown("arch=90"));
    // Of another generation.
    for played in ["arch=80", "arch=100"] {
        assert!(shown(played).contains("has no kernels of this version of proxytune for sm_"), "{}", shown(played));
    }
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
