//! config.json and generation_config.json: what is refused by name, and what both spellings come to.

use super::model::ModelDir;
use super::{Case, Expect, case, open, refuse};
use Expect::{Field, File};
use proxytune::checkpoint::{Dtype, Family, ModelConfig, Rope, RopeScaling};
use serde_json::{Value, json};

const FILE: &str = "config.json";

/// `field` of config.json has this value.
fn field(field: &'static str, value: Value, part: &'static str) -> Case {
    let set = move |model: &ModelDir| model.set(FILE, &format!("/{field}"), value.clone());
    case(field, set, Field(FILE, field, part))
}

/// A Qwen2 whose `name` has this value; the error names `at`.
fn qwen2(name: &'static str, value: Value, at: &'static str, part: &'static str) -> Case {
    let set = move |model: &ModelDir| {
        model.set(FILE, "/architectures", json!(["Qwen2ForCausalLM"]));
        model.set(FILE, "/model_type", json!("qwen2"));
        model.set(FILE, &format!("/{name}"), value.clone());
    };
    case(name, set, Field(FILE, at, part))
}

fn text(label: &'static str, text: impl Into<Vec<u8>>, part: &'static str) -> Case {
    let text = text.into();
    case(label, move |model| model.write(FILE, &text), File(FILE, part))
}

#[test]
fn files_that_are_no_objects() {
    let nested = |n: usize| format!("{{\"a\":{}{}}}", "[".repeat(n), "]".repeat(n));
    refuse(
        vec![
            text("empty", "", "EOF while parsing"),
            text("a list", "[]", "not a JSON object"),
            text("a comma too many", "{\"a\":1,}", "trailing comma at line 1 column 8"),
            text("Python's NaN", "{\"rms_norm_eps\": NaN}", "expected value at line 1 column 18"),
            text("not UTF-8", b"{\"a\":\"\xFF\"}".to_vec(), "invalid unicode"),
            text("10^5 deep", nested(100_000), "recursion limit exceeded"),
            text("too long", vec![b' '; (16 << 20) + 1], "16777217 bytes, the limit is 16777216"),
            case(
                "generation_config.json",
                |model| model.set("generation_config.json", "/eos_token_id", json!([1, -2])),
                Field("generation_config.json", "eos_token_id", "must be a token id or a list of them"),
            ),
            case(
                "a temperature in words",
                |model| model.set("generation_config.json", "/temperature", json!("warm")),
                Field("generation_config.json", "temperature", "\"warm\", must be a finite number"),
            ),
        ],
        open,
    );
}

#[test]
fn sizes_out_of_range() {
    let mut cases = Vec::new();
    let counts = [
        ("num_hidden_layers", 1_025, "must be a whole number from 1 to 1024"),
        ("hidden_size", 65_544, "from 1 to 65536"),
        ("num_attention_heads", 1_025, "from 1 to 1024"),
        ("num_key_value_heads", 1_025, "from 1 to 1024"),
        ("intermediate_size", 524_296, "from 1 to 524288"),
        ("vocab_size", 262_209, "from 1 to 262208"),
        ("max_position_embeddings", (1 << 24) + 1, "from 1 to 16777216"),
        ("head_dim", 264, "from 1 to 256"),
    ];
    for (name, too_large, part) in counts {
        for value in
            [json!(0), json!(-1), json!(1.5), json!("8"), json!([8]), json!(u64::MAX), json!(1e300), json!(too_large)]
        {
            cases.push(field(name, value, part));
        }
    }
    for name in ["num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size"] {
        cases.push(field(name, Value::Null, "missing, must be 1 to"));
    }
    cases.extend([
        field("hidden_size", json!(20), "20, must be a multiple of 8"),
        field("intermediate_size", json!(20), "20, must be a multiple of 8"),
        field("head_dim", json!(12), "12, must be a multiple of 8 up to 256"),
        field("num_attention_heads", json!(3), "3 does not divide hidden_size 16, and there is no head_dim"),
        field("num_key_value_heads", json!(3), "3 does not divide the 2 attention heads"),
        // 16 / 4 = 4 is no multiple of 8.
        case(
            "head_dim by division",
            |m| m.set(FILE, "/num_attention_heads", json!(4)),
            Field(FILE, "head_dim", "4, must be a multiple of 8"),
        ),
    ]);
    refuse(cases, open);
}

#[test]
fn numbers_that_would_break_the_arithmetic() {
    let rope = |fields: Value| move |model: &ModelDir| model.set(FILE, "/rope_scaling", fields.clone());
    let llama3 = |change: &[(&str, Value)]| {
        let mut fields = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
        change.iter().for_each(|(name, value)| fields[*name] = value.clone());
        rope(fields)
    };
    let eps = |value| field("rms_norm_eps", value, "above 0");
    let theta = |value| field("rope_theta", value, "must be from 1 to 1e15");
    refuse(
        vec![
            eps(json!(0)),
            eps(json!(0.0)),
            eps(json!(-1e-6)),
            eps(json!(1)),
            // A subnormal f32.
            eps(json!(1e-39)),
            field("rms_norm_eps", json!("1e-6"), "must be a finite number"),
            theta(json!(0)),
            theta(json!(-10_000.0)),
            theta(json!(0.999)),
            theta(json!(1e16)),
            field("rope_theta", json!(true), "true, must be a finite number"),
            field("rope_scaling", json!("linear"), "must be an object"),
            case(
                "theta inside",
                rope(json!({"rope_theta": 0})),
                Field(FILE, "rope_scaling.rope_theta", "from 1 to 1e15"),
            ),
            case(
                "an unknown kind",
                rope(json!({"type": "dynamic", "factor": 2})),
                Field(
                    FILE,
                    "rope_scaling.type",
                    "\"dynamic\" is not supported; accepted are default, linear, llama3 and yarn",
                ),
            ),
            case(
                "partial",
                rope(json!({"partial_rotary_factor": 0.5})),
                Field(FILE, "rope_scaling.partial_rotary_factor", "not supported"),
            ),
            case(
                "no factor",
                llama3(&[("factor", Value::Null)]),
                Field(FILE, "rope_scaling.factor", "missing, must be above 0"),
            ),
            case("factor 0", llama3(&[("factor", json!(0))]), Field(FILE, "rope_scaling.factor", "above 0")),
            case("factor below 1", llama3(&[("factor", json!(0.5))]), Field(FILE, "rope_scaling.factor", "at least 1")),
            case(
                "no low",
                llama3(&[("low_freq_factor", Value::Null)]),
                Field(FILE, "rope_scaling.low_freq_factor", "missing"),
            ),
            case(
                "low = high",
                llama3(&[("low_freq_factor", json!(4))]),
                Field(FILE, "rope_scaling.high_freq_factor", "above low_freq_factor 4"),
            ),
            // Different doubles, one f32: their difference is a divisor.
            case(
                "low = high in f32",
                llama3(&[("low_freq_factor", json!(3.999_999_999))]),
                Field(FILE, "rope_scaling.high_freq_factor", "must be above"),
            ),
            case(
                "original 0",
                llama3(&[("original_max_position_embeddings", json!(0))]),
                Field(FILE, "rope_scaling.original_max_position_embeddings", "from 1"),
            ),
        ],
        open,
    );
}

#[test]
fn what_the_graph_does_not_build() {
    let quantized = json!({"quant_method": "gptq", "bits": 4});
    refuse(
        vec![
            field(
                "architectures",
                json!(["GPT2LMHeadModel"]),
                "\"GPT2LMHeadModel\" is not supported; accepted are llama, qwen2, qwen3,",
            ),
            field("architectures", json!("LlamaForCausalLM"), "must be a list of one string"),
            field("architectures", json!([]), "must be a list of one string"),
            field("architectures", json!(["LlamaForCausalLM", "x"]), "must be a list of one string"),
            field("model_type", json!("gpt2"), "\"gpt2\" is not supported"),
            field("model_type", json!("gemma3"), "does not fit the architecture LlamaForCausalLM"),
            field("model_type", json!("qwen2"), "does not fit the architecture LlamaForCausalLM"),
            field("model_type", json!(1), "must be a string"),
            case(
                "no family",
                |m| {
                    m.set(FILE, "/architectures", Value::Null);
                    m.set(FILE, "/model_type", Value::Null);
                },
                Field(FILE, "model_type", "missing; accepted are llama"),
            ),
            field("quantization_config", quantized, "\"gptq\" weights are not read"),
            field("quantization_config", json!({}), "\"unknown\" weights are not read"),
            field("mlp_bias", json!(true), "true is not supported"),
            field("mlp_bias", json!("yes"), "must be true or false"),
            field("pretraining_tp", json!(2), "more than 1"),
            field("is_encoder_decoder", json!(true), "not supported"),
            field("partial_rotary_factor", json!(0.5), "other than 1"),
            field("hidden_act", json!("gelu"), "\"gelu\" is not supported, only silu"),
            field("tie_word_embeddings", json!(1), "1, must be true or false"),
            field("eos_token_id", json!("</s>"), "must be a token id"),
            field("eos_token_id", json!(1u64 << 32), "must be a token id"),
            field("bos_token_id", json!([1, "x"]), "must be a token id"),
            qwen2("attention_bias", json!(false), "attention_bias", "false is not supported for qwen2"),
        ],
        open,
    );
}

pub(super) fn config_with(change: impl FnOnce(&ModelDir)) -> ModelConfig {
    let model = ModelDir::llama();
    change(&model);
    open(&model).expect("a right model").config
}

/// The first layer's.
pub(super) fn rope_of(config: &ModelConfig) -> Rope {
    config.layers[0].rope.expect("it has rotary positions")
}

#[test]
fn both_spellings_are_one_model() {
    let llama3 =
        json!({"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
    let with = |fields: &[(&str, Value)]| {
        let mut rope = llama3.clone();
        fields.iter().for_each(|(name, value)| rope[*name] = value.clone());
        rope
    };
    let old = config_with(|m| {
        m.set(FILE, "/rope_scaling", with(&[("type", json!("llama3"))]));
        m.set(FILE, "/rope_theta", json!(500_000));
        m.set(FILE, "/torch_dtype", json!("bfloat16"));
    });
    let new = config_with(|m| {
        m.set(FILE, "/rope_theta", Value::Null);
        m.set(FILE, "/torch_dtype", Value::Null);
        m.set(FILE, "/rope_parameters", with(&[("rope_type", json!("llama3")), ("rope_theta", json!(500_000.0))]));
        m.set(FILE, "/dtype", json!("torch.bfloat16"));
    });
    assert_eq!(old, new);
    assert_eq!((rope_of(&old).theta, old.dtype), (500_000.0, Some(Dtype::Bf16)));
    let scaling =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 64 };
    assert_eq!(rope_of(&old).scaling, scaling);

    let inside_wins = config_with(|m| m.set(FILE, "/rope_scaling", json!({"rope_theta": 2.0})));
    assert_eq!(rope_of(&inside_wins), Rope { theta: 2.0, scaling: RopeScaling::None });
    let unsaid = config_with(|m| m.set(FILE, "/rope_theta", Value::Null));
    assert_eq!(rope_of(&unsaid).theta, 10_000.0, "transformers' default");
    let own_length = config_with(|m| {
        m.set(
            FILE,
            "/rope_scaling",
            with(&[("type", json!("llama3")), ("original_max_position_embeddings", Value::Null)]),
        )
    });
    assert!(matches!(rope_of(&own_length).scaling, RopeScaling::Llama3 { original_max_positions: 128, .. }));
}

#[test]
fn families_and_defaults() {
    let llama = config_with(|_| ());
    assert_eq!((llama.family, llama.qkv_bias, llama.o_bias, llama.tied), (Family::Llama, false, false, false));
    assert_eq!((llama.head_dim, llama.group_size(), llama.dtype), (8, 2, Some(Dtype::F32)));
    let qwen2 = open(&ModelDir::qwen2()).expect("a right model").config;
    assert_eq!((qwen2.family, qwen2.qkv_bias, qwen2.o_bias, qwen2.tied), (Family::Qwen2, true, false, true));

    let by_type = config_with(|m| m.set(FILE, "/architectures", Value::Null));
    let by_architecture = config_with(|m| m.set(FILE, "/model_type", Value::Null));
    assert_eq!((&by_type, &by_architecture), (&llama, &llama));
    let null_is_absent = config_with(|m| m.edit(FILE, |config| config["head_dim"] = Value::Null));
    assert_eq!(null_is_absent, llama);
    let none = config_with(|m| m.set(FILE, "/eos_token_id", json!(-1)));
    assert_eq!(none.eos_ids, [0u32; 0], "old exports say -1 for none");
}

#[test]
fn remote_code_and_odd_types_are_said() {
    let warned = config_with(|m| {
        m.set(FILE, "/auto_map", json!({"AutoModel": "modeling.Evil"}));
        m.set(FILE, "/torch_dtype", json!("float8_e4m3fn"));
    });
    assert_eq!(warned.warnings.len(), 2, "{:?}", warned.warnings);
    assert!(warned.warnings[0].contains("never run"), "{:?}", warned.warnings);
    assert!(warned.warnings[1].contains("float8_e4m3fn"), "{:?}", warned.warnings);
}

/// Against `1 / theta ** (i / d)` and transformers' `_compute_llama3_parameters`, in f64; both round to f32 at each of at
/// most eight operations, so 1e-6 of the value bounds the difference.
#[test]
fn frequencies_are_those_of_the_formulas() {
    let rope = rope_of(&config_with(|m| {
        m.set(
            FILE,
            "/rope_scaling",
            json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
        );
        m.set(FILE, "/rope_theta", json!(500_000.0));
    }));
    let (mut kept, mut ramped, mut divided) = (0, 0, 0);
    for (i, got) in rope.inverse_frequencies(128).into_iter().enumerate() {
        let plain = 500_000f64.powf(-(2.0 * i as f64) / 128.0);
        let turns = 8192.0 * plain / (2.0 * std::f64::consts::PI);
        let smooth = ((turns - 1.0) / 3.0).clamp(0.0, 1.0);
        let want = (1.0 - smooth) * plain / 8.0 + smooth * plain;
        assert!((got - want).abs() <= 1e-6 * want, "frequency {i}: {got}, {want}");
        *if smooth == 1.0 {
            &mut kept
        } else if smooth == 0.0 {
            &mut divided
        } else {
            &mut ramped
        } += 1;
    }
    assert!(kept > 0 && ramped > 0 && divided > 0, "{kept}, {ramped}, {divided}: each branch runs");
}
