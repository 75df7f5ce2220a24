//! The wgpu backend on whatever adapter is here, a software one (lavapipe) too: the same bits across subgroup sizes and
//! weight types, late reading, and errors that come out as errors. Ops against the twin are in tests/parity.rs.

use proxytune::Error;
use proxytune::backend::params::*;
use proxytune::backend::wgpu::{Buf, MatrixForm, Options, Wgpu, adapters};
use proxytune::backend::*;
use std::process::Command;

fn open(change: impl FnOnce(&mut Options)) -> Wgpu {
    let mut options = Options { software: true, ..Options::default() };
    change(&mut options);
    Wgpu::open(&options).expect("a Vulkan adapter (scripts/test installs lavapipe)")
}

/// Matrices are cut into parts of at most 256 KiB.
fn open_split() -> Wgpu {
    open(|options| options.binding_limit = Some(256 << 10))
}

/// Numbers in [-1, 1) that depend on their index and a seed alone.
fn numbers(seed: u32, n: usize) -> Vec<f32> {
    let number = |i: usize| math::philox([i as u32, 0, 0, 0], [seed, 0])[0] as i32 as f32 / 2f32.powi(31);
    (0..n).map(number).collect()
}

fn filled<T: bytemuck::Pod>(gpu: &Wgpu, data: &[T]) -> Buf {
    let bytes: &[u8] = bytemuck::cast_slice(data);
    let buf = gpu.alloc("test", bytes.len() / 4).expect("memory");
    gpu.upload(&buf, 0, bytes).expect("an upload");
    buf
}

fn one_row(gpu: &Wgpu) -> Buf {
    filled(gpu, &[Extent { n_rows: 1, n_logits: 1 }; MAX_MEMBERS])
}

/// `x += W y` with 8 x 8 weights, for one row.
fn record_sum(gpu: &Wgpu, pass: &mut <Wgpu as Backend>::Pass, x: &Buf, y: &Buf, extents: &Buf) {
    let spec = MatrixSpec { dtype: Dtype::F32, n_rows: 8, n_cols: 8 };
    let w = gpu.matrix(spec, &[&bytemuck::cast_slice::<f32, u8>(&[1.0; 64])]).expect("a matrix");
    let params = MatmulAddParams { cap: 1, n_in: 8, n_out: 8, scale: 1.0 };
    gpu.matmul_add(pass, MatmulAdd { x, w: &w, y, bias: None, extents, n_rows: 1, params });
}

/// The adapter that has whatever subgroup size it is told: a GPU has the size it has.
fn lavapipe() -> usize {
    let device = adapters().iter().position(|adapter| adapter.software && adapter.name.contains("llvmpipe"));
    device.expect("lavapipe is installed: scripts/test does it")
}

#[test]
fn every_subgroup_size_gives_the_same_bits() {
    // The driver reads the variable once, when it is loaded: each size is a process of its own.
    let this = std::env::current_exe().expect("a path");
    let bits = [(128, 4), (256, 8), (512, 16)].map(|(width, size)| {
        let output = Command::new(&this)
            .args(["--ignored", "--exact", "bits_here", "--nocapture"])
            .env("LP_NATIVE_VECTOR_WIDTH", width.to_string())
            .output()
            .expect("this test binary");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains(&format!("subgroups of {size}\n")), "{text}");
        text.lines().find(|line| line.starts_with("bits: ")).expect("the bits").to_owned()
    });
    assert!(bits.iter().all(|line| *line == bits[0]), "{bits:#?}");
}

/// Run by [`every_subgroup_size_gives_the_same_bits`].
#[test]
#[ignore = "run once per vector width, in processes of their own"]
fn bits_here() {
    let device = Some(lavapipe());
    let gpu = open(|options| options.device = device);
    let plain = open(|options| (options.device, options.subgroups) = (device, false));
    let size = gpu.adapter().subgroup_min;
    assert_eq!((gpu.uses_subgroups(), plain.uses_subgroups()), (size >= 8, false));
    println!("subgroups of {size}");
    let bits = gate_up_bits(&gpu, Dtype::Bf16, Dtype::Bf16);
    assert!(bits == gate_up_bits(&plain, Dtype::Bf16, Dtype::Bf16));
    println!("bits: {bits:x?}");
}

/// norm_gate_up of matrices that hold the same numbers in the given types, over the binding limit of [`open_split`].
fn gate_up_bits(gpu: &Wgpu, gate: Dtype, up: Dtype) -> Vec<u32> {
    let (n_in, n_out, n_rows) = (232, 700, 5);
    let matrix = |dtype: Dtype, seed: u32| {
        let stored: Vec<half::bf16> = numbers(seed, n_out * n_in).into_iter().map(half::bf16::from_f32).collect();
        let widened: Vec<f32> = stored.iter().map(|x| x.to_f32()).collect();
        let bytes = if dtype == Dtype::F32 { bytemuck::cast_slice(&widened) } else { bytemuck::cast_slice(&stored) };
        gpu.matrix(MatrixSpec { dtype, n_rows: n_out, n_cols: n_in }, &[&bytes]).expect("a matrix")
    };
    let h = gpu.alloc("h", n_rows * n_out).expect("memory");
    let (x, gain) = (filled(gpu, &numbers(3, n_rows * n_in)), filled(gpu, &numbers(4, n_in)));
    let extents = filled(gpu, &[Extent { n_rows: n_rows as u32, n_logits: 0 }, Extent::default()]);
    let [cap, n_in, n_out] = [n_rows, n_in, n_out].map(|n| n as u32);
    let (w_gate, w_up) = (matrix(gate, 1), matrix(up, 2));
    let params = NormGateUpParams { cap, n_in, n_out, activation: Activation::Silu as u32, eps: [1e-5; MAX_MEMBERS] };
    let mut pass = gpu.begin();
    let (w_gate, w_up, gain) = (&w_gate, &w_up, Some(&gain));
    gpu.norm_gate_up(
        &mut pass,
        NormGateUp { h: &h, w_gate, w_up, x: &x, gain, extents: &extents, n_rows: cap, params },
    );
    let receipt = gpu.submit(pass, &[(&h, 0..h.bytes())]).expect("a step");
    bytemuck::pod_collect_to_vec(&gpu.collect(receipt).expect("its bytes"))
}

#[test]
fn matrices_of_two_types_are_cut_at_different_rows_and_give_the_same_bits() {
    let want = gate_up_bits(&open(|_| ()), Dtype::Bf16, Dtype::Bf16);
    for matrices in [MatrixForm::Buffers, MatrixForm::Images] {
        let gpu = open(|options| (options.matrices, options.binding_limit) = (Some(matrices), Some(256 << 10)));
        for (gate, up) in [(Dtype::Bf16, Dtype::F32), (Dtype::F32, Dtype::Bf16), (Dtype::F32, Dtype::F32)] {
            assert!(gate_up_bits(&gpu, gate, up) == want, "{gate:?} and {up:?} in {matrices:?}");
        }
    }
}

#[test]
#[should_panic(expected = "outputs and inputs of a matrix")]
fn a_matrix_of_another_shape_is_refused() {
    let gpu = open(|_| ());
    let (x, y, extents) = (filled(&gpu, &[0.0f32; 8]), filled(&gpu, &[0.0f32; 16]), one_row(&gpu));
    let spec = MatrixSpec { dtype: Dtype::F32, n_rows: 8, n_cols: 8 };
    let w = gpu.matrix(spec, &[&bytemuck::cast_slice::<f32, u8>(&[1.0; 64])]).expect("a matrix");
    let params = MatmulAddParams { cap: 1, n_in: 16, n_out: 8, scale: 1.0 };
    let op = MatmulAdd { x: &x, w: &w, y: &y, bias: None, extents: &extents, n_rows: 1, params };
    gpu.matmul_add(&mut gpu.begin(), op);
}

#[test]
#[should_panic(expected = "2 rows where 1 fit")]
fn more_rows_than_fit_are_refused() {
    let gpu = open(|_| ());
    let (x, extents) = (filled(&gpu, &[0.0f32; 8]), one_row(&gpu));
    let params = NormAddParams { cap: 1, d_model: 8, eps: [1e-5; MAX_MEMBERS] };
    let op = NormAdd { x: &x, y: &extents, gain: &x, extents: &extents, n_rows: 2, params };
    gpu.norm_add(&mut gpu.begin(), op);
}

#[test]
fn steps_run_in_order_and_may_be_read_late() {
    let gpu = open(|_| ());
    let (x, y, extents) = (filled(&gpu, &[0.0f32; 8]), filled(&gpu, &[0.0f32; 8]), one_row(&gpu));
    let receipts: Vec<_> = (0..=Wgpu::LAG)
        .map(|step| {
            gpu.upload(&y, 0, bytemuck::bytes_of(&(step as f32))).expect("an upload");
            let mut pass = gpu.begin();
            record_sum(&gpu, &mut pass, &x, &y, &extents);
            assert_eq!(gpu.dispatches(&pass), 1);
            gpu.submit(pass, &[(&x, 28..32), (&y, 0..4)]).expect("a step")
        })
        .collect();
    let mut sum = 0.0;
    for (step, receipt) in receipts.into_iter().enumerate() {
        sum += step as f32;
        let got: Vec<f32> = bytemuck::pod_collect_to_vec(&gpu.collect(receipt).expect("its bytes"));
        assert_eq!(got, [sum, step as f32], "step {step}");
    }
    let whole: Vec<f32> = bytemuck::pod_collect_to_vec(&gpu.read(&x, 0..32).expect("memory"));
    assert_eq!(whole, [sum; 8]);
}

#[test]
fn memory_is_zeroed_and_a_dropped_buffer_is_forgotten() {
    let gpu = open(|_| ());
    let (y, extents) = (filled(&gpu, &[1.0f32; 8]), one_row(&gpu));
    for _ in 0..3 {
        let x = gpu.alloc("x", 8).expect("memory");
        let mut pass = gpu.begin();
        record_sum(&gpu, &mut pass, &x, &y, &extents);
        let receipt = gpu.submit(pass, &[(&x, 0..32)]).expect("a step");
        let got: Vec<f32> = bytemuck::pod_collect_to_vec(&gpu.collect(receipt).expect("its bytes"));
        assert_eq!(got, [8.0; 8]);
    }
}

/// Every call after a fault gives the fault.
fn assert_broken(gpu: &Wgpu, buf: &Buf, first: Error) {
    assert!(
        matches!(&first, Error::Device { backend: "wgpu", message } if message.contains(&gpu.adapter().name)),
        "{first}"
    );
    assert_eq!(gpu.submit(gpu.begin(), &[]).err(), Some(first.clone()));
    assert_eq!(gpu.read(buf, 0..4).err(), Some(first.clone()));
    assert_eq!(gpu.upload(buf, 0, &[0; 4]).err(), Some(first.clone()));
    assert_eq!(gpu.alloc("more", 1).err(), Some(first));
}

#[test]
fn a_validation_error_comes_out_of_submit_and_stays() {
    let gpu = open(|_| ());
    let buf = gpu.alloc("x", 8).expect("memory");
    let fine = gpu.submit(gpu.begin(), &[(&buf, 0..4)]).expect("a step");
    let first = gpu.submit(gpu.begin(), &[(&buf, 28..36)]).err().expect("a read past the end");
    assert_eq!(gpu.collect(fine), Err(first.clone()));
    assert_broken(&gpu, &buf, first);
}

#[test]
fn a_buffer_bound_for_reading_and_writing_is_an_error() {
    let gpu = open(|_| ());
    let (x, extents) = (filled(&gpu, &[0.0f32; 8]), one_row(&gpu));
    let mut pass = gpu.begin();
    record_sum(&gpu, &mut pass, &x, &x, &extents);
    let first = gpu.submit(pass, &[]).err().expect("one buffer as x and y");
    assert_broken(&gpu, &x, first);
}

#[test]
fn what_does_not_fit_is_refused_and_leaves_the_device_whole() {
    let gpu = open_split();
    assert_eq!(gpu.binding_limit(), 256 << 10);
    let limit = gpu.adapter().max_binding_bytes.min(gpu.adapter().max_buffer_bytes);
    let words = (limit / 4 + 1) as usize;
    let refused = Error::Memory { what: "too much".into(), needed: 4 * words as u64, limit };
    assert_eq!(gpu.alloc("too much", words).err(), Some(refused));
    // Sixteen rows stand together, each padded to a multiple of 64 elements.
    let spec = MatrixSpec { dtype: Dtype::F32, n_rows: 1, n_cols: 4096 + 8 };
    let refused = Error::Memory { what: "a block of weights".into(), needed: 4 * 16 * (4096 + 64), limit: 256 << 10 };
    assert_eq!(gpu.matrix(spec, &[&vec![0u8; spec.bytes()]]).err(), Some(refused));
    assert!(gpu.submit(gpu.begin(), &[]).is_ok());
}

#[test]
fn adapters_are_chosen_as_asked() {
    let all = adapters();
    let beyond = Wgpu::open(&Options { device: Some(all.len()), ..Options::default() }).err().expect("no such adapter");
    assert!(beyond.to_string().contains(&format!("no adapter {}", all.len())), "{beyond}");
    assert!(all.iter().all(|adapter| beyond.to_string().contains(&adapter.name)), "{beyond}");
    for (index, adapter) in all.iter().enumerate() {
        let gpu = Wgpu::open(&Options { device: Some(index), ..Options::default() }).expect("a named adapter");
        assert_eq!(gpu.adapter(), adapter);
    }
    let unasked = Wgpu::open(&Options::default());
    assert_eq!(unasked.is_ok(), all.iter().any(|adapter| !adapter.software));
    if let Some(error) = unasked.err() {
        assert_eq!(error.exit_code(), 5);
        assert!(error.to_string().contains("software adapters only when asked for"), "{error}");
    }
    let accepted = open(|_| ());
    assert_eq!(accepted.adapter().software, all.iter().all(|adapter| adapter.software));
}
