#!/usr/bin/env python3
"""Makes clip_merges.txt.gz from the vocabulary file that `pip install open_clip_torch` (or OpenAI's CLIP) brings along.

    python make_clip_merges.py .../open_clip/bpe_simple_vocab_16e6.txt.gz

The file lists 262,144 merges after a line that names its version; CLIP uses the first 48,894 of them, which with 2 x 256
bytes and two marks make its 49,408 tokens.
"""

import gzip
import pathlib
import sys

MERGES = 49_408 - 2 * 256 - 2

lines = gzip.open(sys.argv[1], "rt", encoding="utf-8").read().split("\n")[1 : MERGES + 1]
assert len(lines) == MERGES and all(len(line.split(" ")) == 2 for line in lines)
text = "".join(line + "\n" for line in lines)
out = pathlib.Path(__file__).with_name("clip_merges.txt.gz")
out.write_bytes(gzip.compress(text.encode("utf-8"), compresslevel=9, mtime=0))
print(out, out.stat().st_size, "bytes")
