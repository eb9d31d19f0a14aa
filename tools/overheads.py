#!/usr/bin/env python3
"""What ways of quantizing cost when they run: packs a model plainly and with each of them, and times calls in turns.

    packer synth dit-xl-2-256 -o xl
    packer calibrate xl --cali-n 1 --cali-st 1 --steps 2 -o xl.safetensors
    python tools/overheads.py xl --calib xl.safetensors

Every way has the same bits, so what it takes longer is its own cost. A round times each file once, in an order that turns. A
row has, for whole calls and for the layers it changes (products of codes, and making codes and norms), the ratio of the least
times of all rounds, which other work on the machine disturbs least, and in brackets the median over rounds of the ratio to the
plain file of the same round: where the two differ, the machine was too noisy to tell. What packing refuses is left out, with
its reason.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Way, what packing is told, whether it needs a calibration.
WAYS = [
    ("plain", [], False),
    ("one fixed range per layer", ["--act-range", "min-max"], True),
    ("fixed ranges, five intervals", ["--act-range", "min-max", "--act-intervals", "5"], True),
    ("smoothed, folded", ["--smooth", "0.5", "--smooth-layers", "*.attn*.to_*"], True),
    ("smoothed, factors when codes are made", ["--smooth", "0.5", "--smooth-layers", "*.ff.net.2"], True),
    ("rotated", ["--rotate"], False),
    ("split shortcuts", ["--split"], False),
]
# Ops between one layer's result and the next one's.
LAYERS = ("linear", "conv", "quantize", "norm", "gated")


def bench(aquatint, file, batch, repeat):
    command = [str(aquatint), "bench", str(file), "--json", "--no-decode", "--repeat", str(repeat), *batch]
    return json.loads(subprocess.check_output(command, stderr=subprocess.DEVNULL))["denoiser"]


def seconds(report):
    """The best call, and what of the median one layers take."""
    layers = sum(time for op, time in report["ops"].items() if any(word in op for word in LAYERS))
    return report["best"], layers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, help="a calibration; without one, ways that need it are left out")
    parser.add_argument("--q-config", default="w4a8:max", help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=2, help="calls of a file in a round (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, help="images of a call")
    parser.add_argument("--keep", type=Path, help="a folder for packed files; those found there are not packed again")
    parser.add_argument("--bin", type=Path, default=ROOT / "target/release", help="where packer and aquatint are")
    args = parser.parse_args()
    batch = ["--batch-size", str(args.batch_size)] if args.batch_size else []
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        files = {}
        for way, flags, calibrated in WAYS:
            if calibrated and not args.calib:
                continue
            file = folder / ("".join(c if c.isalnum() else "-" for c in way) + ".aqt")
            calib = ["--calib", str(args.calib)] if calibrated else []
            command = [str(args.bin / "packer"), str(args.model), "--q-config", args.q_config, *calib, *flags, "-o", str(file), "--quiet"]
            packed = None if file.exists() else subprocess.run(command, stderr=subprocess.PIPE, text=True)
            if packed and packed.returncode:
                print(f"{way}: left out, {packed.stderr.strip()}", file=sys.stderr)
                continue
            files[way] = file
        rounds = []
        for i in range(args.rounds):
            order = list(files)[i % len(files) :] + list(files)[: i % len(files)]
            rounds.append({way: seconds(bench(args.bin / "aquatint", files[way], batch, args.repeat)) for way in order})
            print(f"round {i + 1} of {args.rounds}: plain {rounds[-1]['plain'][0]:.3f} s", file=sys.stderr)
        print("| way | file | call | its layers |\n|---|---|---|---|")
        for way, file in files.items():
            medians = [statistics.median(r[way][k] / r["plain"][k] for r in rounds) for k in (0, 1)]
            least = [min(r[way][k] for r in rounds) / min(r["plain"][k] for r in rounds) for k in (0, 1)]
            columns = [f"{a:.3f} ({b:.3f})" for a, b in zip(least, medians)]
            print(f"| {way} | {file.stat().st_size / 1e6:.1f} MB | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
