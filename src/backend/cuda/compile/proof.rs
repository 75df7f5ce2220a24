//! What NVRTC, ptxas and the disassembler make of every kernel: no local memory, wide loads of weights, tensor cores where
//! they are meant. Needs no card, and the wheels of scripts/nvidia-tools.

use super::*;
use crate::backend::cuda::kernels::Kernel;
use std::collections::BTreeMap;
use std::process::Command;

const ARCHS: [Arch; 3] = [Arch(80), Arch(90), Arch(100)];
/// Under target/nvidia/nvidia.
const COMPILERS: [(&str, Version); 2] =
    [("cuda_nvrtc/lib/libnvrtc.so.12", Version(12, 9)), ("cu13/lib/libnvrtc.so.13", Version(13, 5))];
const SNAPSHOT: &str = "kernels/registers.txt";
const HEADING: &str = "\
# Registers of each kernel, as ptxas gives them, and bytes of shared memory. Made of exact wheels (scripts/nvidia-tools.txt);
# with UPDATE_REGISTERS=1 `scripts/test --lib proof` writes this file anew.
";

fn of_wheels(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/nvidia/nvidia").join(path);
    assert!(path.exists(), "{} is not here: scripts/nvidia-tools fetches it", path.display());
    path
}

fn compilers() -> [Compiler; 2] {
    COMPILERS.map(|(file, version)| {
        let compiler = Compiler::load(&of_wheels(file), None).expect("NVRTC loads");
        assert_eq!(compiler.version(), version);
        compiler
    })
}

/// One kernel in one module's log.
#[derive(Debug, Default, PartialEq)]
struct Usage {
    registers: u32,
    shared: u32,
    /// Stack and spilled bytes.
    local: u32,
    /// Lines that told of the first two, and of the last.
    told: [u32; 2],
}

/// Lines such as `Used 24 registers, used 1 barriers, 32 bytes smem` after `Compiling entry function 'norm_add'`. Words that
/// are not those of ptxas tell nothing: the numbers of a kernel count where each line of its own has told once.
fn usages(log: &str) -> BTreeMap<String, Usage> {
    let mut usages = BTreeMap::new();
    let mut name = String::new();
    for line in log.lines() {
        let number_before = |word: &str| -> Option<u32> {
            line.split_once(word)?.0.split_whitespace().last().and_then(|number| number.parse().ok())
        };
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            name = rest.split('\'').next().unwrap_or_default().into();
            usages.insert(name.clone(), Usage::default());
        }
        let Some(usage) = usages.get_mut(&name) else { continue };
        if let [Some(stack), Some(stores), Some(loads)] =
            [" bytes stack frame", " bytes spill stores", " bytes spill loads"].map(number_before)
        {
            usage.local += stack + stores + loads;
            usage.told[1] += 1;
        }
        if let Some(registers) = number_before(" registers").filter(|_| line.contains("Used ")) {
            usage.registers = registers;
            // Of none there is no word.
            usage.shared = number_before(" bytes smem").unwrap_or(0);
            usage.told[0] += 1;
        }
    }
    usages
}

/// The instructions of each function of a cubin.
fn disassembled(image: &[u8]) -> BTreeMap<String, String> {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), image).expect("it is written");
    let output =
        Command::new(of_wheels("cu13/bin/nvdisasm")).arg("-c").arg(file.path()).output().expect("nvdisasm runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let sections = text.split("//--------------------- .text.").skip(1);
    sections
        .map(|section| (section.split_whitespace().next().unwrap_or_default().to_string(), section.to_string()))
        .collect()
}

/// What is wrong with a kernel's instructions.
fn complaint(kernel: &str, stem: &str, instructions: &str) -> Option<String> {
    if let Some(local) = ["LDL", "STL"].iter().find(|local| instructions.contains(**local)) {
        return Some(format!("it uses local memory: {local}"));
    }
    let (what, load, wide) = match stem {
        "norm_matmul" | "matmul_add" | "norm_gate_up" => ("weights", "LDGSTS.", ".128"),
        // Where octets are not aligned they come word by word.
        "attention" => ("keys", "LDG.", if kernel.ends_with("_any") { "" } else { ".128" }),
        _ => return None,
    };
    if !instructions.lines().any(|line| line.contains(load) && line.contains(wide)) {
        return Some(format!("it does not load {what} 128 bits at a time"));
    }
    let product = [("_bf16", Some("HMMA.16816.F32.BF16")), ("_f16", Some("HMMA.1688.F32.TF32")), ("_f32", None)];
    let (_, product) = product.iter().find(|(dtype, _)| kernel.contains(dtype)).expect("a kernel of a dtype");
    match product {
        Some(product) if !instructions.contains(product) => Some(format!("it has no {product}")),
        None if instructions.contains("HMMA") => Some("it rounds what f32 holds".into()),
        _ => None,
    }
}

/// What is known of a module for one architecture: of each kernel, and its instructions.
struct Compiled {
    usages: BTreeMap<String, Usage>,
    instructions: BTreeMap<String, String>,
}

impl Compiled {
    fn new(compiler: &Compiler, module: &Module, arch: Arch) -> Self {
        let options = [&options(arch)[..], &["--ptxas-options=-v".into()]].concat();
        let made = compiler.run(module, &options);
        let Output { cubin, log } = made.unwrap_or_else(|log| panic!("{} for {arch}: {log}", module.stem));
        let usages = usages(&log);
        assert_eq!(usages.len(), module.kernels.len(), "{}: kernels that the table has not", module.stem);
        assert!(usages.values().all(|usage| usage.told == [1; 2]), "{}: a log of other words:\n{log}", module.stem);
        Self { usages, instructions: disassembled(&cubin) }
    }

    fn complaint(&self, kernel: &Kernel) -> Option<String> {
        let local = self.usages[kernel.name].local;
        let spilled = (local > 0).then(|| format!("{local} bytes of stack and spills"));
        spilled.or_else(|| complaint(kernel.name, kernel.stem, &self.instructions[kernel.name]))
    }
}

/// What `work` gives of each job, by two threads.
fn each<J: Sync, T: Send>(jobs: &[J], work: impl Fn(&J) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let take = || {
        let indices = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&i| i < jobs.len()));
        indices.map(|index| (index, work(&jobs[index]))).collect::<Vec<_>>()
    };
    let mut done = std::thread::scope(|scope| {
        let threads = [scope.spawn(take), scope.spawn(take)];
        threads.into_iter().flat_map(|thread| thread.join().expect("it compiles")).collect::<Vec<_>>()
    });
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, made)| made).collect()
}

/// All kernels for all of [`ARCHS`] by both compilers: the lines of the snapshot.
fn lines() -> String {
    let compilers = compilers();
    let columns: Vec<_> = compilers.iter().flat_map(|compiler| ARCHS.map(|arch| (compiler, arch))).collect();
    let jobs: Vec<_> = MODULES.iter().flat_map(|module| columns.iter().map(move |column| (module, column))).collect();
    let made = each(&jobs, |(module, (compiler, arch))| Compiled::new(compiler, module, *arch));
    let (mut lines, mut complaints) = (String::from(HEADING), Vec::new());
    let names: Vec<_> = columns.iter().map(|(compiler, arch)| format!("{}/{arch}", compiler.version())).collect();
    lines += &format!("{:<28} {:>6}  {}\n", "kernel", "shared", names.join("  "));
    for (module, made) in MODULES.iter().zip(made.chunks(columns.len())) {
        for kernel in module.kernels {
            let shared = made[0].usages[kernel.name].shared;
            lines += &format!("{:<28} {shared:>6}", kernel.name);
            for (compiled, name) in made.iter().zip(&names) {
                let usage = &compiled.usages[kernel.name];
                assert_eq!(usage.shared, shared, "{}, {name}: other bytes of shared memory", kernel.name);
                lines += &format!("  {:>10}", usage.registers);
                complaints.extend(compiled.complaint(kernel).map(|wrong| format!("{}, {name}: {wrong}", kernel.name)));
            }
            lines += "\n";
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    lines
}

#[test]
fn kernels_stay_in_registers_and_load_weights_wide() {
    let lines = lines();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(SNAPSHOT);
    if std::env::var_os("UPDATE_REGISTERS").is_some() {
        std::fs::write(&file, &lines).expect("it is written");
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(lines == kept, "{SNAPSHOT} differs; now:\n{lines}");
}

#[test]
fn a_log_is_read_as_ptxas_writes_it() {
    let log = "ptxas info    : 132 bytes gmem\n\
        ptxas info    : Compiling entry function 'a' for 'sm_90'\n\
        ptxas info    : Function properties for a\n\
        ptxas         .     48 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\n\
        ptxas info    : Used 22 registers, used 1 barriers, 48 bytes cumulative stack size, 32 bytes smem\n";
    let usages = usages(log);
    assert_eq!(usages.len(), 1);
    assert_eq!(usages["a"], Usage { registers: 22, shared: 32, local: 60, told: [1; 2] });
}

/// Whatever a later ptxas may write in place of its words.
#[test]
fn a_log_of_other_words_tells_nothing() {
    let log = |stack: &str, used: &str| {
        format!("ptxas info    : Compiling entry function 'a' for 'sm_90'\n{stack}\nptxas info    : {used}\n")
    };
    let (stack, used) = ("48 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads", "Used 22 registers");
    let told = |log: String| usages(&log)["a"].told;
    assert_eq!(told(log(stack, used)), [1, 1]);
    for other in ["", "48 byte stack frame, 8 bytes spill stores, 4 bytes spill loads", "48 bytes stack frame"] {
        assert_eq!(told(log(other, used)), [1, 0], "{other}");
    }
    for other in ["", "Used registers: 22", "22 registers"] {
        assert_eq!(told(log(stack, other)), [0, 1], "{other}");
    }
    assert_eq!(told(log(stack, used) + stack), [1, 2], "a line of what is no kernel's own");
}
