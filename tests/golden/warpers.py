"""Writes warpers.json: what transformers' processors keep of 200 rows of logits, and the probabilities left.

    python tests/golden/warpers.py

Made with Python 3.11, torch 2.15.0, transformers 5.24.0, on a CPU. The rows are float32; a row whose kept set differs
in float64 stands on a threshold, and is drawn again.
"""

import json
import pathlib
import random

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

N_ROWS = 200


def settings(rng):
    """Each filter alone, and all together, in turn; neutral values are absent."""
    choices = {
        "temperature": rng.choice([0.3, 0.7, 1.3, 2.0]),
        "top_k": rng.choice([1, 2, 5, 20, 40]),
        "top_p": rng.choice([0.05, 0.3, 0.5, 0.8, 0.9, 0.95]),
        "min_p": rng.choice([0.01, 0.05, 0.1, 0.3]),
        "repetition_penalty": rng.choice([0.8, 1.1, 1.5]),
    }
    names = list(choices)
    wanted = rng.choice([[name] for name in names] + [names, names, rng.sample(names, 3)])
    return {name: choices[name] for name in names if name in wanted}


def processors(setting):
    """In the order of generate()."""
    made = {
        "repetition_penalty": RepetitionPenaltyLogitsProcessor,
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }
    return LogitsProcessorList([make(setting[name]) for name, make in made.items() if name in setting])


def row(rng, generator):
    while True:
        n_ids = rng.randrange(64, 257)
        setting = settings(rng)
        logits = torch.randn(1, n_ids, generator=generator) * rng.choice([1.0, 2.0, 4.0])
        prompt = [rng.randrange(n_ids) for _ in range(8)]
        seen = torch.tensor([prompt])
        processed = processors(setting)(seen, logits.clone())
        exact = processors(setting)(seen, logits.double())
        kept = processed[0].isfinite().nonzero()[:, 0].tolist()
        if kept == exact[0].isfinite().nonzero()[:, 0].tolist():
            probabilities = exact.softmax(-1)[0, kept]
            digits = lambda values, form: [float(form % value) for value in values]
            return {
                **setting,
                "prompt": prompt,
                "logits": digits(logits[0].tolist(), "%.9g"),
                "kept": kept,
                "probabilities": digits(probabilities.tolist(), "%.7g"),
            }


def main():
    rng, generator = random.Random(3), torch.Generator().manual_seed(3)
    rows = [json.dumps(row(rng, generator), separators=(",", ":")) for _ in range(N_ROWS)]
    path = pathlib.Path(__file__).with_name("warpers.json")
    path.write_text("[\n" + ",\n".join(rows) + "\n]\n")
    print(f"{path.name}: {N_ROWS} rows, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
