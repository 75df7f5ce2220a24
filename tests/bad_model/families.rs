//! What each family reads of config.json, and what of it is refused by name.

use super::config::{config_with, rope_of};
use super::model::{ModelDir, Tensor as T, tensors};
use super::{Case, Expect, case, open, refuse};
use Expect::{Field, Tensor};
use proxytune::checkpoint::{
    Activation, Checkpoint, Family, ModelConfig, Norms, QGrowth, QkNorm, Rope, RopeScaling, Source,
};
use serde_json::{Value, json};

const FILE: &str = "config.json";
const FAMILIES: [(&str, &str); 10] = [
    ("llama", "LlamaForCausalLM"),
    ("qwen2", "Qwen2ForCausalLM"),
    ("qwen3", "Qwen3ForCausalLM"),
    ("olmo2", "Olmo2ForCausalLM"),
    ("mistral", "MistralForCausalLM"),
    ("ministral3", "Ministral3ForCausalLM"),
    ("smollm3", "SmolLM3ForCausalLM"),
    ("granite", "GraniteForCausalLM"),
    ("gemma2", "Gemma2ForCausalLM"),
    ("gemma3_text", "Gemma3ForCausalLM"),
];

/// Makes config.json one of `family`, with these fields; null is kept.
fn become_family(model: &ModelDir, family: &str, fields: &Value) {
    let architecture = FAMILIES.iter().find(|(name, _)| *name == family).expect("a family of the list").1;
    model.edit(FILE, |config| {
        config["model_type"] = json!(family);
        config["architectures"] = json!([architecture]);
        for (name, value) in fields.as_object().expect("an object") {
            config[name] = value.clone();
        }
    });
}

/// A model of `family` with these fields; the error names `at`.
fn of(family: &'static str, fields: Value, at: &'static str, part: &'static str) -> Case {
    case(at, move |model| become_family(model, family, &fields), Field(FILE, at, part))
}

/// A model that also sees, as its whole config.json says.
fn seeing(config: Value, at: &'static str, part: &'static str) -> Case {
    case(at, move |model| model.write(FILE, config.to_string()), Field(FILE, at, part))
}

/// The configuration alone, whatever the tensors are.
fn read(family: &str, fields: Value) -> ModelConfig {
    let model = ModelDir::llama();
    become_family(&model, family, &fields);
    ModelConfig::read(&Source::directory(model.path())).expect("a right configuration")
}

#[test]
fn windows_that_contradict() {
    let sliding = json!(["sliding_attention"]);
    refuse(
        vec![
            of("qwen2", json!({"layer_types": sliding}), "layer_types", "no sliding_window is in use"),
            of("smollm3", json!({"layer_types": sliding, "sliding_window": 64}), "layer_types", "no sliding_window"),
            of("mistral", json!({"layer_types": sliding, "sliding_window": null}), "layer_types", "no sliding_window"),
            of("gemma2", json!({"sliding_window": null}), "sliding_window", "null, but layers of this family slide"),
            of("qwen3", json!({"layer_types": []}), "layer_types", "for each of 1 layers"),
            of("gemma2", json!({"layer_types": ["full_attention", "full_attention"]}), "layer_types", "for each of 1"),
            of(
                "gemma3_text",
                json!({"layer_types": ["chunked_attention"]}),
                "layer_types",
                "must be full_attention or",
            ),
            of("qwen2", json!({"layer_types": "full_attention"}), "layer_types", "must be full_attention or"),
            of("mistral", json!({"sliding_window": 0}), "sliding_window", "0, must be a whole number from 1"),
            of("mistral", json!({"sliding_window": -1}), "sliding_window", "must be a whole number from 1"),
            of("ministral3", json!({"sliding_window": 1u64 << 32}), "sliding_window", "must be a whole number from 1"),
            of("qwen2", json!({"use_sliding_window": 1}), "use_sliding_window", "must be true or false"),
            of(
                "qwen2",
                json!({"use_sliding_window": true, "max_window_layers": -1}),
                "max_window_layers",
                "-1, must be a whole number",
            ),
            of("gemma3_text", json!({"sliding_window_pattern": 0}), "sliding_window_pattern", "from 1"),
            of("smollm3", json!({"no_rope_layers": []}), "no_rope_layers", "0 and 1 for each of 1 layers"),
            of("smollm3", json!({"no_rope_layers": [2]}), "no_rope_layers", "0 and 1"),
            of("smollm3", json!({"no_rope_layers": 1}), "no_rope_layers", "0 and 1"),
            of("smollm3", json!({"no_rope_layer_interval": 0}), "no_rope_layer_interval", "from 1"),
        ],
        open,
    );
}

#[test]
fn factors_that_would_break_the_arithmetic() {
    let mut cases = Vec::new();
    let positive = [
        ("granite", "embedding_multiplier"),
        ("granite", "attention_multiplier"),
        ("granite", "residual_multiplier"),
        ("granite", "logits_scaling"),
        ("gemma2", "attn_logit_softcapping"),
        ("gemma2", "final_logit_softcapping"),
        ("gemma2", "query_pre_attn_scalar"),
        ("gemma3_text", "final_logit_softcapping"),
        ("gemma3_text", "query_pre_attn_scalar"),
    ];
    for (family, name) in positive {
        for (value, part) in [
            (json!(0), "must be above 0"),
            (json!(-1.0), "must be above 0"),
            (json!("1"), "must be a finite number"),
            (json!(1e7), "must be from 0.000001 to 1000000"),
            (json!(1e-40), "must be from 0.000001"),
        ] {
            cases.push(of(family, json!({name: value}), name, part));
        }
    }
    for family in ["gemma2", "gemma3_text"] {
        cases.push(of(family, json!({"hidden_activation": "gelu"}), "hidden_activation", "\"gelu\" is not supported"));
        cases.push(of(
            family,
            json!({"use_bidirectional_attention": true}),
            "use_bidirectional_attention",
            "not supported",
        ));
    }
    refuse(cases, open);
}

#[test]
fn ropes_that_contradict() {
    let mut cases = Vec::new();
    let yarn = |change: Value| {
        let mut rope = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32});
        change.as_object().expect("an object").iter().for_each(|(name, value)| rope[name] = value.clone());
        json!({"rope_parameters": rope})
    };
    let of_yarn = [
        (json!({"factor": null}), "rope_parameters.factor", "missing, must be above 0"),
        (json!({"factor": 0.5}), "rope_parameters.factor", "at least 1"),
        (json!({"factor": 1e7}), "rope_parameters.factor", "at most 1e6"),
        (json!({"beta_fast": 0.5}), "rope_parameters.beta_fast", "0.5, must be from beta_slow, 1, to 1e6"),
        (json!({"beta_slow": -1}), "rope_parameters.beta_fast", "-1, to 1e6, and beta_slow at least 0.001"),
        (json!({"beta_slow": 1e-300, "beta_fast": 1e-300}), "rope_parameters.beta_fast", "at least 0.001"),
        (json!({"beta_fast": 1e300}), "rope_parameters.beta_fast", "must be from beta_slow, 1, to 1e6"),
        (json!({"beta_slow": "1"}), "rope_parameters.beta_slow", "must be a finite number"),
        (json!({"attention_factor": 0.0}), "rope_parameters.attention_factor", "above 0"),
        (json!({"attention_factor": 1e4}), "rope_parameters.attention_factor", "comes to 10000, must be from 0.001"),
        (json!({"mscale": 1.0, "mscale_all_dim": -100.0}), "rope_parameters.attention_factor", "must be from 0.001"),
        (json!({"truncate": "no"}), "rope_parameters.truncate", "must be true or false"),
        (json!({"rope_theta": 1.0}), "rope_parameters.rope_theta", "must be above 1 for yarn"),
        (json!({"original_max_position_embeddings": 0}), "rope_parameters.original_max_position_embeddings", "from 1"),
    ];
    for (change, at, part) in of_yarn {
        cases.push(of("llama", yarn(change), at, part));
    }
    let kinds = json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}});
    let flat = json!({"rope_parameters": {"rope_type": "linear", "factor": 8.0}});
    let both = json!({"rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "rope_parameters": {"full_attention": {"rope_type": "default"}}});
    let no_theta = json!({"rope_parameters": {"sliding_attention": {"rope_theta": 0}}});
    let linear = json!({"rope_scaling": {"rope_type": "linear"}});
    let default = json!({"rope_parameters": {"rope_type": "default", "llama_4_scaling_beta": 0.1}});
    cases.extend([
        of("llama", linear, "rope_scaling.factor", "missing"),
        of("qwen2", kinds, "rope_parameters.full_attention", "one kind of rotary positions"),
        of("gemma3_text", flat, "rope_parameters", "must hold sliding_attention and full_attention"),
        of("gemma3_text", both, "rope_scaling", "contradicts rope_parameters.full_attention"),
        of("gemma3_text", no_theta, "rope_parameters.sliding_attention.rope_theta", "from 1 to 1e15"),
        of("gemma3_text", json!({"rope_local_base_freq": 0}), "rope_local_base_freq", "from 1 to 1e15"),
        of("ministral3", json!({}), "rope_parameters", "missing, llama_4_scaling_beta is needed"),
        of("ministral3", yarn(json!({})), "rope_parameters.llama_4_scaling_beta", "missing, must be from 0"),
        of("ministral3", yarn(json!({"llama_4_scaling_beta": -0.1})), "rope_parameters.llama_4_scaling_beta", "from 0"),
        of("ministral3", default, "rope_parameters.original_max_position_embeddings", "missing"),
    ]);
    refuse(cases, open);
}

#[test]
fn text_parts_that_do_not_fit() {
    let gemma3 = |text: Value| json!({"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": text});
    let quantized = json!({"model_type": "gemma3_text", "quantization_config": {"quant_method": "fp8"}});
    refuse(
        vec![
            seeing(gemma3(Value::Null), "text_config", "missing, gemma3 needs it"),
            seeing(gemma3(json!("gemma3_text")), "text_config", "must be an object"),
            seeing(gemma3(json!({"model_type": "gpt2"})), "text_config.model_type", "\"gpt2\" is not supported"),
            seeing(gemma3(json!({"model_type": "mistral"})), "text_config.model_type", "does not fit the model_type"),
            seeing(gemma3(json!({"model_type": "gemma3"})), "text_config.model_type", "does not fit the model_type"),
            seeing(gemma3(json!({})), "text_config.num_hidden_layers", "missing, must be 1 to"),
            seeing(gemma3(quantized), "text_config.quantization_config", "\"fp8\" weights are not read"),
            seeing(
                json!({"model_type": "mistral3", "text_config": {"model_type": "llama"}}),
                "text_config.model_type",
                "does not fit the model_type \"mistral3\"",
            ),
            seeing(
                json!({"model_type": "mistral3", "architectures": ["Gemma3ForConditionalGeneration"]}),
                "model_type",
                "does not fit the architecture Gemma3ForConditionalGeneration",
            ),
        ],
        open,
    );
}

/// One family said, the tensors of another: the first differences are listed, whatever code the file names.
#[test]
fn another_familys_tensors() {
    const Q_NORM: &str = "model.layers.0.self_attn.q_norm.weight";
    let remote = json!({"auto_map": {"AutoModelForCausalLM": "modeling_evil.EvilForCausalLM"}, "head_dim": 8});
    let says = |family: &'static str, tensor: &'static str, part: &'static str| {
        let remote = remote.clone();
        case(family, move |model| become_family(model, family, &remote), Tensor("", tensor, part))
    };
    let biased = |family: &'static str, tensor: &'static str, part: &'static str| {
        let breakage = move |model: &ModelDir| {
            become_family(model, family, &json!({"head_dim": 8}));
            model.set_tensors(&tensors(true));
        };
        case(family, breakage, Tensor("", tensor, part))
    };
    refuse(
        vec![
            says(
                "qwen2",
                "model.layers.0.self_attn.q_proj.bias",
                "missing, shape [16] is needed\n  \"model.layers.0.self_attn.k",
            ),
            says(
                "qwen3",
                Q_NORM,
                "missing, shape [8] is needed\n  \"model.layers.0.self_attn.k_norm.weight\": missing",
            ),
            says("olmo2", Q_NORM, "missing, shape [16] is needed"),
            says("olmo2", Q_NORM, "\"model.layers.0.post_feedforward_layernorm.weight\": missing"),
            says("olmo2", Q_NORM, "\"model.layers.0.input_layernorm.weight\": config.json does not ask for it"),
            says("gemma2", "model.layers.0.pre_feedforward_layernorm.weight", "missing, shape [16] is needed"),
            says("gemma3_text", Q_NORM, "missing, shape [8] is needed"),
            biased("mistral", "lm_head.weight", "q_proj.bias\": config.json does not ask for it"),
            biased("granite", "lm_head.weight", "q_proj.bias\": config.json does not ask for it"),
        ],
        open,
    );
}

#[test]
fn defaults_are_those_of_transformers() {
    let unsaid = json!({"rms_norm_eps": null, "max_position_embeddings": null, "tie_word_embeddings": null,
        "num_attention_heads": 16, "hidden_size": 256, "rope_theta": null, "hidden_act": null,
        "rope_parameters": {"rope_type": "default", "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 64}});
    let without = |family: &str| {
        let mut fields = unsaid.clone();
        if family == "gemma3_text" {
            fields["rope_parameters"] = Value::Null;
        }
        let model = ModelDir::llama();
        become_family(&model, family, &fields);
        model.set(FILE, "/num_key_value_heads", if family.starts_with("qwen") { json!(16) } else { Value::Null });
        ModelConfig::read(&Source::directory(model.path())).expect("all else has a default")
    };
    let facts = |config: ModelConfig| {
        let sizes = (config.head_dim, config.n_kv_heads, config.max_positions, config.layers[0].window);
        (sizes, config.norm_eps, config.tied, rope_of(&config).theta)
    };
    let expected = [
        ((16, 16, 2_048, 0), 1e-6, false, 1e4),
        ((16, 16, 32_768, 0), 1e-6, false, 1e4),
        ((128, 16, 32_768, 0), 1e-6, false, 1e4),
        ((16, 16, 2_048, 0), 1e-5, false, 1e4),
        ((16, 8, 131_072, 4_096), 1e-6, false, 1e4),
        ((128, 8, 262_144, 0), 1e-5, false, 1e4),
        ((16, 4, 32_768, 0), 1e-6, true, 2e6),
        ((16, 16, 2_048, 0), 1e-6, false, 1e4),
        ((256, 4, 8_192, 4_096), 1e-6, true, 1e4),
        ((256, 4, 131_072, 4_096), 1e-6, true, 1e4),
    ];
    for ((family, _), expected) in FAMILIES.into_iter().zip(expected) {
        assert_eq!(facts(without(family)), expected, "{family}");
    }
    let gemma2 = read("gemma2", json!({}));
    assert_eq!((gemma2.norms, gemma2.qk_norm, gemma2.activation), (Norms::Both, QkNorm::None, Activation::GeluTanh));
    assert_eq!((gemma2.scales.attention_softcap, gemma2.scales.logits_softcap), (50.0, 30.0));
    assert_eq!((gemma2.scales.attention, gemma2.embedding_scale), (1.0 / 16.0, 4.0));
    let uncapped = read("gemma2", json!({"attn_logit_softcapping": null, "final_logit_softcapping": null})).scales;
    assert_eq!((uncapped.attention_softcap, uncapped.logits_softcap), (0.0, 0.0), "null is not the default");
    let granite = read("granite", json!({"logits_scaling": 8, "attention_multiplier": 0.015625}));
    assert_eq!((granite.scales.logits, granite.scales.attention, granite.scales.residual), (0.125, 0.015625, 1.0));
    let plain = read("granite", json!({})).scales;
    assert_eq!(plain.attention, 1.0, "not 1 / sqrt(head_dim)");
}

#[test]
fn layers_are_told_apart() {
    let windows = |config: &ModelConfig| config.layers.iter().map(|layer| layer.window).collect::<Vec<_>>();
    let turned = |config: &ModelConfig| config.layers.iter().map(|layer| layer.rope.is_some()).collect::<Vec<_>>();
    let with = |family: &str, fields: Value| {
        let mut fields = fields;
        fields["num_hidden_layers"] = json!(6);
        fields["sliding_window"] = json!(32);
        read(family, fields)
    };
    assert_eq!(windows(&with("llama", json!({"use_sliding_window": true}))), [0; 6], "Llama has none");
    assert_eq!(windows(&with("qwen2", json!({}))), [0; 6], "not in use");
    let last = json!({"use_sliding_window": true, "max_window_layers": 4});
    assert_eq!(windows(&with("qwen2", last.clone())), [0, 0, 0, 0, 32, 32]);
    assert_eq!(windows(&with("qwen3", last)), [0, 0, 0, 0, 32, 32]);
    let all = json!({"use_sliding_window": true, "max_window_layers": 0});
    assert_eq!(windows(&with("qwen2", all)), [32; 6]);
    assert_eq!(windows(&with("mistral", json!({}))), [32; 6]);
    assert_eq!(windows(&with("gemma2", json!({}))), [32, 0, 32, 0, 32, 0]);
    assert_eq!(windows(&with("gemma3_text", json!({}))), [32, 32, 32, 32, 32, 0]);
    assert_eq!(windows(&with("gemma3_text", json!({"sliding_window_pattern": 3}))), [32, 32, 0, 32, 32, 0]);
    let listed = json!(["full_attention", "sliding_attention"].repeat(3));
    assert_eq!(windows(&with("mistral", json!({"layer_types": listed}))), [0, 32, 0, 32, 0, 32], "as Ministral 8B");
    // As the text part, a Mistral stays one and slides in every layer; a Ministral says so itself.
    for (model_type, expected) in
        [(json!("mistral"), [32; 6]), (Value::Null, [32; 6]), (json!("ministral"), [0, 32, 0, 32, 0, 32])]
    {
        let (model, _) = seeing_model("language_model.model.", "language_model.lm_head.weight");
        model.edit(FILE, |config| {
            let text = &mut config["text_config"];
            text["model_type"] = model_type.clone();
            text["architectures"] = Value::Null;
            text["num_hidden_layers"] = json!(6);
            text["sliding_window"] = json!(32);
            text["layer_types"] = listed.clone();
        });
        let config = ModelConfig::read(&Source::directory(model.path())).expect("a right configuration");
        assert_eq!(windows(&config), expected, "{model_type}");
    }
    let smollm3 = with("smollm3", json!({"use_sliding_window": true}));
    assert_eq!(turned(&smollm3), [true, true, true, false, true, true], "every fourth has none");
    assert_eq!(windows(&smollm3), [0, 0, 0, 32, 0, 0], "and only those slide");
    assert_eq!(turned(&with("smollm3", json!({"no_rope_layers": [1, 0, 1, 1, 0, 1, 0]})))[..3], [true, false, true]);
    let growing = json!({"rope_type": "yarn", "factor": 16, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 4,
        "original_max_position_embeddings": 16384, "llama_4_scaling_beta": 0.1, "rope_theta": 1e6});
    let ministral3 = with("ministral3", json!({"rope_parameters": growing}));
    assert_eq!(ministral3.q_growth, Some(QGrowth { beta: 0.1, length: 16_384 }));
    let yarn = RopeScaling::Yarn {
        factor: 16.0,
        original_max_positions: 16_384,
        beta_fast: 4.0,
        beta_slow: 1.0,
        attention_factor: 1.0,
        truncate: true,
    };
    assert_eq!(rope_of(&ministral3), Rope { theta: 1e6, scaling: yarn });
}

/// As the published files of the 4B say it, which leave out what transformers has as a default.
#[test]
fn a_gemma_3_that_also_sees() {
    let model = ModelDir::llama();
    let config = json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "torch_dtype": "bfloat16",
        "eos_token_id": [1, 106], "image_token_index": 262_144, "vision_config": {"model_type": "siglip_vision_model"},
        "text_config": {"hidden_size": 2560, "intermediate_size": 10_240, "model_type": "gemma3_text",
            "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
    });
    model.write(FILE, config.to_string());
    let config = ModelConfig::read(&Source::directory(model.path())).expect("a right configuration");
    assert_eq!((config.family, config.nested, config.tied), (Family::Gemma3, true, true));
    assert_eq!((config.n_heads, config.n_kv_heads, config.head_dim, config.n_vocab), (8, 4, 256, 262_208));
    assert_eq!(config.eos_ids, [1, 106]);
    let (local, global) = (config.layers[0], config.layers[5]);
    assert_eq!((local.window, global.window), (1024, 0));
    assert_eq!(local.rope, Some(Rope { theta: 1e4, scaling: RopeScaling::None }));
    assert_eq!(global.rope, Some(Rope { theta: 1e6, scaling: RopeScaling::Linear { factor: 8.0 } }));
}

/// A model that also sees, with its text tensors under `prefix` and its head at `head`.
fn seeing_model(prefix: &str, head: &str) -> (ModelDir, Vec<T>) {
    let model = ModelDir::llama();
    model.edit(FILE, |config| {
        let mut text = config.clone();
        text["model_type"] = json!("mistral");
        *config = json!({"model_type": "mistral3", "tie_word_embeddings": false, "text_config": text});
    });
    let mut list = tensors(false);
    for tensor in &mut list {
        tensor.name = match tensor.name.strip_prefix("model.") {
            Some(rest) => format!("{prefix}{rest}"),
            None => head.into(),
        };
    }
    list.push(T::f32("vision_tower.patch_conv.weight", &[4, 4]));
    list.push(T::f32("multi_modal_projector.norm.weight", &[4]));
    (model, list)
}

#[test]
fn a_text_parts_tensors_have_one_name() {
    let plain = open(&ModelDir::llama()).expect("a right model");
    let names = |checkpoint: &Checkpoint| checkpoint.tensors().map(|(name, _)| name.to_string()).collect::<Vec<_>>();
    let spellings = [
        ("language_model.model.", "language_model.lm_head.weight", "model.norm.weight", "model.norm.weight"),
        (
            "model.language_model.",
            "lm_head.weight",
            "language_model.model.norm.weight",
            "model.language_model.norm.weight",
        ),
    ];
    for (prefix, head, once_more, named) in spellings {
        let (model, mut list) = seeing_model(prefix, head);
        model.set_tensors(&list);
        let checkpoint = open(&model).expect("both spellings are read");
        assert_eq!(names(&checkpoint), names(&plain), "{prefix}");
        assert_eq!(checkpoint.config.warnings, ["text only: the 2 tensors that see images are not read"]);
        list.push(T::f32(once_more, &[16]));
        model.set_tensors(&list);
        Tensor("", named, "another tensor is the text part's \"model.norm.weight\" too")
            .check(model.path(), &open(&model).expect_err("which of the two"))
            .expect("the error of the test");
    }
    // Only where a text part is named.
    let model = ModelDir::llama();
    let mut list = tensors(false);
    list.push(T::f32("vision_tower.patch_conv.weight", &[4, 4]));
    model.set_tensors(&list);
    Tensor("", "vision_tower.patch_conv.weight", "config.json does not ask for it")
        .check(model.path(), &open(&model).expect_err("an extra tensor"))
        .expect("the error of the test");
}

#[test]
fn what_a_family_has_no_use_for_is_not_looked_at() {
    // transformers keeps these fields and computes without them.
    config_with(|model| model.set(FILE, "/sliding_window", json!("wide")));
    let gemma3 = read("gemma3_text", json!({"attn_logit_softcapping": 50.0}));
    assert_eq!(gemma3.scales.attention_softcap, 0.0);
    read("smollm3", json!({"pretraining_tp": 2}));
    // An empty object says nothing, and hides nothing.
    let linear = json!({"rope_type": "linear", "factor": 8.0});
    let llama = read("llama", json!({"rope_scaling": {}, "rope_parameters": linear}));
    assert_eq!(rope_of(&llama).scaling, RopeScaling::Linear { factor: 8.0 });
    let gemma3 = read(
        "gemma3_text",
        json!({"rope_scaling": {}, "sliding_window_pattern": 1,
        "rope_parameters": {"full_attention": linear}}),
    );
    assert_eq!(rope_of(&gemma3).scaling, RopeScaling::Linear { factor: 8.0 });
}
