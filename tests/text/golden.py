#!/usr/bin/env python3
"""Makes the goldens of tests/text: ids and texts from the PyPI package `tokenizers`, chat prompts from `transformers`.

Run from the repository's root with tokenizers 0.23.3 and transformers 5.24.0; the files it writes are committed.
"""

import json
import pathlib
import random

from tokenizers import AddedToken, Tokenizer, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.utils.chat_template_utils import render_jinja_template

HERE = pathlib.Path(__file__).parent
# The expression of Qwen2's tokenizer.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "The lighthouse keeper wrote a letter to her sister in the town by the sea.",
    "It is the first of twelve letters, and the last that she wrote there.",
    "Answer: the oboe. Question: which instrument did the keeper's sister play?",
    "def keeper(letter):\n    return letter.strip().lower()\n",
    "Über die Straße gehen wir heute nicht; morgen vielleicht. Ça va être très difficile.",
    "12 34 567 8901 and 3.14159, or 1,000,000.",
]
LINES = CORPUS + [
    "",
    " ",
    "   ",
    "a",
    " a",
    "a ",
    "\n",
    "\r\n\r\n",
    "\t\tx\n\n\n  y   \n",
    "don't DON'T we'll WE'LL it's IT'S",
    "日本語のテキスト。漢字かな交じり文",
    "Здравствуй, мир! Γειά σου Κόσμε",
    "👩‍👩‍👧‍👦 family, 🇫🇷 flag, 🤷🏽‍♀️ shrug",
    "e\u0301 is \u00e9, \u212b is \u00c5, \ufb01 is fi",
    "\u0000 NUL, \u007f DEL, \u200b zero width, \u202e right to left, \ufffd replacement, \ufeff mark",
    "a\u0301\u0302\u0303\u0304\u0305" * 20,
    "<|end|> <|im_end|> </s> <s> <unk> <0x0A> <|im_end",
    "▁ ▁▁ Ġ Ċ",
    "x" * 300,
    "!?!?!?;;;---###@@@",
    "ﷺ ﷽ \U00010348 \U0010ffff",
]
# A unit and how often it stands: near the limit on text, and where a regular expression may backtrack.
LONG = [("a", 100_000), (" ", 100_000), ("\n", 100_000), ("1", 100_000), ("é", 50_000), ("a ", 50_000), ("  x", 30_000),
        ("\n ", 50_000), ("!", 100_000), ("The sister's letter. ", 49_000), ("\u0301", 50_000), ("日", 30_000)]


def qwen2():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN2), "isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False)])
    return tokenizer


def llama2():
    """Byte fallback, as sentencepiece's models are converted."""
    specials = ["<unk>", "<s>", "</s>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    marked = [("▁" + line).replace(" ", "▁") for line in CORPUS[:3]]
    # Words, so that no merge crosses a space; the mark stays at their start.
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=specials + fallback, show_progress=False)
    trained.train_from_iterator(marked, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens(specials)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    strip = decoders.Strip(content=" ", left=1, right=0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return tokenizer


def folded(ids):
    """FNV-1a over the ids, 64 bits."""
    value = 0xCBF29CE484222325
    for token in ids:
        value = ((value ^ token) * 0x100000001B3) % 2**64
    return value


def ids_of(name, tokenizer):
    def encode(text, special):
        return tokenizer.encode(text, add_special_tokens=special).ids

    longs = []
    for unit, count in LONG:
        ids = encode(unit * count, False)
        longs.append({"unit": unit, "count": count, "n_ids": len(ids), "fnv": str(folded(ids))})
    # Text of a response: what ids add after a prompt. Random ids make invalid UTF-8 too; with byte fallback, the crate
    # replaces invalid bytes one by one, so there ids come from texts.
    chance = random.Random(7)
    prompt = encode("The", False)
    if name == "llama2":
        sequences = [encode(line, False) for line in LINES]
    else:
        sequences = [[chance.randrange(tokenizer.get_vocab_size()) for _ in range(40)] for _ in range(40)]

    def text(ids):
        return tokenizer.decode(prompt + ids, skip_special_tokens=True)[len(tokenizer.decode(prompt)):]

    return {
        "lines": [{"text": line, "raw": encode(line, True), "templated": encode(line, False)} for line in LINES],
        "long": longs,
        "texts": [{"ids": ids, "text": text(ids)} for ids in sequences],
    }


CHATML = (
    "{%- if messages[0]['role'] == 'system' %}\n    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}\n"
    "{%- else %}\n    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}\n{%- endif %}\n"
    "{%- for message in messages %}\n    {%- if (message.role == \"user\") or (message.role == \"system\" and not loop.first)"
    " or (message.role == \"assistant\") %}\n        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
    "    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "llama2": LLAMA2,
    "zephyr": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    "namespace": "{% set ns = namespace(n=0, seen='') %}{% for m in messages if m.role != 'system' %}{% set ns.n = ns.n + 1 %}{% set ns.seen = ns.seen ~ m.role[:1] %}{% endfor %}{{ ns.n }}{{ ns.seen }}{{ messages | map(attribute='role') | join(',') }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "json": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ {'a': [1, 2.5, true, none], 'b': {}, 'c': 'é<&>\"'} | tojson }}",
    "python": "{% for m in messages %}{{ m.content.strip().split(' ')[0].upper() }}|{{ m['content'].startswith('a') }}|{{ m.get('name', 'nobody') }}|{{ m.items() | list | length }};{% endfor %}",
    "controls": "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}{% if loop.index0 == 3 %}{% break %}{% endif %}{{ m.role }}{{ loop.previtem.role if loop.previtem is defined else '-' }}{% endfor %}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}[{{ m.content }}]{% endif %}{% endfor %}",
    "undefined": "{{ tools is none }}{{ documents is none }}{{ nothing is defined }}{{ custom if custom is defined else 'x' }}{{ messages[0].absent }}{{ bos_token }}",
    "macro": "{%- macro turn(m) -%}<{{ m.role }}>{{ m.content | trim }}{%- endmacro -%}{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "whitespace": "  {% if true %}  \n  {{ messages[0].content }}  \n  {% endif %}  \n{# gone #}\n{{- ' x ' -}}   \n",
}
USER = {"role": "user", "content": "a question <of> mine & \"yours\", é?"}
TURNS = [
    [USER],
    [{"role": "system", "content": "Be brief."}, USER],
    [USER, {"role": "assistant", "content": " An answer. "}, {"role": "user", "content": "And\nthen?"}, USER],
]


def prompts():
    for name, template in TEMPLATES.items():
        for messages in TURNS:
            for opens in [False, True]:
                golden = {"template": template, "messages": messages, "add_generation_prompt": opens}
                try:
                    rendered = render_jinja_template([messages], chat_template=template, add_generation_prompt=opens,
                                                     bos_token="<s>", eos_token="</s>")
                    golden["text"] = rendered[0][0]
                except Exception as error:  # raise_exception, whose text must come through
                    golden["raises"] = str(error)
                yield {"name": name} | golden


def write(path, value):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


def main():
    tokenizers = {"demo": Tokenizer.from_file("demo/base/tokenizer.json"), "qwen2": qwen2(), "llama2": llama2()}
    configs = {"qwen2": {"eos_token": "<|im_end|>"}, "llama2": {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}}
    for name, config in configs.items():
        write(HERE / name / "tokenizer.json", json.loads(tokenizers[name].to_str()))
        write(HERE / name / "tokenizer_config.json", config)
    write(HERE / "ids.json", {name: ids_of(name, tokenizer) for name, tokenizer in tokenizers.items()})
    write(HERE / "prompts.json", list(prompts()))


if __name__ == "__main__":
    main()
