//! What is missing is named, whatever it is; `devices` shows it and ends well, who asks for CUDA gets exit code 5.

use super::{nvrtc, run, stderr, stdout};

/// What is played, and what is said of it.
const CASES: [(&str, &str); 6] = [
    ("cards=0", "the NVIDIA driver finds no card"),
    ("driver=11080", "the NVIDIA driver has CUDA 11.8; at least 12.0 is needed"),
    ("arch=75", "Played Card is sm_75; sm_80 is the oldest that is used"),
    // As a kernel module of another version gives it.
    ("fail=cuInit:803:1", "cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
    ("arch=190", "is NVRTC 12.9, which does not know sm_190; a newer one does"),
    ("driver=12040 arch=90", ""),
];

#[test]
fn what_is_missing_is_named() {
    for (played, said) in CASES {
        let nvrtc = nvrtc();
        let devices = run(played, &["devices", "--nvrtc", &nvrtc]);
        assert_eq!(devices.status.code(), Some(0), "{played}: {}", stderr(&devices));
        assert!(stdout(&devices).contains(said), "{played}: {}", stdout(&devices));
        if said.is_empty() {
            assert!(stdout(&devices).contains("Played Card, sm_90, NVRTC 12.9, "), "{}", stdout(&devices));
            continue;
        }
        for args in [&["generate", "--demo", "-p", "a"][..], &["doctor"], &["bench", "--demo"], &["plan", "--demo"]] {
            let refused = run(played, &[args, &["--backend", "cuda", "--nvrtc", &nvrtc]].concat());
            assert_eq!(refused.status.code(), Some(5), "{played} {args:?}: {}", stderr(&refused));
            let error = stderr(&refused);
            assert!(error.contains("error: cuda: ") && error.contains(said), "{played} {args:?}: {error}");
        }
    }
}

#[test]
fn who_has_no_compiler_is_told_where_to_get_one() {
    // A file that is none.
    let none = run("", &["generate", "--demo", "-p", "a", "--backend", "cuda", "--nvrtc", "/no/such/libnvrtc.so"]);
    assert_eq!(none.status.code(), Some(5), "{}", stderr(&none));
    assert!(stderr(&none).contains("nvrtc: /no/such/libnvrtc.so: "), "{}", stderr(&none));
    // None that knows the card, wherever it is.
    let unknown = run("arch=190", &["generate", "--demo", "-p", "a", "--backend", "cuda"]);
    assert_eq!(unknown.status.code(), Some(5), "{}", stderr(&unknown));
    let told = ["libnvrtc.so.12", "nvidia/cuda_nvrtc/lib", "pip install nvidia-cuda-nvrtc-cu12", "--nvrtc", "--cubins"];
    for part in told {
        assert!(stderr(&unknown).contains(part), "{part}: {}", stderr(&unknown));
    }
    // An older driver than the compiler.
    let newer = run(
        "driver=12020",
        &["devices", "--nvrtc", &nvrtc().replace("cuda_nvrtc/lib/libnvrtc.so.12", "cu13/lib/libnvrtc.so.13")],
    );
    assert!(stdout(&newer).contains("whose kernels the driver cannot run (it has CUDA 12.2)"), "{}", stdout(&newer));
    // A directory without kernels.
    let empty = run("", &["doctor", "--backend", "cuda", "--cubins", env!("CARGO_MANIFEST_DIR")]);
    assert_eq!(empty.status.code(), Some(5), "{}", stderr(&empty));
    assert!(stderr(&empty).contains("has no kernels of this version of proxytune for sm_90"), "{}", stderr(&empty));
}

#[test]
fn a_card_that_is_not_there_is_refused() {
    let other = run("cards=2", &["generate", "--demo", "-p", "a", "--backend", "cuda", "--device", "2"]);
    assert_eq!(other.status.code(), Some(5), "{}", stderr(&other));
    assert!(stderr(&other).contains("there are 2 cards, counted from 0; device 2 was asked for"), "{}", stderr(&other));
}
