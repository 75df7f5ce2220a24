//! Where kernels come from: by flags, variables and files, and where they are looked for unless someone says.

use super::kernels::ready;
use super::{QUESTION, cache, command, command_of, nvrtc, stderr, stdout, text};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Output;

/// `devices` says that the card's kernels come from there.
fn assert_comes_from(output: &Output, from: &str) {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    let card = stdout(output).lines().find(|line| line.contains("Played Card")).expect("a card");
    assert!(card.ends_with(from), "{card} is not {from}");
}

#[test]
fn every_source_can_be_given_by_flag_variable_and_file() {
    let place = tempfile::tempdir().expect("a directory");
    let at = |name: &str| text(&place.path().join(name));
    let (nvrtc, ready) = (nvrtc(), text(ready()));
    fs::write(at("file"), "").expect("written");
    let bad = at("file/kernels");
    let from_nvrtc = format!("Played Card, sm_90, NVRTC 12.9, {nvrtc}");
    let from_ready = format!("Played Card, sm_90, ready in {ready}");
    // What is named wins over what stands beside it.
    let rows = [
        ("nvrtc", &nvrtc, vec![], &from_nvrtc),
        ("cubins", &ready, vec!["--nvrtc", &nvrtc], &from_ready),
        ("kernel-cache", &bad, vec!["--nvrtc", &nvrtc], &String::from("Played Card, sm_90, no kernels")),
    ];
    for (flag, value, beside, from) in rows {
        let run = |variable: Option<&str>, more: &[&str]| {
            let mut devices = command("", &[&["devices"], &beside[..], more].concat());
            devices.envs(variable.map(|name| (name, value))).output().expect("the binary starts")
        };
        assert_comes_from(&run(None, &[&format!("--{flag}"), value]), from);
        let variable = format!("PROXYTUNE_{}", flag.replace('-', "_").to_uppercase());
        assert_comes_from(&run(Some(&variable), &[]), from);
        fs::write(at("flags.toml"), format!("{flag} = {value:?}\n")).expect("written");
        assert_comes_from(&run(None, &["--config", &at("flags.toml")]), from);
    }
    // A cache that is named is there from then on.
    let cache = at("new/cache");
    let devices = command("", &["devices", "--nvrtc", &nvrtc]).env("PROXYTUNE_KERNEL_CACHE", &cache).output();
    assert_comes_from(&devices.expect("the binary starts"), &from_nvrtc);
    assert!(Path::new(&cache).is_dir());
}

#[test]
fn nvrtc_is_found_in_site_packages() {
    let place = tempfile::tempdir().expect("a directory");
    let wheels = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/nvidia/nvidia");
    let site = place.path().join("lib/python3.11/site-packages");
    fs::create_dir_all(&site).expect("made");
    symlink(wheels, site.join("nvidia")).expect("made");
    // The wheels of CUDA 13 stand there too, whose kernels a driver of CUDA 12 cannot run.
    let libraries = [
        ("driver=12090", "12.9", "nvidia/cuda_nvrtc/lib/libnvrtc.so.12"),
        ("driver=13050", "13.5", "nvidia/cu13/lib/libnvrtc.so.13"),
    ];
    let bin = place.path().join("bin");
    for variable in ["VIRTUAL_ENV", "CONDA_PREFIX", "PATH", "HOME"] {
        for (played, version, library) in libraries {
            let value = match variable {
                "PATH" => bin.clone(),
                "HOME" => place.path().join("home"),
                _ => place.path().into(),
            };
            if variable == "HOME" {
                let _ = fs::create_dir(&value);
                let _ = symlink(place.path(), value.join(".local"));
            }
            let mut devices = command(played, &["devices"]);
            let output = devices.env(variable, &value).output().expect("the binary starts");
            let prefix = if variable == "HOME" { value.join(".local") } else { place.path().into() };
            let file = prefix.join("lib/python3.11/site-packages").join(library);
            assert_comes_from(&output, &format!("NVRTC {version}, {}", file.display()));
        }
    }
}

/// As every start but the first has it: all kernels but one are there.
#[test]
fn what_is_compiled_is_kept_where_the_user_keeps_such_things() {
    let (nvrtc, kept) = (nvrtc(), cache());
    let ask = ["generate", "--demo", "-p", QUESTION, "--max-tokens", "1", "--backend", "cuda", "--nvrtc", &nvrtc];
    let filled = command("", &[&ask[..], &["--kernel-cache", &kept]].concat()).output().expect("the binary starts");
    assert_eq!(filled.status.code(), Some(0), "{}", stderr(&filled));
    for (variable, below) in [("XDG_CACHE_HOME", "proxytune/kernels"), ("HOME", ".cache/proxytune/kernels")] {
        let place = tempfile::tempdir().expect("a directory");
        let own = place.path().join(below);
        fs::create_dir_all(&own).expect("made");
        let names = fs::read_dir(&kept).expect("it is there").map(|entry| entry.expect("an entry").file_name());
        for name in names.filter(|name| !name.to_string_lossy().starts_with("copy_pages.")) {
            fs::copy(Path::new(&kept).join(&name), own.join(&name)).expect("copied");
        }
        let output = command("", &ask).env(variable, place.path()).output().expect("the binary starts");
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let names = fs::read_dir(&own).expect("it is there").map(|entry| entry.expect("an entry").file_name());
        let made: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with("copy_pages.sm_90.")).collect();
        assert_eq!(made.len(), 1, "{variable}: {made:?}");
    }
    // Without a home nothing is kept, and nothing is wrong.
    let output = command("cards=0", &["devices"]).env_remove("HOME").output().expect("the binary starts");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn ready_kernels_beside_the_binary_are_used() {
    let place = tempfile::tempdir().expect("a directory");
    let place = place.path().canonicalize().expect("it is there");
    let (binary, cubins) = (place.join("proxytune"), place.join("cubins"));
    fs::copy(env!("CARGO_BIN_EXE_proxytune"), &binary).expect("copied");
    symlink(ready(), &cubins).expect("made");
    let run = |played: &str, args: &[&str]| command_of(&binary, played, args).output().expect("the binary starts");
    assert_comes_from(&run("", &["devices"]), &format!("sm_90, ready in {}", cubins.display()));
    let ask = ["generate", "--demo", "--chat", "-p", QUESTION, "--max-tokens", "8"];
    let (card, cpu) = (run("", &ask), run("cards=0", &ask));
    assert_eq!((card.status.code(), stderr(&card), stdout(&card)), (Some(0), "", stdout(&cpu)));
    // They stand before a compiler, and give way to one where they are not for the card.
    let nvrtc = nvrtc();
    assert_comes_from(&run("", &["devices", "--nvrtc", &nvrtc]), &format!("ready in {}", cubins.display()));
    assert_comes_from(&run("arch=100", &["devices", "--nvrtc", &nvrtc]), &nvrtc);
    let neither = run("arch=190", &["devices"]);
    for part in [&format!("{} has no kernels", cubins.display()), "for sm_190", "pip install nvidia-cuda-nvrtc-cu12"] {
        assert!(stdout(&neither).contains(part), "{part}: {}", stdout(&neither));
    }
}
