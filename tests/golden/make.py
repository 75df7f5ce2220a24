"""Make the golden trios: tiny models, and what transformers computes with them.

    pip install torch==2.15.0 transformers==5.24.0 tokenizers==0.23.3 safetensors==0.8.0 numpy==2.4.6
    python tests/golden/make.py

rewrites tests/golden/{llama,qwen2,mixed}: three Hugging Face directories each, and golden.json with
logits.f32, which tests/goldens.rs compares with. Weights are as stored, attention is eager, everything
is computed in float32 by full forward passes without a cache. Another version of the packages may
round differently in the last bits; a margin says how much an id can bear.

The weights are random and loud, so that every switch of a configuration moves every logit: logits
deviate by 3 and more, gains and biases are far from 1 and 0, eps is comparable to the squares it is
added to, and eps, theta and scaling differ from role to role. Rows of the LM head past the tokenizer's
ids are made so large that one of them always wins: whoever samples padding is found out.
"""

import json
import shutil
from pathlib import Path

import numpy
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM

HOME = Path(__file__).parent
ROLES = ["base", "expert", "anti-expert"]
ALPHAS = [-1.0, 0.0, 0.5, 1.0, 2.5]
# Lengths of the prompts of a request, per role: over one key block of attention (64) and not, and up to it.
LENGTHS = [(5, 9, 3), (40, 64, 65), (93, 70, 81), (1, 18, 33)]
N_IDS, N_STEPS, KEPT_STEPS = 300, 20, [0, 1, 10, 19]
LINES = ["The oboe is a reed instrument, and the oboist reads the other reeds' parts too.",
         "There is no other instrument that the others tune to: there it is, an A.",
         "In the north they say: the rain that ends the heat ends the harvest."]
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def llama3(**more):
    return dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=64, **more)


def model(family, width, shape, eps, tied, dtypes, **more):
    """A role's config.json, but for its rope, and the types that its tensors are stored in, in turn."""
    d_model, n_layers, n_heads, n_kv_heads, head_dim, d_ff = shape
    names = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}
    config = dict(
        architectures=[names[family]], model_type=family, vocab_size=width, hidden_size=d_model,
        num_hidden_layers=n_layers, num_attention_heads=n_heads, num_key_value_heads=n_kv_heads,
        head_dim=head_dim, intermediate_size=d_ff, hidden_act="silu", max_position_embeddings=256,
        rms_norm_eps=eps, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=0, **more)
    return config, dtypes


# Shapes are (d_model, layers, heads, KV heads, head_dim, d_ff). Expert and anti-expert of the first two
# trios have equal ones: one launch, whose members differ in everything else that they may differ in.
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
    "mixed": [
        model("llama", 448, (72, 3, 3, 1, 40, 104), 0.1, False, [F16, BF16, F32],
              rope_parameters=llama3(rope_theta=40000.0), dtype="float16"),
        model("qwen2", 320, (56, 2, 2, 2, 32, 64), 0.03, True, [BF16, F16],
              rope_parameters=dict(rope_type="default", rope_theta=700.0), dtype="bfloat16"),
        model("llama", 312, (32, 1, 4, 2, 8, 80), 0.4, True, [F16],
              rope_parameters=dict(rope_type="default", rope_theta=3000.0), dtype="float16"),
    ],
}
SHARDED = {("mixed", "base")}


def train_tokenizer(adds_bos):
    """Byte-level BPE of N_IDS ids: <|end|> is 0, <|begin|> is 1."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(LINES, trainers.BpeTrainer(
        vocab_size=N_IDS, special_tokens=["<|end|>", "<|begin|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    assert tokenizer.get_vocab_size() == N_IDS
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", 1)])
    return tokenizer


def weights(config, random):
    """Named tensors. A matrix keeps the scale of what it multiplies; the head makes logits loud."""
    d, ff = config["hidden_size"], config["intermediate_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]

    def normal(*shape, deviation):
        return torch.randn(*shape, generator=random) * deviation

    def gain():
        # Both signs: with positive gains alone, a tied model would repeat the token that it was given.
        signs = torch.randint(0, 2, (d,), generator=random) * 2 - 1
        return signs * (0.4 + 1.2 * torch.rand(d, generator=random))

    def head():
        rows = normal(config["vocab_size"], d, deviation=5 / d**0.5)
        # Pairs of opposites, 25 times as loud: one of the many is always far above every live row.
        padding = 25 * rows[N_IDS:]
        half = len(padding) // 2
        padding[half:] = -padding[:len(padding) - half]
        rows[N_IDS:] = padding
        return rows

    tensors = {"model.embed_tokens.weight": head()}
    for layer in range(config["num_hidden_layers"]):
        def add(name, tensor):
            tensors[f"model.layers.{layer}.{name}"] = tensor
        add("input_layernorm.weight", gain())
        for part, rows, loudness in [("q", q, 1.5), ("k", kv, 1.5), ("v", kv, 1.0)]:
            add(f"self_attn.{part}_proj.weight", normal(rows, d, deviation=loudness / d**0.5))
            if config["model_type"] == "qwen2" or config.get("attention_bias"):
                add(f"self_attn.{part}_proj.bias", normal(rows, deviation=0.5))
        add("self_attn.o_proj.weight", normal(d, q, deviation=1.5 / q**0.5))
        if config.get("attention_bias"):
            add("self_attn.o_proj.bias", normal(d, deviation=0.3))
        add("post_attention_layernorm.weight", gain())
        add("mlp.gate_proj.weight", normal(ff, d, deviation=1.3 / d**0.5))
        add("mlp.up_proj.weight", normal(ff, d, deviation=1.3 / d**0.5))
        add("mlp.down_proj.weight", normal(d, ff, deviation=1.5 / ff**0.5))
    tensors["model.norm.weight"] = gain()
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = head()
    return tensors


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def save_weights(directory, tensors, sharded):
    metadata = {"format": "pt"}
    if not sharded:
        save_file(tensors, directory / "model.safetensors", metadata=metadata)
        return
    names, weight_map = list(tensors), {}
    # Every other tensor, so that each layer is in both files.
    for part in range(2):
        file = f"model-{part + 1:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names[part::2]}, directory / file, metadata=metadata)
        weight_map |= dict.fromkeys(names[part::2], file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = dict(metadata=dict(total_size=size), weight_map=dict(sorted(weight_map.items())))
    write_json(directory / "model.safetensors.index.json", index)


def save(directory, config, dtypes, tokenizer, adds_bos, sharded, seed):
    """A complete Hugging Face directory."""
    directory.mkdir(parents=True)
    tensors = weights(config, torch.Generator().manual_seed(seed))
    stored = {name: tensor.to(dtypes[i % len(dtypes)]).contiguous()
              for i, (name, tensor) in enumerate(tensors.items())}
    save_weights(directory, stored, sharded)
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", dict(bos_token_id=1, eos_token_id=0, do_sample=False))
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    write_json(directory / "tokenizer_config.json", dict(
        tokenizer_class="PreTrainedTokenizerFast", add_bos_token=adds_bos, bos_token="<|begin|>",
        eos_token="<|end|>", clean_up_tokenization_spaces=False, model_max_length=256))
    for file in directory.iterdir():
        file.chmod(0o644)


def load(directory, config):
    """The model as transformers reads it, and a check that it read what was meant."""
    loaded, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {"rope_type": "default"}
    rope = {"rope_theta": config.get("rope_theta")} | rope
    read = loaded.config.rope_parameters
    assert all(read[key] == value for key, value in rope.items()), (read, rope)
    first = loaded.model.layers[0]
    assert first.input_layernorm.variance_epsilon == config["rms_norm_eps"]
    assert first.self_attn.head_dim == config["head_dim"]
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == config["tie_word_embeddings"]
    return loaded.eval()


@torch.no_grad()
def run(trio, prompts, alpha):
    """Greedy ids at `alpha`, EOS ignored, with the margin of each, and the rows of the kept steps."""
    ids, margins, magnitudes, kept = [], [], [], []
    for step in range(N_STEPS):
        rows = []
        for loaded, prompt in zip(trio, prompts):
            row = loaded(torch.tensor([prompt + ids]), use_cache=False).logits[0, -1]
            live, padding = row[:N_IDS], row[N_IDS:]
            assert live.std() >= 3, f"a row of deviation {live.std():.2f}"
            assert len(padding) == 0 or padding.max() > 1.2 * live.max(), "padding that does not attract"
            rows.append(live)
        base, expert, anti = rows
        combined = base + alpha * (expert - anti) if alpha != 0 else base
        best, second = combined.topk(2).values.tolist()
        heights = [row.abs().max().item() for row in rows]
        margins.append(best - second)
        magnitudes.append(heights[0] + abs(alpha) * (heights[1] + heights[2]))
        if step in KEPT_STEPS:
            kept.append(torch.stack(rows).numpy())
        ids.append(int(combined.argmax()))
    golden = dict(alpha=alpha, prompts=prompts, ids=ids,
                  margins=[float(f"{x:.6g}") for x in margins],
                  magnitudes=[float(f"{x:.6g}") for x in magnitudes])
    return golden, numpy.stack(kept)


def make(name, trio, seed):
    home = HOME / name
    shutil.rmtree(home, ignore_errors=True)
    adds_bos = name == "llama"
    tokenizer = train_tokenizer(adds_bos)
    for i, (role, (config, dtypes)) in enumerate(zip(ROLES, trio)):
        save(home / role, config, dtypes, tokenizer, adds_bos, (name, role) in SHARDED, seed + i)
    loaded = [load(home / role, config) for role, (config, _) in zip(ROLES, trio)]

    random = torch.Generator().manual_seed(seed + 10)
    requests = [[torch.randint(N_IDS, (length,), generator=random).tolist() for length in lengths]
                for lengths in LENGTHS]
    runs, rows = zip(*(run(loaded, prompts, alpha) for prompts in requests for alpha in ALPHAS))
    # [runs][kept steps][roles][N_IDS] little-endian float32.
    numpy.stack(rows).astype("<f4").tofile(home / "logits.f32")
    lines = ",\n  ".join(json.dumps(golden) for golden in runs)
    (home / "golden.json").write_text(
        f'{{\n "n_ids": {N_IDS},\n "kept_steps": {KEPT_STEPS},\n "runs": [\n  {lines}\n ]\n}}\n')
    certain = [m / (2 * h) for golden in runs for m, h in zip(golden["margins"], golden["magnitudes"])]
    distinct = {tuple(golden["ids"]) for golden in runs}
    repeats = numpy.mean([a == b for golden in runs for a, b in zip(golden["ids"], golden["ids"][1:])])
    size = sum(file.stat().st_size for file in home.rglob("*") if file.is_file())
    print(f"{name}: {len(runs)} runs, {len(distinct)} distinct texts, {repeats:.0%} of ids repeat the last; "
          f"{size / 1e6:.2f} MB; ids certain at an error of 1e-3: {numpy.mean(numpy.array(certain) > 1e-3):.1%}, of 1e-4: "
          f"{numpy.mean(numpy.array(certain) > 1e-4):.1%}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for number, (name, trio) in enumerate(TRIOS.items()):
        make(name, trio, 1000 * (number + 1))
