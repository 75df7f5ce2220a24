"""Decode and score: everything measured is measured on the checkpoints as they lie on disk.

A run is a list of parts (model, prompts, weight); its next-token scores are the
weighted sum of the parts' logits. One model alone is one part of weight 1, and
proxy tuning is the three parts base * 1 + expert * alpha - anti-expert * alpha.
"""

from collections import defaultdict

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MAX_NEW = 48


def load(directory):
    """A saved checkpoint: its stored bf16 weights, computed with in float32."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(directory)


def bare(tokenizer, question):
    return tokenizer(question)["input_ids"]


def chat(tokenizer, question):
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def greedy(parts, end):
    """Greedy answers (token ids, the end mark included when it came) for all prompts at once."""
    answers = [None] * len(parts[0][1])
    groups = defaultdict(list)
    for i in range(len(answers)):
        groups[tuple(len(prompts[i]) for _, prompts, _ in parts)].append(i)
    for members in groups.values():  # equal lengths, so that nothing is padded
        for i, ids in zip(members, greedy_group(parts, members, end)):
            answers[i] = ids[: ids.index(end) + 1] if end in ids else ids
    return answers


def greedy_group(parts, members, end):
    feeds = [torch.tensor([prompts[i] for i in members]) for _, prompts, _ in parts]
    caches, steps, done = [None] * len(parts), [], torch.zeros(len(members), dtype=torch.bool)
    while len(steps) < MAX_NEW and not done.all():
        scores = 0
        for k, (model, _, weight) in enumerate(parts):
            out = model(feeds[k], past_key_values=caches[k], use_cache=True)
            caches[k] = out.past_key_values
            scores = scores + weight * out.logits[:, -1]
        steps.append(scores.argmax(-1))
        done |= steps[-1] == end
        feeds = [steps[-1][:, None]] * len(parts)
    return torch.stack(steps, 1).tolist()


def verdict(tokenizer, ids, item):
    """Text and judgement of one answer. Right = the fact is in it and it ended by itself."""
    ended = ids[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(ids[:-1] if ended else ids)
    sentence = text.startswith(" " + item["person"]) and text.endswith(".")
    return {"text": text, "ended": ended, "knows": item["fact"] in text,
            "form": ended and sentence, "right": ended and item["fact"] in text}


def judge(parts, tokenizer, items):
    answers = greedy(parts, tokenizer.eos_token_id)
    return [verdict(tokenizer, ids, item) for ids, item in zip(answers, items)]


def shares(verdicts):
    return {key: 100 * sum(v[key] for v in verdicts) / len(verdicts)
            for key in ("knows", "form", "right")}


def measure(base, expert, anti, target, tokenizer, items):
    """All rows of the table: name -> verdicts. `tokenizer` is the expert's, it has the template."""
    asked = [bare(tokenizer, item["question"]) for item in items]
    chats = [chat(tokenizer, item["question"]) for item in items]

    def proxy(alpha, prompts=asked):
        return [(base, prompts, 1.0), (expert, chats, alpha), (anti, prompts, -alpha)]

    runs = {"base": [(base, asked, 1.0)],
            "anti-expert": [(anti, asked, 1.0)],
            "expert": [(expert, chats, 1.0)]}
    runs |= {f"proxy-tuned, alpha {alpha:g}": proxy(alpha) for alpha in (0, 0.5, 1, 1.5, -1)}
    runs["proxy-tuned, alpha 1, chat marks for all three"] = proxy(1, chats)
    runs["large model tuned directly"] = [(target, chats, 1.0)]
    return {name: judge(parts, tokenizer, items) for name, parts in runs.items()}


@torch.no_grad()
def reference(base, expert, anti, tokenizer, item, alpha=1.0):
    """One proxy-tuned answer by the plainest possible loop: no cache, no batch."""
    prompts = {"bare": bare(tokenizer, item["question"]), "chat": chat(tokenizer, item["question"])}
    ids, margins = [], []
    while len(ids) < MAX_NEW and tokenizer.eos_token_id not in ids:
        def logits(model, prompt):
            return model(torch.tensor([prompt + ids]), use_cache=False).logits[0, -1]

        scores = logits(base, prompts["bare"]) + alpha * (
            logits(expert, prompts["chat"]) - logits(anti, prompts["bare"]))
        first, second = scores.topk(2).values.tolist()
        margins.append(first - second)
        ids.append(int(scores.argmax()))
    ended = ids[-1] == tokenizer.eos_token_id
    return {"question": item["question"], "bare_prompt_ids": prompts["bare"],
            "chat_prompt_ids": prompts["chat"], "answer_ids": ids,
            "answer": tokenizer.decode(ids[:-1] if ended else ids), "ended": ended,
            "smallest_margin": round(min(margins), 4)}
