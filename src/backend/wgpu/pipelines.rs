//! The table of ops, and what is made once for each: shader, pipeline, bind groups.

use super::device::Device;
use super::memory::{Bind, Dropped};
use super::{MatrixForm, constants};
use crate::backend::Dtype;
use std::cell::RefCell;
use std::collections::HashMap;

/// An op's shader and its bindings, in order: outputs, inputs, uniforms.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Stem {
    pub(super) name: &'static str,
    source: &'static str,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) uniforms: usize,
}

impl Stem {
    const fn new(name: &'static str, source: &'static str, [outputs, inputs, uniforms]: [usize; 3]) -> Self {
        Self { name, source, outputs, inputs, uniforms }
    }
}

macro_rules! shader {
    ($stem:literal) => {
        include_str!(concat!("../../../shaders/", $stem, ".wgsl"))
    };
}

pub(super) static COPY_PAGES: Stem = Stem::new("copy_pages", shader!("copy_pages"), [1, 1, 1]);
pub(super) static EMBED: Stem = Stem::new("embed", shader!("embed"), [2, 4, 2]);
pub(super) static NORM_MATMUL: Stem = Stem::new("norm_matmul", shader!("norm_matmul"), [1, 6, 2]);
pub(super) static ROPE_APPEND: Stem = Stem::new("rope_append", shader!("rope_append"), [2, 6, 1]);
pub(super) static ATTENTION: Stem = Stem::new("attention", shader!("attention"), [1, 5, 1]);
pub(super) static MATMUL_ADD: Stem = Stem::new("matmul_add", shader!("matmul_add"), [1, 4, 2]);
pub(super) static NORM_ADD: Stem = Stem::new("norm_add", shader!("norm_add"), [1, 3, 1]);
pub(super) static NORM_GATE_UP: Stem = Stem::new("norm_gate_up", shader!("norm_gate_up"), [1, 5, 2]);
pub(super) static COMBINE_SAMPLE: Stem = Stem::new("combine_sample", shader!("combine_sample"), [3, 5, 1]);
pub(super) static RECORD: Stem = Stem::new("record", shader!("record"), [1, 7, 1]);

/// All ops.
#[cfg(test)]
pub(super) static STEMS: [&Stem; 10] = [
    &COPY_PAGES,
    &EMBED,
    &NORM_MATMUL,
    &ROPE_APPEND,
    &ATTENTION,
    &MATMUL_ADD,
    &NORM_ADD,
    &NORM_GATE_UP,
    &COMBINE_SAMPLE,
    &RECORD,
];

const COMMON: [&str; 2] = [shader!("common"), shader!("parts/math")];

/// Text that several ops' shaders share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Shared {
    /// Where tokens stand in pages.
    Page,
    /// Eight elements, and their unpacking.
    Octet,
    /// Where weights stand.
    Weights,
    /// The canonical sum of the matrix ops.
    Matmul,
    /// Of ops with one matrix.
    OneMatrix,
    /// One row at a time.
    Rows1,
    /// Four rows for each load of weights.
    Rows4,
    /// Four outputs per group of lanes.
    Outputs4,
    /// Sixteen.
    Outputs16,
    /// Lanes exchange their sums through workgroup memory.
    ExchangePlain,
    /// Lanes exchange their sums by subgroup shuffles.
    ExchangeSubgroup,
    /// What eight lanes give each other.
    Eight,
    /// Through workgroup memory.
    EightPlain,
    /// By subgroup shuffles.
    EightSubgroup,
    /// Octets of a head whose width is a multiple of eight.
    HeadWide,
    /// Octets of any other head.
    HeadNarrow,
    /// A workgroup that shares a row of scores.
    Best,
    /// Rows of logits at multiples of four.
    LogitsWide,
    /// Rows of logits anywhere.
    LogitsNarrow,
    /// Exact sums, and random numbers.
    U64,
    /// Filters by radix selection.
    Select,
}

impl Shared {
    fn source(self) -> &'static str {
        match self {
            Shared::Page => shader!("parts/page"),
            Shared::Octet => shader!("parts/octet"),
            Shared::Weights => shader!("parts/weights"),
            Shared::Matmul => shader!("parts/matmul"),
            Shared::OneMatrix => shader!("parts/one_matrix"),
            Shared::Rows1 => shader!("parts/rows_1"),
            Shared::Rows4 => shader!("parts/rows_4"),
            Shared::Outputs4 => shader!("parts/outputs_4"),
            Shared::Outputs16 => shader!("parts/outputs_16"),
            Shared::ExchangePlain => shader!("parts/exchange_plain"),
            Shared::ExchangeSubgroup => shader!("parts/exchange_subgroup"),
            Shared::Eight => shader!("parts/eight"),
            Shared::EightPlain => shader!("parts/eight_plain"),
            Shared::EightSubgroup => shader!("parts/eight_subgroup"),
            Shared::HeadWide => shader!("parts/head_wide"),
            Shared::HeadNarrow => shader!("parts/head_narrow"),
            Shared::Best => shader!("parts/best"),
            Shared::LogitsWide => shader!("parts/logits_wide"),
            Shared::LogitsNarrow => shader!("parts/logits_narrow"),
            Shared::U64 => shader!("parts/u64"),
            Shared::Select => shader!("parts/select"),
        }
    }
}

/// A `const` of a shader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Constant {
    Flag(bool),
    Number(u32),
}

/// Weights that a shader reads as `first_word(i)` or `second_word(i)`, declared in front of its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Weights {
    /// `first` or `second`.
    pub(super) name: &'static str,
    pub(super) binding: usize,
    pub(super) dtype: Dtype,
    pub(super) form: MatrixForm,
}

impl Weights {
    fn source(&self) -> String {
        let Self { name, binding, dtype, form } = self;
        let (declaration, word) = match form {
            MatrixForm::Buffers => {
                (format!("var<storage, read> {name}_buffer: array<vec4<u32>>"), format!("{name}_buffer[i]"))
            }
            MatrixForm::Images => (
                format!("var {name}_image: texture_storage_2d<rgba32uint, read>"),
                format!("textureLoad({name}_image, vec2<u32>(i % IMAGE_WIDTH, i / IMAGE_WIDTH))"),
            ),
        };
        format!(
            "const {}_DTYPE = {}u;\n@group(0) @binding({binding}) {declaration};\n\
             fn {name}_word(i: u32) -> vec4<u32> {{ return {word}; }}\n",
            name.to_uppercase(),
            *dtype as u32
        )
    }
}

/// One form of an op's shader.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    pub(super) constants: Vec<(&'static str, Constant)>,
    pub(super) weights: Vec<Weights>,
    /// Shared parts, before the op's own source.
    pub(super) parts: Vec<Shared>,
}

impl Variant {
    /// Bindings that are images.
    pub(super) fn images(&self) -> Vec<usize> {
        let images = self.weights.iter().filter(|weights| weights.form == MatrixForm::Images);
        images.map(|weights| weights.binding).collect()
    }

    /// The whole text of the shader module.
    pub(super) fn source(&self, stem: &Stem) -> String {
        let mut source = constants::lines();
        for (name, value) in &self.constants {
            source += &match value {
                Constant::Flag(value) => format!("const {name} = {value};\n"),
                Constant::Number(value) => format!("const {name} = {value}u;\n"),
            };
        }
        self.weights.iter().for_each(|weights| source += &weights.source());
        COMMON.into_iter().chain(self.parts.iter().map(|part| part.source())).for_each(|part| source += part);
        source + stem.source
    }
}

/// Workgroups in each direction of a grid: the default limit, which is what devices are opened with.
const MAX_GRID: u32 = 65_535;

/// A dispatch to be made ready.
pub(super) struct Launch<'a> {
    pub(super) stem: &'static Stem,
    /// Rows of a tile, where the op has tiles.
    pub(super) tile_rows: u32,
    /// The form of the shader, which follows from all else that is here: asked for where the launch is a new one.
    pub(super) variant: &'a dyn Fn() -> Variant,
    /// Outputs and inputs.
    pub(super) buffers: &'a [&'a dyn Bind],
    pub(super) uniforms: &'a [&'a [u8]],
    pub(super) grid: [u32; 3],
}

/// A dispatch ready to be encoded.
pub(super) struct Dispatch {
    pub(super) made: Made,
    pub(super) grid: [u32; 3],
}

/// What a launch has that outlives its step.
#[derive(Clone)]
pub(super) struct Made {
    pub(super) pipeline: ::wgpu::ComputePipeline,
    pub(super) bind_group: ::wgpu::BindGroup,
}

/// What a launch is known by. A step has hundreds, so it is all in place, and small.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    stem: &'static str,
    tile_rows: u32,
    /// Numbers of what is bound, then zeros.
    bound: [u32; 8],
    /// All uniforms, one after the other, then zeros.
    uniforms: [u32; 16],
}

impl Key {
    fn new(launch: &Launch<'_>) -> Self {
        let mut key = Key { stem: launch.stem.name, tile_rows: launch.tile_rows, bound: [0; 8], uniforms: [0; 16] };
        key.bound.iter_mut().zip(launch.buffers).for_each(|(number, buffer)| *number = buffer.number());
        let mut rest: &mut [u8] = bytemuck::cast_slice_mut(&mut key.uniforms);
        for bytes in launch.uniforms {
            let (own, after) = rest.split_at_mut(bytes.len());
            own.copy_from_slice(bytes);
            rest = after;
        }
        key
    }
}

/// Everything made so far. A step of known shape makes no new object of the device.
#[derive(Default)]
pub(super) struct Pipelines {
    layouts: RefCell<HashMap<(&'static str, Vec<usize>), ::wgpu::BindGroupLayout>>,
    pipelines: RefCell<HashMap<(&'static str, Variant), Pipeline>>,
    uniforms: RefCell<HashMap<Vec<u8>, ::wgpu::Buffer>>,
    launches: RefCell<HashMap<Key, Made>>,
}

/// A pipeline and the layout of its bindings.
type Pipeline = (::wgpu::ComputePipeline, ::wgpu::BindGroupLayout);

impl Pipelines {
    pub(super) fn prepare(&self, device: &Device, launch: Launch<'_>) -> Dispatch {
        let Launch { stem, buffers, uniforms, grid, .. } = launch;
        assert_eq!([buffers.len(), uniforms.len()], [stem.outputs + stem.inputs, stem.uniforms], "{}", stem.name);
        assert!(grid.iter().all(|&n| n <= MAX_GRID), "{}: a grid of {grid:?}", stem.name);
        let mut launches = self.launches.borrow_mut();
        let made = launches.entry(Key::new(&launch)).or_insert_with(|| self.make(device, &launch)).clone();
        Dispatch { made, grid }
    }

    fn make(&self, device: &Device, launch: &Launch<'_>) -> Made {
        let stem = launch.stem;
        let mut pipelines = self.pipelines.borrow_mut();
        let (pipeline, layout) = pipelines
            .entry((stem.name, (launch.variant)()))
            .or_insert_with_key(|(_, variant)| self.make_pipeline(device, stem, variant))
            .clone();
        let uniforms: Vec<_> = launch.uniforms.iter().map(|bytes| self.uniform(device, bytes)).collect();
        let uniforms = uniforms.iter().map(|buffer| buffer.as_entire_binding());
        let resources = launch.buffers.iter().map(|buffer| buffer.resource()).chain(uniforms);
        let entries: Vec<_> =
            (0..).zip(resources).map(|(binding, resource)| ::wgpu::BindGroupEntry { binding, resource }).collect();
        let descriptor = ::wgpu::BindGroupDescriptor { label: Some(stem.name), layout: &layout, entries: &entries };
        Made { pipeline, bind_group: device.device.create_bind_group(&descriptor) }
    }

    fn make_pipeline(&self, device: &Device, stem: &Stem, variant: &Variant) -> Pipeline {
        let mut layouts = self.layouts.borrow_mut();
        let layout = layouts.entry((stem.name, variant.images()));
        let bindings = layout.or_insert_with_key(|(_, images)| make_layout(device, stem, images)).clone();
        let label = Some(stem.name);
        let source = ::wgpu::ShaderSource::Wgsl(variant.source(stem).into());
        let module = device.device.create_shader_module(::wgpu::ShaderModuleDescriptor { label, source });
        let layouts = [Some(&bindings)];
        let descriptor = ::wgpu::PipelineLayoutDescriptor { label, bind_group_layouts: &layouts, ..Default::default() };
        let layout = device.device.create_pipeline_layout(&descriptor);
        // Every shader writes its workgroup memory before it reads it.
        let compilation_options =
            ::wgpu::PipelineCompilationOptions { zero_initialize_workgroup_memory: false, ..Default::default() };
        let pipeline = device.device.create_compute_pipeline(&::wgpu::ComputePipelineDescriptor {
            label,
            layout: Some(&layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options,
            cache: None,
        });
        (pipeline, bindings)
    }

    /// Lets go of buffers whose owners have dropped them.
    pub(super) fn forget(&self, dropped: &Dropped) {
        let dropped = dropped.lock().map(|mut list| std::mem::take(&mut *list)).unwrap_or_default();
        if !dropped.is_empty() {
            self.launches.borrow_mut().retain(|key, _| !key.bound.iter().any(|number| dropped.contains(number)));
        }
    }

    fn uniform(&self, device: &Device, bytes: &[u8]) -> ::wgpu::Buffer {
        if let Some(buffer) = self.uniforms.borrow().get(bytes) {
            return buffer.clone();
        }
        let usage = ::wgpu::BufferUsages::UNIFORM | ::wgpu::BufferUsages::COPY_DST;
        let size = bytes.len() as u64;
        let descriptor = ::wgpu::BufferDescriptor { label: Some("uniform"), size, usage, mapped_at_creation: false };
        let buffer = device.device.create_buffer(&descriptor);
        device.queue.write_buffer(&buffer, 0, bytes);
        self.uniforms.borrow_mut().insert(bytes.to_vec(), buffer.clone());
        buffer
    }
}

fn make_layout(device: &Device, stem: &Stem, images: &[usize]) -> ::wgpu::BindGroupLayout {
    let buffer = |ty| ::wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None };
    let kind = |index: usize| {
        if images.contains(&index) {
            ::wgpu::BindingType::StorageTexture {
                access: ::wgpu::StorageTextureAccess::ReadOnly,
                format: ::wgpu::TextureFormat::Rgba32Uint,
                view_dimension: ::wgpu::TextureViewDimension::D2,
            }
        } else if index >= stem.outputs + stem.inputs {
            buffer(::wgpu::BufferBindingType::Uniform)
        } else {
            buffer(::wgpu::BufferBindingType::Storage { read_only: index >= stem.outputs })
        }
    };
    let entry = |index: usize| ::wgpu::BindGroupLayoutEntry {
        binding: index as u32,
        visibility: ::wgpu::ShaderStages::COMPUTE,
        ty: kind(index),
        count: None,
    };
    let entries: Vec<_> = (0..stem.outputs + stem.inputs + stem.uniforms).map(entry).collect();
    let descriptor = ::wgpu::BindGroupLayoutDescriptor { label: Some(stem.name), entries: &entries };
    device.device.create_bind_group_layout(&descriptor)
}
