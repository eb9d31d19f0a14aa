#!/usr/bin/env python3
"""Holds a search for bits against other ways to spend the same bytes, from a model directory to tables and pages.

    python tools/contest.py models/glyphs --out contest --score
    python tools/contest.py models/words --out contest-words --prompts models/words/prompts.txt

Calibrates, measures sensitivities, measures random configurations, lets `packer compare` judge all ways by images that nothing was chosen
by, and tells which kinds of layers matter. What is there already is not made again, so an interrupted run goes on. Needs nothing but
Python and the two programs.
"""

import argparse
import subprocess
from pathlib import Path


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--prompts", type=Path, help="captions, for models that read texts")
    parser.add_argument("--choices", default="w2a8:kmeans,w3a8:kmeans,w4a8:kmeans,w8a8")
    parser.add_argument("--at-bits", default="2.5,3,3.5,4")
    parser.add_argument("--num-archs", default="300", help="random configurations, from which a predictor learns")
    parser.add_argument("--moves", default="80", help="measured moves from what the search finds")
    parser.add_argument("--n", default="128", help="images that judge")
    parser.add_argument("--score", action="store_true", help="let the model's classifier read pictures, too")
    parser.add_argument("--bin", type=Path, default=Path("target/release"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    packer, out = args.bin / "packer", args.out
    prompts = ["--prompts", args.prompts] if args.prompts else []

    def run(target, *command):
        if target.exists():
            print(f"{target}: there")
            return
        subprocess.run([packer, *command, *prompts], check=True)

    calib, found, choices = out / "calib.safetensors", out / "sensitivity.json", out / "choices.aqt"
    run(calib, "calibrate", args.model, "-o", calib, "-q")
    sensitivity = ["--choices", args.choices, "--calib", calib, "-o", found, "--html", out / "sensitivity.html", "-q"]
    run(found, "sensitivity", args.model, *sensitivity, "--keep", choices)
    archive = out / "quant_cache.pkl"
    subprocess.run(
        [packer, "archive", found, "--choices", choices, "--num-archs", args.num_archs, "-o", archive, *prompts], check=True
    )
    judges = []
    if args.score:
        judges = ["--classifier", args.model / "classifier.safetensors"]
        reference = args.model / "reference.safetensors"
        judges += ["--reference-features", reference] if reference.exists() else []
    subprocess.run([packer, "insights", found, "--html", out / "insights.html"], check=True)
    compare = ["--choices", choices, "--archive", archive, "--at-bits", args.at_bits, "--moves", args.moves, "--n", args.n]
    run(out / "contest.json", "compare", found, *compare, *judges, "-o", out / "contest.json", "--html", out / "contest.html")


if __name__ == "__main__":
    main()
