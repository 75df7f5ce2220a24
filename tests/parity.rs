//! Every op of every backend against the CPU twin and f64: the self-test, on each instruction set of this machine and
//! on lavapipe at each size of its subgroups. That a wrong result shows is tested in src/selftest/.

use proxytune::backend::wgpu::adapters;
use proxytune::engine::BackendChoice;
use proxytune::selftest::{Options, Report, run_all};
use std::process::Command;

/// What a run reported, having asserted that it passed.
fn passed(options: Options) -> Vec<Report> {
    let mut reports = Vec::new();
    let outcome = run_all(&options, &mut |report: &Report| reports.push(report.clone())).expect("the backend runs");
    let failed: Vec<&Report> = reports.iter().filter(|report| !report.passed).collect();
    assert!(outcome.passed(), "{failed:#?}");
    assert_eq!((outcome.ops, outcome.failed), (reports.len(), 0));
    reports
}

fn backends(reports: &[Report]) -> Vec<String> {
    let mut names: Vec<String> = reports.iter().map(|report| report.backend.clone()).collect();
    names.dedup();
    names
}

#[test]
fn cpu() {
    let reports = passed(Options { backend: BackendChoice::Cpu, ..Options::default() });
    let names = backends(&reports);
    assert_eq!(reports.len(), 10 * names.len(), "ten ops per instruction set");
    assert!(names[0].starts_with("cpu (portable"), "{names:?}");
    #[cfg(target_arch = "x86_64")]
    for (isa, is_here) in [("avx2", is_x86_feature_detected!("avx2")), ("avx512", is_x86_feature_detected!("avx512f"))]
    {
        assert_eq!(names.iter().any(|name| name.starts_with(&format!("cpu ({isa},"))), is_here, "{names:?}");
    }
}

#[test]
fn lavapipe_at_every_vector_width() {
    // The driver reads the variable once, when it is loaded: each width is a process of its own.
    for (bits, subgroup) in [("128", 4), ("256", 8), ("512", 16)] {
        let child = Command::new(std::env::current_exe().expect("this test's binary"))
            .args(["--ignored", "--exact", "lavapipe_here", "--nocapture"])
            .env("LP_NATIVE_VECTOR_WIDTH", bits)
            .output()
            .expect("the binary runs again");
        let output = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success(), "{bits} bits:\n{output}\n{}", String::from_utf8_lossy(&child.stderr));
        assert!(output.contains(&format!("subgroups of {subgroup}")), "{bits} bits:\n{output}");
        assert!(output.contains("1 passed"), "the child ran its test:\n{output}");
    }
}

/// The software adapter in this process; run by [`lavapipe_at_every_vector_width`].
#[test]
#[ignore = "run once per vector width, in processes of their own"]
fn lavapipe_here() {
    let adapters = adapters();
    let device = adapters.iter().position(|adapter| adapter.software && adapter.name.contains("llvmpipe"));
    let device = device.expect("lavapipe is installed: scripts/test does it");
    let adapter = &adapters[device];
    println!("{} with subgroups of {}", adapter.name, adapter.subgroup_min);
    let reports = passed(Options { backend: BackendChoice::Wgpu, device: Some(device), ..Options::default() });
    let names = backends(&reports);
    assert!(names.iter().all(|name| name.starts_with(&format!("wgpu ({}", adapter.name))), "{names:?}");
    let forms = names.iter().map(|name| name.rsplit(", ").next().expect("a form"));
    // Eight neighbours exchange sums, so smaller subgroups run the plain form.
    let wanted = if adapter.subgroup_min < 8 {
        &["plain", "buffers split", "images split"][..]
    } else {
        &["plain", "buffers split", "images split with subgroups", "subgroups"]
    };
    assert_eq!(forms.collect::<Vec<_>>(), wanted);
}
