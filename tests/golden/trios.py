"""The golden trios: config.json of each role, and the types that its tensors are stored in, in turn.

Expert and anti-expert of a trio have equal layer shapes unless it says otherwise: one launch, whose members
differ in everything else that they may differ in. Switches differ from role to role and from their defaults.
"""

import torch

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
ARCHITECTURES = {
    "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM", "mistral": "MistralForCausalLM", "ministral3": "Ministral3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM", "granite": "GraniteForCausalLM", "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
SHARDED = {("mixed", "base")}
# Saved by transformers as the text half of a model that also sees: nested text_config, other tensor names.
NESTED = {("ministral3", "anti-expert"), ("gemma3", "expert")}


def llama3(**more):
    return dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=64, **more)


def yarn(original, factor, **more):
    return dict(rope_type="yarn", factor=factor, original_max_position_embeddings=original, **more)


def plain(theta):
    return dict(rope_type="default", rope_theta=theta)


def model(family, width, shape, eps, tied, dtypes, **more):
    """Shapes are (d_model, layers, heads, KV heads, head_dim, d_ff)."""
    d_model, n_layers, n_heads, n_kv_heads, head_dim, d_ff = shape
    activation = (dict(hidden_activation="gelu_pytorch_tanh") if family.startswith("gemma")
                  else dict(hidden_act="silu"))
    config = dict(
        architectures=[ARCHITECTURES[family]], model_type=family, vocab_size=width, hidden_size=d_model,
        num_hidden_layers=n_layers, num_attention_heads=n_heads, num_key_value_heads=n_kv_heads,
        head_dim=head_dim, intermediate_size=d_ff, **activation, max_position_embeddings=256,
        rms_norm_eps=eps, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=0) | more
    return config, dtypes


def granite(width, shape, eps, tied, dtypes, multipliers, **more):
    names = ["embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"]
    return model("granite", width, shape, eps, tied, dtypes, **dict(zip(names, multipliers)), **more)


TRIOS = {
    "llama": [
        model("llama", 384, (64, 3, 4, 2, 24, 136), 0.05, False, [F32], attention_bias=True,
              rope_theta=5000.0, rope_scaling=llama3(), torch_dtype="float32"),
        model("llama", 320, (40, 2, 4, 1, 16, 72), 0.2, True, [BF16],
              rope_theta=300.0, rope_scaling=None, torch_dtype="bfloat16"),
        model("llama", 312, (40, 2, 4, 1, 16, 72), 0.01, False, [BF16], attention_bias=True,
              rope_theta=20000.0, rope_scaling=llama3(), torch_dtype="bfloat16"),
    ],
    "qwen2": [
        model("qwen2", 320, (96, 2, 4, 4, 24, 96), 0.02, True, [BF16],
              rope_theta=100000.0, torch_dtype="bfloat16", use_sliding_window=False),
        model("qwen2", 300, (48, 3, 6, 2, 8, 88), 0.1, False, [F16],
              rope_theta=500.0, torch_dtype="float16", use_sliding_window=False),
        model("qwen2", 384, (48, 3, 6, 2, 8, 88), 0.3, False, [F16],
              rope_theta=8000.0, torch_dtype="float16", use_sliding_window=False),
    ],
    # Three shapes, two families.
    "mixed": [
        model("llama", 448, (72, 3, 3, 1, 40, 104), 0.1, False, [F16, BF16, F32],
              rope_parameters=llama3(rope_theta=40000.0), dtype="float16"),
        model("qwen2", 320, (56, 2, 2, 2, 32, 64), 0.03, True, [BF16, F16],
              rope_parameters=plain(700.0), dtype="bfloat16"),
        model("llama", 312, (32, 1, 4, 2, 8, 80), 0.4, True, [F16],
              rope_parameters=plain(3000.0), dtype="float16"),
    ],
    # Linear and yarn, with each of yarn's own settings at least once; and Qwen2's window.
    "ropes": [
        model("llama", 320, (64, 2, 4, 2, 32, 96), 0.05, False, [BF16],
              rope_theta=2000.0, rope_scaling=dict(type="linear", factor=3.0), torch_dtype="bfloat16"),
        model("qwen2", 300, (48, 3, 4, 2, 16, 80), 0.1, True, [BF16], use_sliding_window=True,
              sliding_window=21, max_window_layers=1,
              rope_parameters=yarn(48, 4.0, rope_theta=900.0, beta_fast=1.5, beta_slow=0.25), dtype="bfloat16"),
        model("llama", 312, (48, 3, 4, 2, 16, 80), 0.2, False, [BF16],
              rope_parameters=yarn(32, 8.0, rope_theta=4000.0, attention_factor=1.4, truncate=False,
                                   beta_fast=4.0), dtype="bfloat16"),
    ],
    "qwen3": [
        model("qwen3", 384, (56, 3, 4, 2, 24, 104), 0.05, False, [BF16],
              rope_theta=20000.0, torch_dtype="bfloat16", use_sliding_window=False, sliding_window=None),
        model("qwen3", 320, (40, 3, 4, 2, 16, 72), 0.02, True, [F16], use_sliding_window=True,
              sliding_window=70, max_window_layers=1, rope_theta=1000.0, torch_dtype="float16"),
        model("qwen3", 300, (40, 3, 4, 2, 16, 72), 0.3, True, [F16], attention_bias=True,
              rope_parameters=plain(300.0), dtype="float16"),
    ],
    "olmo2": [
        model("olmo2", 320, (64, 3, 4, 4, 16, 96), 0.05, False, [BF16],
              rope_theta=5000.0, rope_scaling=None, torch_dtype="bfloat16"),
        model("olmo2", 320, (48, 2, 6, 2, 8, 88), 0.3, True, [F32],
              rope_theta=800.0, torch_dtype="float32"),
        model("olmo2", 300, (48, 2, 6, 2, 8, 88), 0.1, False, [F32], attention_bias=True,
              rope_theta=100.0, torch_dtype="float32"),
    ],
    "mistral": [
        model("mistral", 320, (64, 2, 4, 2, 24, 104), 0.05, False, [BF16],
              sliding_window=50, rope_theta=6000.0, torch_dtype="bfloat16"),
        model("mistral", 312, (40, 2, 4, 1, 16, 72), 0.2, False, [BF16],
              sliding_window=128, rope_theta=300.0, torch_dtype="bfloat16"),
        model("mistral", 300, (40, 2, 4, 1, 16, 72), 0.1, True, [BF16],
              sliding_window=None, rope_theta=20000.0, torch_dtype="bfloat16"),
    ],
    "ministral3": [
        model("ministral3", 320, (64, 2, 4, 2, 32, 104), 0.05, False, [BF16], sliding_window=None,
              rope_parameters=yarn(32, 8.0, rope_theta=6000.0, beta_fast=16.0, beta_slow=1.0, mscale=1.0,
                                   mscale_all_dim=1.0, llama_4_scaling_beta=0.3), dtype="bfloat16"),
        model("ministral3", 312, (40, 2, 4, 1, 16, 72), 0.2, True, [BF16], sliding_window=None,
              rope_parameters=yarn(16, 16.0, rope_theta=900.0, beta_fast=4.0, mscale=1.5,
                                   mscale_all_dim=0.5, llama_4_scaling_beta=0.5), dtype="bfloat16"),
        model("ministral3", 300, (40, 2, 4, 1, 16, 72), 0.1, False, [BF16], sliding_window=33,
              rope_parameters=yarn(64, 2.0, rope_theta=3000.0, beta_fast=4.0, beta_slow=1.0,
                                   llama_4_scaling_beta=0.8), dtype="bfloat16"),
    ],
    "smollm3": [
        model("smollm3", 320, (64, 4, 4, 2, 16, 96), 0.05, False, [BF16], no_rope_layer_interval=2, pad_token_id=0,
              rope_theta=50000.0, torch_dtype="bfloat16"),
        model("smollm3", 312, (48, 3, 6, 2, 8, 80), 0.2, True, [BF16], no_rope_layers=[1, 0, 1], pad_token_id=0,
              use_sliding_window=True, sliding_window=40, rope_theta=900.0, torch_dtype="bfloat16"),
        model("smollm3", 300, (48, 3, 6, 2, 8, 80), 0.1, True, [BF16], no_rope_layers=[0, 1, 1], pad_token_id=0,
              attention_bias=True, rope_theta=100.0, torch_dtype="bfloat16"),
    ],
    "granite": [
        granite(320, (64, 3, 4, 2, 16, 96), 0.05, False, [BF16], (0.1, 0.11, 0.4, 5.0),
                rope_theta=9000.0, torch_dtype="bfloat16"),
        granite(312, (48, 2, 6, 2, 8, 80), 0.2, True, [BF16], (0.5, 0.5, 0.7, 2.0),
                rope_theta=500.0, torch_dtype="bfloat16"),
        granite(300, (48, 2, 6, 2, 8, 80), 0.1, True, [BF16], (2.0, 0.25, 1.5, 0.5), attention_bias=True,
                rope_theta=3000.0, torch_dtype="bfloat16"),
    ],
    "gemma2": [
        model("gemma2", 320, (64, 4, 4, 2, 24, 96), 0.05, True, [BF16], query_pre_attn_scalar=10,
              sliding_window=30, attn_logit_softcapping=5.0, final_logit_softcapping=60.0,
              rope_theta=9000.0, torch_dtype="bfloat16"),
        model("gemma2", 312, (48, 3, 6, 2, 16, 80), 0.2, True, [F32], query_pre_attn_scalar=16,
              sliding_window=64, attn_logit_softcapping=8.0, final_logit_softcapping=50.0,
              rope_theta=700.0, torch_dtype="float32"),
        model("gemma2", 300, (48, 3, 6, 2, 16, 80), 0.1, True, [F32], query_pre_attn_scalar=40,
              sliding_window=100, attn_logit_softcapping=3.0, final_logit_softcapping=40.0,
              layer_types=["full_attention", "sliding_attention", "full_attention"],
              rope_theta=200.0, torch_dtype="float32"),
    ],
    "gemma3": [
        model("gemma3_text", 320, (64, 4, 4, 2, 24, 96), 0.05, True, [BF16], query_pre_attn_scalar=10,
              sliding_window=30, sliding_window_pattern=3, rope_theta=9000.0, rope_local_base_freq=300.0,
              rope_scaling=dict(rope_type="linear", factor=8.0), torch_dtype="bfloat16"),
        model("gemma3_text", 312, (48, 3, 6, 2, 16, 80), 0.2, True, [BF16], query_pre_attn_scalar=40,
              sliding_window=64, layer_types=["sliding_attention", "sliding_attention", "full_attention"],
              rope_parameters=dict(sliding_attention=plain(150.0), full_attention=plain(7000.0)),
              dtype="bfloat16"),
        model("gemma3_text", 300, (48, 3, 6, 2, 16, 80), 0.1, True, [BF16], query_pre_attn_scalar=40,
              sliding_window=100, layer_types=["full_attention", "sliding_attention", "sliding_attention"],
              rope_parameters=dict(sliding_attention=plain(900.0),
                                   full_attention=dict(rope_type="linear", factor=4.0, rope_theta=500.0)),
              dtype="bfloat16"),
    ],
}
