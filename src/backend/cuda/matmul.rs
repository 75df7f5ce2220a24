//! Plans of the ops over weight matrices: norm_matmul, matmul_add, norm_gate_up.
//!
//! A block has all of K and some rows and outputs, see kernels/matmul.cuh. How many only decides how often weights are
//! read and how many blocks there are: a row's bits are the same in every form.

use super::kernels::Kernel;
use super::matrix::TILE;
use super::*;
use bytemuck::{Pod, Zeroable};

/// norm_matmul's argument.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NormMatmulArgs {
    y: u64,
    w: u64,
    x: u64,
    gain: u64,
    bias: u64,
    gather: u64,
    extents: u64,
    params: NormMatmulParams,
    /// 16-byte vectors from one member's weights to the next's.
    w_stride: u64,
}

/// matmul_add's argument.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MatmulAddArgs {
    x: u64,
    w: u64,
    y: u64,
    bias: u64,
    extents: u64,
    params: MatmulAddParams,
    /// As in [`NormMatmulArgs`].
    w_stride: u64,
}

/// norm_gate_up's argument.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NormGateUpArgs {
    h: u64,
    w_gate: u64,
    w_up: u64,
    x: u64,
    gain: u64,
    extents: u64,
    params: NormGateUpParams,
    /// As in [`NormMatmulArgs`], of both matrices.
    w_stride: u64,
}

/// What a block holds: rows of x, and tiles of outputs (of each matrix).
#[derive(Clone, Copy, Debug, PartialEq)]
struct Form {
    rows: u32,
    tiles: u32,
}

const fn forms<const N: usize>(sizes: [[u32; 2]; N]) -> [Form; N] {
    let mut forms = [Form { rows: 0, tiles: 0 }; N];
    let mut i = 0;
    while i < N {
        forms[i] = Form { rows: sizes[i][0], tiles: sizes[i][1] };
        i += 1;
    }
    forms
}

/// The kernels of an op by the type of its weights, the fewest rows first: as many as registers hold.
struct Forms {
    bf16: &'static [Form],
    f16: &'static [Form],
    f32: &'static [Form],
}

static NORM_MATMUL_FORMS: Forms = Forms {
    bf16: &forms([[4, 1], [8, 2], [16, 2], [32, 4]]),
    f16: &forms([[4, 1], [8, 2], [16, 2], [32, 2]]),
    f32: &forms([[4, 1], [16, 1]]),
};
/// At 8 rows not by pairs of tiles: of the 3,584 outputs of Qwen2.5 7B these are 112 blocks, and an H100 has 132 processors.
static MATMUL_ADD_FORMS: Forms = Forms {
    bf16: &forms([[4, 1], [8, 1], [16, 2], [32, 4]]),
    f16: &forms([[4, 1], [8, 1], [16, 1], [32, 2]]),
    f32: &forms([[4, 1], [16, 1]]),
};
static NORM_GATE_UP_FORMS: Forms = Forms {
    bf16: &forms([[4, 1], [8, 2], [16, 1], [32, 2]]),
    f16: &forms([[4, 1], [8, 2], [16, 1]]),
    f32: &forms([[4, 1], [16, 1]]),
};

const fn kernels<A, const N: usize>(stem: &'static str, args: &'static str, names: [&'static str; N]) -> [Kernel; N] {
    let mut kernels = [const { Kernel { stem: "", name: "", threads: 256, args: "", args_bytes: 0 } }; N];
    let mut i = 0;
    while i < N {
        kernels[i] = Kernel { stem, name: names[i], threads: 256, args, args_bytes: size_of::<A>() };
        i += 1;
    }
    kernels
}

/// In the order of [`Forms`]: bf16, f16, f32.
pub(super) static NORM_MATMUL: &[Kernel] = &kernels::<NormMatmulArgs, 10>(
    "norm_matmul",
    "NormMatmulArgs",
    [
        "norm_matmul_bf16_4",
        "norm_matmul_bf16_8",
        "norm_matmul_bf16_16",
        "norm_matmul_bf16_32",
        "norm_matmul_f16_4",
        "norm_matmul_f16_8",
        "norm_matmul_f16_16",
        "norm_matmul_f16_32",
        "norm_matmul_f32_4",
        "norm_matmul_f32_16",
    ],
);
/// In the order of [`Forms`].
pub(super) static MATMUL_ADD: &[Kernel] = &kernels::<MatmulAddArgs, 10>(
    "matmul_add",
    "MatmulAddArgs",
    [
        "matmul_add_bf16_4",
        "matmul_add_bf16_8",
        "matmul_add_bf16_16",
        "matmul_add_bf16_32",
        "matmul_add_f16_4",
        "matmul_add_f16_8",
        "matmul_add_f16_16",
        "matmul_add_f16_32",
        "matmul_add_f32_4",
        "matmul_add_f32_16",
    ],
);
/// In the order of [`Forms`].
pub(super) static NORM_GATE_UP: &[Kernel] = &kernels::<NormGateUpArgs, 9>(
    "norm_gate_up",
    "NormGateUpArgs",
    [
        "norm_gate_up_bf16_4",
        "norm_gate_up_bf16_8",
        "norm_gate_up_bf16_16",
        "norm_gate_up_bf16_32",
        "norm_gate_up_f16_4",
        "norm_gate_up_f16_8",
        "norm_gate_up_f16_16",
        "norm_gate_up_f32_4",
        "norm_gate_up_f32_16",
    ],
);

impl Forms {
    /// The forms of a type, and where their kernels begin in an op's table.
    fn of(&self, dtype: Dtype) -> (&'static [Form], usize) {
        match dtype {
            Dtype::Bf16 => (self.bf16, 0),
            Dtype::F16 => (self.f16, self.bf16.len()),
            Dtype::F32 => (self.f32, self.bf16.len() + self.f16.len()),
        }
    }

    /// The kernel among `kernels` whose block has room for `n_rows` rows, or the largest, and its grid over `w`: so few
    /// rows are read together with all their weights, and these once.
    fn choose<D: Device>(&self, kernels: &'static [Kernel], w: &Matrix<D>, n_rows: u32) -> (&'static Kernel, [u32; 3]) {
        let (forms, first) = self.of(w.spec.dtype);
        let index = forms.iter().position(|form| form.rows >= n_rows).unwrap_or(forms.len() - 1);
        let Form { rows, tiles } = forms[index];
        let n_tiles = w.spec.n_rows.div_ceil(TILE) as u32;
        (&kernels[first + index], [n_rows.div_ceil(rows), n_tiles.div_ceil(tiles), w.n_members as u32])
    }
}

/// Kernels count the elements of a member's rows in 32 bits.
fn check_elements(cap: u32, n_in: u32) {
    assert!(cap.checked_mul(n_in).is_some(), "{cap} rows of {n_in}");
}

/// From one member's weights to the next's, in vectors of 16 bytes.
fn stride<D: Device>(w: &Matrix<D>) -> u64 {
    (w.member_bytes() / 16) as u64
}

pub(super) fn norm_matmul<D: Device>(pass: &mut Pass, op: NormMatmul<'_, Cuda<D>>) {
    let NormMatmul { y, w, x, gain, bias, gather, extents, n_rows, params } = op;
    if gather.is_some() {
        pass.n_silent -= i64::from(n_rows);
    }
    check_elements(params.cap_in, params.n_in);
    let n_rows = pass.bound(n_rows);
    let (kernel, grid) = NORM_MATMUL_FORMS.choose(NORM_MATMUL, w, n_rows);
    let args = NormMatmulArgs {
        y: y.address(),
        w: w.memory.address(),
        x: x.address(),
        gain: address_of(gain),
        bias: address_of(bias),
        gather: address_of(gather),
        extents: extents.address(),
        params,
        w_stride: stride(w),
    };
    let branch = pass.branch_of(extents);
    pass.launch(kernel, grid, &args, branch);
}

pub(super) fn matmul_add<D: Device>(pass: &mut Pass, op: MatmulAdd<'_, Cuda<D>>) {
    let MatmulAdd { x, w, y, bias, extents, n_rows, params } = op;
    check_elements(params.cap, params.n_in);
    let n_rows = pass.bound(n_rows);
    let (kernel, grid) = MATMUL_ADD_FORMS.choose(MATMUL_ADD, w, n_rows);
    let args = MatmulAddArgs {
        x: x.address(),
        w: w.memory.address(),
        y: y.address(),
        bias: address_of(bias),
        extents: extents.address(),
        params,
        w_stride: stride(w),
    };
    let branch = pass.branch_of(extents);
    pass.launch(kernel, grid, &args, branch);
}

pub(super) fn norm_gate_up<D: Device>(pass: &mut Pass, op: NormGateUp<'_, Cuda<D>>) {
    let NormGateUp { h, w_gate, w_up, x, gain, extents, n_rows, params } = op;
    assert_eq!((w_gate.spec, w_gate.n_members), (w_up.spec, w_up.n_members), "both matrices are of one kind");
    check_elements(params.cap, params.n_in);
    let n_rows = pass.bound(n_rows);
    let (kernel, grid) = NORM_GATE_UP_FORMS.choose(NORM_GATE_UP, w_gate, n_rows);
    let args = NormGateUpArgs {
        h: h.address(),
        w_gate: w_gate.memory.address(),
        w_up: w_up.memory.address(),
        x: x.address(),
        gain: address_of(gain),
        extents: extents.address(),
        params,
        w_stride: stride(w_gate),
    };
    let branch = pass.branch_of(extents);
    pass.launch(kernel, grid, &args, branch);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel whose block the plan thinks smaller or larger than it is would leave outputs out, or make them twice.
    #[test]
    fn kernels_have_the_forms_of_the_plan() {
        let table = [
            (NORM_MATMUL, &NORM_MATMUL_FORMS, 1, include_str!("../../../kernels/norm_matmul.cu")),
            (MATMUL_ADD, &MATMUL_ADD_FORMS, 1, include_str!("../../../kernels/matmul_add.cu")),
            (NORM_GATE_UP, &NORM_GATE_UP_FORMS, 2, include_str!("../../../kernels/norm_gate_up.cu")),
        ];
        for (kernels, forms, n_matrices, text) in table {
            for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
                let (forms, first) = forms.of(dtype);
                for (kernel, Form { rows, tiles }) in kernels[first..].iter().zip(forms) {
                    let Kernel { stem, name, args, .. } = kernel;
                    assert_eq!(*name, format!("{stem}_{}_{rows}", dtype.name()));
                    let (dtype, fours) = (dtype.name().to_uppercase(), rows / 4);
                    let form = format!("Form<{dtype}, {n_matrices}, {fours}, {tiles}>");
                    let body = format!("{name}(const {args} args) {{\n    {stem}<{form}>(args);\n}}");
                    assert!(text.contains(&body), "{body}");
                }
            }
            assert_eq!(text.matches("extern \"C\"").count(), kernels.len(), "every kernel is in the table");
        }
    }

    /// Every f32 in [1, 2) as the kernels take it: its nearest in the narrow type and what that leaves, in two parts.
    #[test]
    fn an_activation_enters_as_exactly_as_the_backend_says() {
        let bf16 = |x: f32| half::bf16::from_f32(x).to_f32();
        let nearest_tf32 = |x: f32| f32::from_bits((x.to_bits() + 0x1000) & 0xffff_e000);
        let cut_tf32 = |x: f32| f32::from_bits(x.to_bits() & 0xffff_e000);
        let worst = |near: &dyn Fn(f32) -> f32, rest: &dyn Fn(f32) -> f32| {
            let errors = (1f32.to_bits()..2f32.to_bits()).map(f32::from_bits).map(|x| {
                let parts = f64::from(near(x)) + f64::from(rest(x - near(x)));
                (f64::from(x) - parts).abs() / f64::from(x)
            });
            errors.fold(0.0, f64::max)
        };
        for (dtype, worst) in [(Dtype::Bf16, worst(&bf16, &bf16)), (Dtype::F16, worst(&nearest_tf32, &cut_tf32))] {
            let stated = Cuda::<Driver>::product_error(dtype);
            assert!(worst <= stated && worst > 0.99 * stated, "{dtype:?}: {worst:e}, stated {stated:e}");
        }
    }
}
