//! Every form of every shader is valid WGSL with the bindings that its table line says, and its structs have the sizes
//! and offsets of the Rust ones. Needs no device.

use super::MatrixForm;
use super::memory::Part;
use super::ops::{GATE_UP_OUTPUTS, MATMUL_OUTPUTS, TILE_ROWS};
use super::pipelines::*;
use crate::backend::Dtype;
use crate::backend::layouts::{Layout, layout, layouts};
use ::wgpu::naga::valid::{Capabilities, ValidationFlags, Validator};
use ::wgpu::naga::{AddressSpace, Expression, Literal, Module, StorageAccess, TypeInner, front::wgsl};

/// What shaders mirror; pairs of pages are vectors there.
fn all_layouts() -> Vec<Layout> {
    let part = layout!(Part: first, n_rows, offset, stride, second_offset, second_stride);
    layouts().into_iter().filter(|layout| layout.name != "PageCopy").chain([part]).collect()
}

const FORMS: [MatrixForm; 2] = [MatrixForm::Buffers, MatrixForm::Images];
/// A type beside each: gate and up may differ.
const SECOND_DTYPES: [Dtype; 3] = [Dtype::F16, Dtype::Bf16, Dtype::F32];

type Constants = Vec<(&'static str, Constant)>;

/// All settings of `names`, each after `constants`.
fn flags(constants: Constants, names: &[&'static str]) -> Vec<Constants> {
    let mut forms = vec![constants];
    for name in names {
        let with = |value: bool| forms.iter().map(move |form| [&form[..], &[(*name, Constant::Flag(value))]].concat());
        forms = with(false).chain(with(true)).collect();
    }
    forms
}

/// Every form of an op's shader.
fn variants(stem: &Stem) -> Vec<Variant> {
    let mut variants = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let kv_dtype = ("KV_DTYPE", Constant::Number(dtype as u32));
        match stem.name {
            "embed" => variants.extend(FORMS.map(|form| Variant {
                constants: vec![("N_VOCAB", Constant::Number(5))],
                weights: vec![Weights { name: "first", binding: 2, dtype, form }],
                parts: vec![Shared::Octet, Shared::Weights],
            })),
            "rope_append" => {
                for constants in flags(vec![kv_dtype], &["HAS_ROTARY", "HAS_Q_GAIN", "HAS_K_GAIN"]) {
                    variants.push(Variant { constants, parts: vec![Shared::Page], ..Variant::default() });
                }
            }
            "attention" => {
                for (head, widths) in [(Shared::HeadWide, [8, 80, 256]), (Shared::HeadNarrow, [2, 100, 254])] {
                    for (width, exchange) in
                        widths.into_iter().flat_map(|n| [(n, Shared::EightPlain), (n, Shared::EightSubgroup)])
                    {
                        let constants = vec![kv_dtype, ("HEAD_DIM", Constant::Number(width))];
                        let parts = vec![Shared::Octet, Shared::Page, Shared::Eight, exchange, head];
                        variants.push(Variant { constants, parts, ..Variant::default() });
                    }
                }
            }
            "norm_matmul" | "matmul_add" | "norm_gate_up" => variants.extend(matmul_variants(stem.name, dtype)),
            "combine_sample" => {
                for logits in [Shared::LogitsWide, Shared::LogitsNarrow] {
                    let parts = vec![logits, Shared::Best, Shared::U64, Shared::Select];
                    variants.push(Variant { parts, ..Variant::default() });
                }
            }
            "record" => variants.push(Variant { parts: vec![Shared::Best], ..Variant::default() }),
            _ => variants.push(Variant::default()),
        }
    }
    variants
}

fn matmul_variants(name: &str, dtype: Dtype) -> Vec<Variant> {
    let mut variants = Vec::new();
    let has_second = name == "norm_gate_up";
    let constants = vec![("HAS_SECOND", Constant::Flag(has_second))];
    for constants in flags(constants, &["HAS_GAIN", "HAS_BIAS", "HAS_GATHER"]) {
        for (form, outputs) in FORMS.into_iter().zip([Shared::Outputs4, Shared::Outputs16]) {
            for rows in [Shared::Rows1, Shared::Rows4] {
                for exchange in [Shared::ExchangePlain, Shared::ExchangeSubgroup] {
                    let mut weights = vec![Weights { name: "first", binding: 1, dtype, form }];
                    let mut parts = vec![Shared::Octet, Shared::Weights, rows, outputs, exchange, Shared::Matmul];
                    if has_second {
                        weights.push(Weights {
                            name: "second",
                            binding: 2,
                            dtype: SECOND_DTYPES[dtype as usize],
                            form,
                        });
                    } else {
                        parts.push(Shared::OneMatrix);
                    }
                    variants.push(Variant { constants: constants.clone(), weights, parts });
                }
            }
        }
    }
    variants
}

fn parsed(stem: &Stem, variant: &Variant) -> Module {
    let source = variant.source(stem);
    let module = wgsl::parse_str(&source)
        .unwrap_or_else(|error| panic!("{} {:?}: {}", stem.name, variant, error.emit_to_string(&source)));
    let capabilities = Capabilities::SUBGROUP | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    validator
        .subgroup_stages(::wgpu::naga::valid::ShaderStages::COMPUTE)
        .subgroup_operations(::wgpu::naga::valid::SubgroupOperationSet::all());
    let checked = validator.validate(&module);
    checked.unwrap_or_else(|error| panic!("{} {:?}: {}", stem.name, variant, error.emit_to_string(&source)));
    module
}

#[test]
fn every_form_is_valid_and_binds_what_its_line_says() {
    for stem in STEMS {
        for variant in variants(stem) {
            let (module, images) = (parsed(stem, &variant), variant.images());
            let mut bindings: Vec<_> = module
                .global_variables
                .iter()
                .filter_map(|(_, global)| Some((global.binding?.binding as usize, global.space)))
                .collect();
            bindings.sort_by_key(|(index, _)| *index);
            let storage = |access| AddressSpace::Storage { access };
            let wanted = [
                vec![storage(StorageAccess::LOAD | StorageAccess::STORE); stem.outputs],
                vec![storage(StorageAccess::LOAD); stem.inputs],
                vec![AddressSpace::Uniform; stem.uniforms],
            ];
            let kind =
                |(binding, space)| (binding, if images.contains(&binding) { AddressSpace::Handle } else { space });
            let wanted: Vec<_> = wanted.concat().into_iter().enumerate().map(kind).collect();
            assert_eq!(bindings, wanted, "{}", stem.name);
            assert!(stem.outputs + stem.inputs <= 8, "{} binds more than 8 storage buffers", stem.name);
        }
    }
}

/// The value of a `const` of a module.
fn constant(module: &Module, name: &str) -> u32 {
    let found = module.constants.iter().find(|(_, constant)| constant.name.as_deref() == Some(name));
    let (_, constant) = found.unwrap_or_else(|| panic!("no const {name}"));
    match module.global_expressions[constant.init] {
        Expression::Literal(Literal::U32(value)) => value,
        ref other => panic!("{name} is {other:?}"),
    }
}

#[test]
fn grids_of_matrix_ops_are_cut_as_their_shaders_are() {
    for (stem, outputs) in
        [(&NORM_MATMUL, MATMUL_OUTPUTS), (&MATMUL_ADD, MATMUL_OUTPUTS), (&NORM_GATE_UP, GATE_UP_OUTPUTS)]
    {
        for variant in variants(stem) {
            let module = parsed(stem, &variant);
            let [threads, lanes, of_group, rows] =
                ["N_THREADS", "N_LANES_OF_K", "GROUP_OUTPUTS", "N_ROWS"].map(|name| constant(&module, name));
            assert_eq!(threads / lanes * of_group, outputs, "{}: outputs of a workgroup", stem.name);
            let tile = if variant.parts.contains(&Shared::Rows1) { 1 } else { TILE_ROWS };
            assert_eq!(rows, tile, "{}: rows of a tile", stem.name);
        }
    }
}

#[test]
fn structs_are_laid_out_as_in_rust() {
    let mut seen = Vec::new();
    for stem in STEMS {
        let module = parsed(stem, &variants(stem)[0]);
        for Layout { name, bytes, fields } in all_layouts() {
            let named = |(_, ty): &(_, &::wgpu::naga::Type)| ty.name.as_deref() == Some(name);
            let Some((_, ty)) = module.types.iter().find(named) else { continue };
            let TypeInner::Struct { members, span } = &ty.inner else { panic!("{name} is not a struct") };
            seen.push(name);
            assert_eq!(*span as usize, bytes, "size of {name}");
            for (field, offset) in fields {
                let member = members.iter().find(|member| member.name.as_deref() == Some(field));
                // A uniform's array would have a stride of 16, so shaders write it out; padding has no name to agree on.
                let Some(member) = member else {
                    assert!(["reserved", "strides"].contains(&field), "{name} has no {field}");
                    continue;
                };
                assert_eq!(member.offset as usize, offset, "{name}.{field}");
            }
        }
    }
    for Layout { name, .. } in all_layouts() {
        assert!(seen.contains(&name), "no shader has {name}");
    }
}
