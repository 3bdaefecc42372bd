#!/usr/bin/env python3
"""Makes the golden files of weighted prompts.

    python3 -m venv venv && venv/bin/pip install torch transformers==5.23.0 safetensors compel==2.5.1
    venv/bin/python crates/pipeline/tests/golden/make_prompt_weights.py

prompt_weights/            a tiny CLIP text encoder of random weights with a tokenizer of few merges, in diffusers' layout
prompt_weights.safetensors hidden states: `a1111.N` by the restatement of AUTOMATIC1111 1.10 below, `compel.N` by compel itself
                           (`compel_long.N`: without truncation)
prompt_weights.json        the prompts, by the same names
compel_prompts.jsonl       prompts with the fragments that compel's parser makes of them
"""

import json
import pathlib
import re

import torch
from compel import Compel
from compel.prompt_parser import Fragment, PromptParser
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

HERE = pathlib.Path(__file__).parent
MODEL = HERE / "prompt_weights"
WORDS = ["cat", "dog", "mat", "hat", "on", "big", "red", "the", "sun", "BREAK".lower()]
START, END = "<|startoftext|>", "<|endoftext|>"

A1111 = [
    "a cat on a mat",
    "a (cat:1.4) on a [mat], ((sun))",
    r"(a \(red\) cat:1.2), [the [dog]] (unclosed",
    "(red cat:1.3) BREAK the dog BREAK (sun:0.6)",
    "cat dog, " * 20 + "(the big red cat on a mat:1.3), " * 5 + "sun",
    "(cat:-0.5) [[[dog]]] a:b) c]",
    "",
]
COMPEL = [
    "a cat on a mat",
    "a cat++ on a mat",
    "a cat-- on a mat",
    'a (big red cat)0.5 on a mat++, "the dog"1.3',
    "a (big (red)-- cat)1.2, (sun)0.0",
    "the dog " * 30 + "(cat on a mat)0.6 " * 3,
    "the dog " * 24 + "(cat on a mat in the sun with a big red hat)0.4 and (more)0.5",
]
COMPEL_LONG = [
    "the dog " * 20 + "sun. " + "(red cat)1.4 on a mat, " * 8,
    "the dog, " * 24 + "(cat on a mat in the sun with a big red hat)0.4 and dog " * 2,
]
TABLE = [
    "a cat", "a cat++", "a cat++ on a mat--", "a (big cat)1.3 here", "a (big cat)+++", "(a (big)++ cat)0.5", "a cat+ +",
    "++", "+", "a - b", "a-b", "well-known", "x--y", "x-", "(x)-", "(x) -", "a, b,c", "a.b", "hello. world",
    '"quoted text"++', '"quoted" x', "a (b", "a) b", "(", "cat1.3", "(cat)1", "(cat)-1", "(cat)1.", "cat.", "3.5 cats",
    "a (cat).attend(1.3)", "cat.attend(+)", "cat.attend(++) x", r"esc \( paren \)", r"\+x", "a+b", "a++b", "c++",
    "c++, d--", "a=b", "a ((b))", "((b)+)+", "(a)1.2(b)0.8", "(a b)1.2 c", "x++.", "x++,y", "50%", "it's", "(it's)1.1",
    "naïve++", "-x", "+x", "--x", "-- x", "x -y", "[b]", "{x}", "a\nb++", "(cat)++ ++", "(a)b", "(a)+b", "(a)1b", '"a"b',
    '"a', 'a"', '("a" b)1.1', "(a.b)1.1", "(a,b)1.1", "1girl, (solo)1.3", "(a:1.2)", r"a\,b", r'\"x\"', "a.", ".a", "a..b",
    "1.5", "cat 1.5 dog", "(cat)1.5dog", "(cat)1e3", "(cat)+1.5", "(cat) 1.5", "x.y++", "a (b c)++ (d)-- e, f", "(a - b)1.2",
    "(a=b)1.2", "(a -b)1.2", "(a- b)1.2", "a(b)1.2", "(a)(b)++", "((a)(b)0.5)2", '"a (b)++"1.2', '"a - b"1.1', '(a "b c"++)2',
    "(a)  ++", "(a).attend( 1.5 )", "(a).attend(x)", "a.attend", "(a).5", "(a).5.5", "(a)--- b", "a---b", "a--, b", "a ,b",
    "a,,b", ",,,", "a\t(b)\n++", "  a  ", "(  a  )1.2", "猫++ (犬)0.5", "a\\", "a\\\\(b)", r"\(a\)++", r"(\(a\))1.3",
    "((((a))))+", "(a (b (c)0.5)0.5)0.5", "a+++ b", "(a+ b-)1.5", "word-- -other", '""', '"" a', "(a)1.25e", "(a)01.50",
]


def tokenizer():
    """Bytes as CLIP writes them, and merges up to the words above."""
    letters = list(range(ord("!"), ord("~") + 1)) + list(range(ord("¡"), ord("¬") + 1)) + list(range(ord("®"), ord("ÿ") + 1))
    signs = [chr(letter) for letter in letters] + [chr(256 + n) for n in range(256 - len(letters))]
    merges = []
    for word in WORDS:
        parts = list(word[:-1]) + [word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = [parts[0] + parts[1]]
    merges = list(dict.fromkeys(merges))
    tokens = signs + [sign + "</w>" for sign in signs] + [a + b for a, b in merges] + [START, END]
    folder = MODEL / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return CLIPTokenizer.from_pretrained(folder), len(tokens)


def encoder(vocabulary):
    torch.manual_seed(11)
    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, projection_dim=16, bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    config._attn_implementation = "eager"
    model = CLIPTextModel(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.2)
    model.save_pretrained(MODEL / "text_encoder")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    (MODEL / "model_index.json").write_text(json.dumps(index))
    return model


def fragments(prompt):
    """(text, weight) of a prompt in AUTOMATIC1111's syntax, restated: signs are taken from the left, one at a time."""
    found, opened = [], {"(": [], "[": []}
    factor = {"(": 1.1, "[": 1 / 1.1}

    def close(bracket, by):
        for entry in found[opened[bracket].pop() :]:
            entry[1] *= by

    at = 0
    while at < len(prompt):
        sign = prompt[at]
        weight = re.compile(r":\s*([+-]?[\d.]+)\s*\)").match(prompt, at)
        if sign == "\\":
            taken = prompt[at + 1 : at + 2]
            found.append([taken if taken in tuple("()[]\\") else "", 1.0])
            at += 2 if found[-1][0] else 1
        elif sign in opened:
            opened[sign].append(len(found))
            at += 1
        elif weight and opened["("]:
            close("(", float(weight[1]))
            at = weight.end()
        elif sign == ")" and opened["("]:
            close("(", factor["("])
            at += 1
        elif sign == "]" and opened["["]:
            close("[", factor["["])
            at += 1
        else:
            text = weight[0] if weight else (re.compile(r"[^\\()\[\]:]+").match(prompt, at) or [sign])[0]
            for number, part in enumerate(re.split(r"\s*\bBREAK\b\s*", text)):
                found += [["BREAK", -1.0]] * (number > 0) + [[part, 1.0]]
            at += len(text)
    for bracket in "([":
        while opened[bracket]:
            close(bracket, factor[bracket])
    merged = []
    for text, weight in found or [["", 1.0]]:
        if merged and merged[-1][1] == weight:
            merged[-1][0] += text
        else:
            merged.append([text, weight])
    return merged


def a1111(prompt, words, model):
    """Rows of 75 tokens, which end behind a comma among their last 20, states times weights with the mean brought back."""
    comma = words(",", add_special_tokens=False).input_ids[0]
    rows, row = [], []

    def end():
        rows.append(list(row))
        row.clear()

    for text, weight in fragments(prompt):
        if text == "BREAK" and weight == -1.0:
            end()
            continue
        for token in words(text, add_special_tokens=False).input_ids if text else []:
            commas = [number for number, (other, _) in enumerate(row) if other == comma]
            if len(row) == 75 and token != comma and commas and 75 - commas[-1] <= 20:
                moved = row[commas[-1] + 1 :]
                del row[commas[-1] + 1 :]
                end()
                row.extend(moved)
            if len(row) == 75:
                end()
            row.append((token, weight))
    if row or not rows:
        end()
    states = []
    for row in rows:
        padding = 76 - len(row)
        ids = [words.bos_token_id] + [token for token, _ in row] + [words.eos_token_id] * padding
        weights = torch.tensor([1.0] + [weight for _, weight in row] + [1.0] * padding)
        z = model(torch.tensor([ids])).last_hidden_state
        weighted = z * weights[None, :, None]
        states.append(weighted * (z.mean() / weighted.mean()))
    return torch.cat(states, 1)


def parsed(prompt):
    prompts = PromptParser().parse_conjunction(prompt).prompts
    assert len(prompts) == 1 and all(isinstance(child, Fragment) for child in prompts[0].children), prompt
    return [(child.text, round(child.weight, 6)) for child in prompts[0].children]


@torch.no_grad()
def main():
    words, vocabulary = tokenizer()
    model = encoder(vocabulary)
    states, prompts = {}, {}
    compel = {truncate: Compel(words, model, truncate_long_prompts=truncate, device="cpu") for truncate in (True, False)}
    for name, all_prompts, encode in (
        ("a1111", A1111, lambda prompt: a1111(prompt, words, model)),
        ("compel", COMPEL, compel[True]),
        ("compel_long", COMPEL_LONG, compel[False]),
    ):
        for number, prompt in enumerate(all_prompts):
            prompts[f"{name}.{number}"] = prompt
            states[f"{name}.{number}"] = encode(prompt).contiguous()
    save_file(states, HERE / "prompt_weights.safetensors")
    (HERE / "prompt_weights.json").write_text(json.dumps(prompts, indent=1, ensure_ascii=False) + "\n")
    lines = (json.dumps([prompt, parsed(prompt)], ensure_ascii=False) + "\n" for prompt in TABLE)
    (HERE / "compel_prompts.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
