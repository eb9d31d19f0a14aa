"""A tokenizer of CLIP's kind, byte-level pair encoding in lower case, with one token for each word of the captions."""

import json
import re
from collections import Counter
from itertools import pairwise

from words_render import COLOURS, STYLES, WORDINGS

BEGIN, END, TOKENS = "<|startoftext|>", "<|endoftext|>", 77


def byte_signs():
    """The 256 characters that stand for bytes in CLIP's vocabulary, in the order of its ids: the printed first."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return [chr(byte) for byte in printed] + [chr(0x100 + i) for i in range(len(others))]


def merge(parts, pair):
    """A word's parts with every occurrence of the pair joined."""
    out = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def learn_merges(words):
    """Byte pair encoding's merges, the most frequent pair first, until every word is one token."""
    split = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while any(len(parts) > 1 for parts in split):
        counts = Counter(pair for parts in split for pair in pairwise(parts))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        split = [merge(parts, best) for parts in split]
    return merges


def write_tokenizer(folder):
    """Writes vocab.json, merges.txt and what transformers needs beside them; returns the number of tokens."""
    names = {"letter": "", "ink": " ".join(COLOURS), "background": "", "style": " ".join(STYLES)}
    words = {word for wording in WORDINGS for word in re.findall(r"[a-z]+", wording.format(**names))}
    merges = learn_merges(sorted(words))
    signs = byte_signs()
    tokens = [*signs, *(f"{sign}</w>" for sign in signs), *map("".join, merges), BEGIN, END]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    marks = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, **marks}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(marks, indent=2) + "\n")
    return len(tokens)
