#!/usr/bin/env python3
"""What ways of quantizing cost when they run: packs a model plainly and with each of them, and times calls in turns.

    packer synth dit-xl-2-256 -o xl
    packer calibrate xl --cali-n 1 --cali-st 1 --steps 2 -o xl.safetensors
    python tools/overheads.py xl --calib xl.safetensors

Every way has the same bits, so what it takes longer is its own cost. All files are called by turns in one process. A row has, for
whole calls and for the layers that a way changes (products of codes, and making codes and norms), the median over turns of the
ratio to the plain file, and in brackets the interval that holds the true median in 95 of 100 such runs. A second file packed plainly
says how far noise goes. What packing refuses is left out, with its reason.
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
    ("plain again", [], False),
    ("one fixed range per layer", ["--act-range", "min-max"], True),
    ("fixed ranges, five intervals", ["--act-range", "min-max", "--act-intervals", "5"], True),
    ("smoothed, folded", ["--smooth", "0.5", "--smooth-layers", "*.attn*.to_*"], True),
    ("smoothed, factors when codes are made", ["--smooth", "0.5", "--smooth-layers", "*.ff.net.2"], True),
    ("rotated", ["--rotate"], False),
    ("split shortcuts", ["--split"], False),
]
# Ops between one layer's result and the next one's.
LAYERS = ("linear", "conv", "quantize", "norm", "gated")


def bench(aquatint, files, batch, turns):
    command = [str(aquatint), "bench", *map(str, files), "--json", "--repeat", str(turns), *batch]
    return json.loads(subprocess.check_output(command))["files"]


def seconds(report):
    """Of each turn, the call, and what of one more call its layers take."""
    ops = [of for op, of in report["ops"].items() if any(word in op for word in LAYERS)]
    return [report["calls"], [sum(turn) for turn in zip(*ops)]]


def ratio(mine, plain):
    """The median of the ratios of each turn, and the order statistics around it."""
    ratios = sorted(a / b for a, b in zip(mine, plain))
    low = max(0, int((len(ratios) - 1 - 1.96 * len(ratios) ** 0.5) / 2))
    return f"{statistics.median(ratios):.3f} ({ratios[low]:.3f} to {ratios[-1 - low]:.3f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, help="a calibration; without one, ways that need it are left out")
    parser.add_argument("--q-config", default="w4a8:max", help="(default: %(default)s)")
    parser.add_argument("--turns", type=int, default=40, help="calls of each file that are timed (default: %(default)s)")
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
        reports = dict(zip(files, map(seconds, bench(args.bin / "aquatint", files.values(), batch, args.turns))))
        print("| way | file | call | its layers |\n|---|---|---|---|")
        for way, file in files.items():
            columns = [ratio(mine, plain) for mine, plain in zip(reports[way], reports["plain"])]
            print(f"| {way} | {file.stat().st_size / 1e6:.1f} MB | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
