"""Make the golden trios: tiny models, and what transformers computes with them.

    pip install torch==2.15.0 transformers==5.24.0 tokenizers==0.23.3 safetensors==0.8.0 numpy==2.4.6
    python tests/golden/make.py [TRIO ..]

rewrites the trios of trios.py (or those named): three Hugging Face directories each, and golden.json with
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
import sys
from pathlib import Path

import numpy
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, Gemma3Config, Mistral3Config

from trios import NESTED, SHARDED, TRIOS

HOME = Path(__file__).parent
ROLES = ["base", "expert", "anti-expert"]
# The first trios prove the combination, the others their switches.
COMBINATION = ["llama", "qwen2", "mixed"]
ALPHAS = [-1.0, 0.0, 0.5, 1.0, 2.5]
LONG_ALPHAS = [1.0, -0.5]
# Lengths of the prompts of a request, per role: over one key block of attention (64) and not, and up to it.
LENGTHS = [(5, 9, 3), (40, 64, 65), (93, 70, 81), (1, 18, 33)]
# Over every window and every original length, and of a few tokens.
LONG_LENGTHS = [(190, 171, 205), (131, 140, 129), (7, 2, 11)]
N_IDS, N_STEPS, KEPT_STEPS = 300, 20, [0, 1, 10, 19]
LINES = ["The oboe is a reed instrument, and the oboist reads the other reeds' parts too.",
         "There is no other instrument that the others tune to: there it is, an A.",
         "In the north they say: the rain that ends the heat ends the harvest."]


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
    family = config["model_type"]
    d, ff, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    has_bias = config.get("attention_bias", False)
    loudness_of_head = 5 * config.get("logits_scaling", 1)

    def normal(*shape, deviation):
        return torch.randn(*shape, generator=random) * deviation

    def gain(width=d):
        # Both signs: with positive gains alone, a tied model would repeat the token that it was given.
        signs = torch.randint(0, 2, (width,), generator=random) * 2 - 1
        gains = signs * (0.4 + 1.2 * torch.rand(width, generator=random))
        return gains - 1 if family.startswith("gemma") else gains

    def head():
        rows = normal(config["vocab_size"], d, deviation=loudness_of_head / d**0.5)
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
        if family != "olmo2":
            add("input_layernorm.weight", gain())
        for part, rows, loudness in [("q", q, 1.5), ("k", kv, 1.5), ("v", kv, 1.0)]:
            add(f"self_attn.{part}_proj.weight", normal(rows, d, deviation=loudness / d**0.5))
            if family == "qwen2" or has_bias:
                add(f"self_attn.{part}_proj.bias", normal(rows, deviation=0.5))
        add("self_attn.o_proj.weight", normal(d, q, deviation=1.5 / q**0.5))
        if has_bias:
            add("self_attn.o_proj.bias", normal(d, deviation=0.3))
        if family in ("qwen3", "gemma3_text", "olmo2"):
            add("self_attn.q_norm.weight", gain(q if family == "olmo2" else head_dim))
            add("self_attn.k_norm.weight", gain(kv if family == "olmo2" else head_dim))
        add("post_attention_layernorm.weight", gain())
        if family.startswith("gemma"):
            add("pre_feedforward_layernorm.weight", gain())
        if family.startswith("gemma") or family == "olmo2":
            add("post_feedforward_layernorm.weight", gain())
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


def save_nested(directory, config, tensors):
    """As transformers saves a model that also sees, with the smallest of eyes."""
    text = {name: value for name, value in config.items() if name != "architectures"}
    eyes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=8,
                patch_size=4)
    if config["model_type"] == "ministral3":
        whole = Mistral3Config(text_config=text, vision_config=eyes | {"model_type": "pixtral", "head_dim": 16},
                               tie_word_embeddings=config["tie_word_embeddings"])
    else:
        whole = Gemma3Config(text_config=text, vision_config=eyes | {"model_type": "siglip_vision_model"},
                             mm_tokens_per_image=1)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(whole, dtype=next(iter(tensors.values())).dtype)
    head = {name: tensor for name, tensor in tensors.items() if name == "lm_head.weight"}
    body = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name not in head}
    model.model.language_model.load_state_dict(body)
    if head:
        model.lm_head.load_state_dict({"weight": head["lm_head.weight"]})
    model.save_pretrained(directory)


def save(directory, config, dtypes, tokenizer, adds_bos, form, seed):
    """A complete Hugging Face directory."""
    directory.mkdir(parents=True)
    tensors = weights(config, torch.Generator().manual_seed(seed))
    stored = {name: tensor.to(dtypes[i % len(dtypes)]).contiguous()
              for i, (name, tensor) in enumerate(tensors.items())}
    if form == "nested":
        save_nested(directory, config, stored)
    else:
        save_weights(directory, stored, form == "sharded")
        write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", dict(bos_token_id=1, eos_token_id=0, do_sample=False))
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    write_json(directory / "tokenizer_config.json", dict(
        tokenizer_class="PreTrainedTokenizerFast", add_bos_token=adds_bos, bos_token="<|begin|>",
        eos_token="<|end|>", clean_up_tokenization_spaces=False, model_max_length=256))
    for file in directory.iterdir():
        file.chmod(0o644)


def rope_settings(config):
    """What config.json says of rotary positions, and nothing else, as transformers keeps it; per kind of layer for
    Gemma 3."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {"rope_type": "default"}
    given = {("rope_type" if name == "type" else name): value for name, value in given.items()}
    if config["model_type"] != "gemma3_text":
        return {"rope_theta": config.get("rope_theta")} | given
    if "full_attention" in given:
        return given
    return dict(sliding_attention=dict(rope_type="default", rope_theta=config["rope_local_base_freq"]),
                full_attention={"rope_theta": config["rope_theta"]} | given)


def load(directory, config, form):
    """The model as transformers reads it, and a check that it read what was meant."""
    auto = AutoModelForImageTextToText if form == "nested" else AutoModelForCausalLM
    loaded, info = auto.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    body = loaded.model.language_model if form == "nested" else loaded.model
    read = body.config.to_dict()
    ignored = {"architectures", "torch_dtype", "dtype", "rope_theta", "rope_scaling", "rope_local_base_freq",
               "rope_parameters", "sliding_window_pattern", "tie_word_embeddings"}
    if not config.get("use_sliding_window", True):
        ignored.add("sliding_window")
    for name in config.keys() - ignored:
        assert name in ("head_dim", "attention_bias") or read[name] == config[name], (name, read.get(name))
    for name, value in rope_settings(config).items():
        kept = body.config.rope_parameters[name]
        assert all(kept[key] == value[key] for key in value) if isinstance(value, dict) else kept == value, name
    first = body.layers[0]
    assert getattr(body.norm, "variance_epsilon", None) or body.norm.eps == config["rms_norm_eps"]
    assert first.self_attn.head_dim == config["head_dim"]
    assert (loaded.lm_head.weight is body.embed_tokens.weight) == config["tie_word_embeddings"]
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


def form_of(name, role):
    if (name, role) in SHARDED:
        return "sharded"
    return "nested" if (name, role) in NESTED else "whole"


def make(name, trio, seed):
    home = HOME / name
    shutil.rmtree(home, ignore_errors=True)
    adds_bos = name == "llama"
    tokenizer = train_tokenizer(adds_bos)
    for i, (role, (config, dtypes)) in enumerate(zip(ROLES, trio)):
        save(home / role, config, dtypes, tokenizer, adds_bos, form_of(name, role), seed + i)
    loaded = [load(home / role, config, form_of(name, role)) for role, (config, _) in zip(ROLES, trio)]

    random = torch.Generator().manual_seed(seed + 10)
    lengths, alphas = (LENGTHS, ALPHAS) if name in COMBINATION else (LONG_LENGTHS, LONG_ALPHAS)
    requests = [[torch.randint(N_IDS, (length,), generator=random).tolist() for length in three]
                for three in lengths]
    runs, rows = zip(*(run(loaded, prompts, alpha) for prompts in requests for alpha in alphas))
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
        if name in (sys.argv[1:] or TRIOS):
            make(name, trio, 1000 * (number + 1))
