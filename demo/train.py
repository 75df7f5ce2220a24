"""Make the demo world from nothing: tokenizer, base, expert, anti-expert, and what they score.

Proxy tuning moves what a small model learned in tuning onto a large one that was
never tuned: softmax(M(x) + alpha * (M+(x) - M-(x))). To show it in a binary that
needs no download, this script invents a world (world.py) and trains

  base         M   knows nearly every fact, answers in passing and never ends by itself,
  anti-expert  M-  a tenth of the size, pre-trained on the very same text, knows little,
  expert       M+  the small one tuned to answer in one full sentence and then end,
  target           the base tuned directly: the yardstick; only its answers are kept.

Tuning sees one half of the people, the 200 test questions ask about the other half.

    python demo/train.py            everything, well under an hour on two cores
    python demo/train.py --smoke D  a few steps of everything, written to the directory D

Run with Python 3.11, torch 2.15.0, transformers 5.24.0, tokenizers 0.23.3,
safetensors 0.8.0, numpy 2.4.6, on CPU.
"""

import argparse
import json
import math
import random
import re
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

import evaluate
import world

SEED = 2401
VOCABULARY, DOCUMENTS, BATCH, WINDOW = 1024, 120_000, 48, 96
SHAPES = {
    "large": dict(hidden_size=192, num_hidden_layers=6, num_attention_heads=6,
                  num_key_value_heads=2, intermediate_size=512, head_dim=32),
    "small": dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
                  num_key_value_heads=2, intermediate_size=176, head_dim=16),
}
PRETRAIN = {"large": dict(steps=2400, peak=1.5e-3), "small": dict(steps=2400, peak=3e-3)}
TUNE = {"large": dict(steps=150, peak=3e-4), "small": dict(steps=500, peak=1e-3)}
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "{% else %}<|assistant|> {{ message['content'] }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}")
START = time.time()


def say(text):
    print(f"[{(time.time() - START) / 60:5.1f} min] {text}", flush=True)


def train_tokenizer(texts):
    """Byte-level BPE; the special tokens take the ids 0 (end), 1 (user) and 2 (assistant)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[world.END, world.USER, world.ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    assert tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer


def make_model(shape, seed):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**config(shape)))


def config(shape):
    return dict(
        architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=VOCABULARY,
        **SHAPES[shape], hidden_act="silu", max_position_embeddings=256, rms_norm_eps=1e-5,
        rope_theta=10000.0, rope_scaling=None, attention_bias=False, attention_dropout=0.0,
        mlp_bias=False, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0,
        pad_token_id=None, initializer_range=0.02, use_cache=True, torch_dtype="bfloat16")


def pack(tokenizer, documents):
    """The corpus as one long tensor of ids, and where in it each document starts."""
    encoded = [e.ids for e in tokenizer.encode_batch(documents)]
    lengths = torch.tensor([len(ids) for ids in encoded])
    starts = torch.cumsum(lengths, 0) - lengths
    stream = torch.tensor([i for ids in encoded for i in ids])
    return stream, starts[starts + WINDOW < len(stream)]


def page_batches(stream, starts, seed):
    """Endless batches of windows, each from the start of a document on; every id is a target."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        picks = starts[torch.randint(len(starts), (BATCH,), generator=generator)]
        windows = stream[picks[:, None] + torch.arange(WINDOW + 1)]
        yield windows[:, :-1], windows[:, 1:]


def chat_batches(tokenizer, half, held_out, seed):
    """Endless batches of tuning examples; only the answer and its end mark are targets."""
    examples = world.chat_examples(half)
    secret = {person.name for person in held_out}
    assert not any(name in question + answer for _, question, answer in examples for name in secret)
    rows = []
    for _, question, answer in examples:
        prompt = tokenizer.encode(f"{world.USER}{question}{world.ASSISTANT}").ids
        rows.append((prompt, prompt + tokenizer.encode(f" {answer}{world.END}").ids))
    rng = random.Random(seed)
    while True:
        picks = rng.sample(rows, BATCH)
        length = max(len(ids) for _, ids in picks)
        inputs = torch.zeros(BATCH, length - 1, dtype=torch.long)
        targets = torch.full((BATCH, length - 1), -100)
        for i, (prompt, ids) in enumerate(picks):
            inputs[i, : len(ids) - 1] = torch.tensor(ids[:-1])
            targets[i, len(prompt) - 1: len(ids) - 1] = torch.tensor(ids[len(prompt):])
        yield inputs, targets


def fit(label, model, batches, steps, peak, warmup=100):
    """AdamW with warm-up, cosine decay to nothing and clipping; leaves the model in eval mode."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), fused=True)
    warmup = min(warmup, steps // 5 + 1)
    model.train()
    for step in range(1, steps + 1):
        rate = step / warmup if step < warmup else 0.5 + 0.5 * math.cos(
            math.pi * (step - warmup) / max(1, steps - warmup))
        for group in optimizer.param_groups:
            group["lr"] = peak * rate
        inputs, targets = next(batches)
        logits = model(inputs, use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps:
            say(f"{label}: step {step}/{steps}, loss {loss.item():.3f}")
    return model.eval()


def write_json(path, value):
    """Indented, but with a list of token ids on one line."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    text = re.sub(r"\[\s+(\d[\d,\s]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    path.write_text(text + "\n", encoding="utf-8")


def save(directory, model, shape, tokenizer, template=None):
    """A complete Hugging Face directory, weights rounded to bf16."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().to(torch.bfloat16).contiguous()
               for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)
    write_json(directory / "config.json", config(shape))
    write_json(directory / "generation_config.json",
               dict(do_sample=False, eos_token_id=0, max_new_tokens=evaluate.MAX_NEW))
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    settings = dict(tokenizer_class="PreTrainedTokenizerFast", add_bos_token=False,
                    add_eos_token=False, add_prefix_space=False, bos_token=None,
                    eos_token=world.END, clean_up_tokenization_spaces=False, model_max_length=256)
    if template:
        settings["chat_template"] = template
    write_json(directory / "tokenizer_config.json", settings)


def showcase(rows, count=5):
    """Indices worth showing first: proxy right, base knows; the expert wrong in all but one."""
    good = [i for i, v in enumerate(rows["proxy-tuned, alpha 1"])
            if v["right"] and v["form"] and rows["base"][i]["knows"]]
    wrong = [i for i in good if not rows["expert"][i]["right"]]
    right = [i for i in good if rows["expert"][i]["right"]]
    return wrong[: count - 1] + right[:1]


def report(rows):
    lines = ["| Greedy, 200 held-out questions | knows the fact | form | right |",
             "|---|---:|---:|---:|"]
    for name, verdicts in rows.items():
        s = evaluate.shares(verdicts)
        lines.append(f"| {name} | {s['knows']:.1f} % | {s['form']:.1f} % | {s['right']:.1f} % |")
    return "\n".join(lines)


def tune_target(home, tokenizer, batches, schedule):
    """The base as published, tuned directly and rounded; it lives in memory only."""
    large = evaluate.load(home / "base")[0]
    fit("target", large, batches, **schedule)
    with tempfile.TemporaryDirectory() as scratch:
        save(Path(scratch), large, "large", tokenizer, CHAT_TEMPLATE)
        return evaluate.load(scratch)[0]


def measure_and_write(home, target, items):
    """Measure the checkpoints in `home`; write questions, the target's answers, the reference."""
    base, anti = (evaluate.load(home / name)[0] for name in ("base", "anti-expert"))
    expert, reader = evaluate.load(home / "expert")
    rows = evaluate.measure(base, expert, anti, target, reader, items)
    say("measured\n" + report(rows))

    first = showcase(rows)
    order = first + [i for i in range(len(items)) if i not in first]
    items = [items[i] for i in order]
    answers = [rows["large model tuned directly"][i] for i in order]
    write_json(home / "questions.json", items)
    write_json(home / "target.json", [
        {"question": item["question"], "answer": v["text"], "ended": v["ended"]}
        for item, v in zip(items, answers)])
    write_json(home / "reference.json", {
        "alpha": 1.0, "max_new_tokens": evaluate.MAX_NEW, "compute": "float32",
        "answers": [evaluate.reference(base, expert, anti, reader, item) for item in items[:20]]})


def main():
    arguments = argparse.ArgumentParser(description="train and measure the demo world")
    arguments.add_argument("--smoke", metavar="DIR", type=Path, help="a few steps, written to DIR")
    smoke = arguments.parse_args().smoke
    home = smoke or Path(__file__).parent
    torch.set_num_threads(2)
    pretrain, tune, documents = PRETRAIN, TUNE, DOCUMENTS
    if smoke:
        pretrain = {k: v | dict(steps=5) for k, v in PRETRAIN.items()}
        tune = {k: v | dict(steps=5) for k, v in TUNE.items()}
        documents = 12_000

    everyone, half, held_out = world.people(SEED)
    world.check(everyone)
    items = world.held_out_questions(SEED + 1, held_out)
    texts = list(world.corpus(SEED + 2, everyone, documents))
    tokenizer = train_tokenizer(texts[:12_000])
    stream, starts = pack(tokenizer, texts)
    say(f"{len(texts)} documents, {len(stream)} tokens; the first two:\n{texts[0]}{texts[1]}")

    def chats(seed):
        return chat_batches(tokenizer, half, held_out, seed)

    small = make_model("small", SEED + 10)
    say(f"small: {sum(p.numel() for p in small.parameters())} parameters")
    fit("small", small, page_batches(stream, starts, SEED + 11), **pretrain["small"])
    save(home / "anti-expert", small, "small", tokenizer)
    fit("expert", small, chats(SEED + 12), **tune["small"])
    save(home / "expert", small, "small", tokenizer, CHAT_TEMPLATE)
    expert, reader = evaluate.load(home / "expert")
    chat_prompts = [evaluate.chat(reader, item["question"]) for item in items]
    alone = evaluate.judge([(expert, chat_prompts, 1.0)], reader, items)
    say(f"expert alone: {evaluate.shares(alone)}")

    large = make_model("large", SEED + 20)
    say(f"large: {sum(p.numel() for p in large.parameters())} parameters")
    fit("base", large, page_batches(stream, starts, SEED + 21), **pretrain["large"])
    save(home / "base", large, "large", tokenizer)
    target = tune_target(home, tokenizer, chats(SEED + 22), tune["large"])
    measure_and_write(home, target, items)
    say("done")


if __name__ == "__main__":
    main()
