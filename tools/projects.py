#!/usr/bin/env python3
"""Packs a model as each research project sets it up, and compares that with this project's own way of the same bits.

    python tools/projects.py models/glyphs --plot models/projects.png --table projects.md

For each model `packer calibrate` gathers sums over the inputs of its layers; every row is packed with them, evaluated
against the f32 file on noise that calibration has not seen, image by image, and timed against plain W4A8 in turns.  The
table is printed as Markdown; the plot has error of the network's calls, row by row.  `--keep DIR`
keeps the files and the figures; figures found there are not measured again.  Needs matplotlib for the plot.
"""

import json
import subprocess
from pathlib import Path

import quality
from quality import CRITERIA, ROOT, criterion, run

OURS = "this project"
# ViDiT-Q's timestep-wise mixed precision: 8 bits in the first quarter of the steps, then 4, and 8 for the wider layers.
STEPS = """default = "w8a8:min_max"
[[phases]]
from = 0.25
default = "w4a8:min_max"
[phases.layers]
"*.ff.*" = "w8a8:min_max"
"""
# Qua2SeDiMo's kind of mix, 3 and 4 bits by layer.
MIX = """default = "w4a{bits}:kmeans"
[layers]
"*.ff.*" = "w3a{bits}:kmeans"
"*.attn*.to_out*" = "w3a{bits}:mse"
"""
INTERVALS = ["--act-intervals", "5"]
# Of networks with skip connections.
SPLIT = "--split"
ROUNDING = ["--unit", "block", "--iters", "200"]
# Project, setting, specification or configuration, what else packing is told, what `packer reconstruct` is told (or none).
ROWS = [
    (OURS, "W8A8", "w8a8:kmeans", [], None),
    (OURS, "W4A8", "w4a8:kmeans", [], None),
    (OURS, "W3A8", "w3a8:kmeans", [], None),
    (OURS, "W6A6", "w6a6:kmeans", [], None),
    (OURS, "W4A6", "w4a6:kmeans", [], None),
    (OURS, "W4A6, smoothed", "w4a6:kmeans", ["--smooth", "search"], None),
    (OURS, "W4A6, rotated", "w4a6:kmeans", ["--rotate"], None),
    ("Q-Diffusion", "W4A8, AdaRound, fixed ranges", "w4a8:mse_80", [SPLIT, "--act-range", "mse"], ROUNDING),
    ("Q-Diffusion", "W4A8, AdaRound, a range per token", "w4a8:mse_80", [SPLIT], ROUNDING),
    ("Q-Diffusion", "the same, attention on grids of 8 bits", "w4a8:mse_80", [SPLIT, "--softmax-bits", "8", "--qkv-bits", "8"], ROUNDING),
    ("ViDiT-Q", "W8A8", "w8a8:min_max", [], None),
    ("ViDiT-Q", "W6A6, scaled and rotated", "w6a6:min_max", ["--smooth", "viditq:0.5", "--rotate"], None),
    ("ViDiT-Q", "W4A8, scaled and rotated", "w4a8:min_max", ["--smooth", "viditq:0.5", "--rotate"], None),
    ("ViDiT-Q", "W4A8, mixed by step", STEPS, [], None),
    ("TDQ", "W8A8, ranges by timestep", "w8a8:sym_max", ["--act-range", "min-max", "--act-axis", "timestep", "--act-sym", "--act-intervals", "10"], None),
    ("TDQ", "W8A6, ranges by timestep", "w8a6:sym_max", ["--act-range", "min-max", "--act-axis", "timestep", "--act-sym", "--act-intervals", "10"], None),
    ("TDQ", "W8A4, ranges by timestep", "w8a4:sym_max", ["--act-range", "min-max", "--act-axis", "timestep", "--act-sym", "--act-intervals", "10"], None),
    ("the course", "W8A8, ranges by step", "w8a8:sym_mse", ["--act-range", "mse", *INTERVALS], None),
    ("the course", "W8A8, ranges by step, 20 % pruned", "w8a8:sym_mse", ["--act-range", "mse", *INTERVALS, "--prune", "0.2"], None),
    ("Qua2SeDiMo", "W3.x A8", MIX.format(bits=8), [], None),
    ("Qua2SeDiMo", "W3.x A6", MIX.format(bits=6), [], None),
]
REFERENCE = "W4A8"


def file_name(project, setting):
    return "".join(c if c.isalnum() else "-" for c in f"{project} {setting}") + ".aqt"


def times(aquatint, files, turns):
    """Of each file, the ratio of its calls to those of the first, by turns in one process: the median and its interval."""
    command = [str(aquatint), "bench", *map(str, files), "--json", "--repeat", str(turns), "--batch-size", "8"]
    told = json.loads(subprocess.check_output(command))["files"]
    return {file.name: of["ratio"] for file, of in zip(files, told)}


def pack(packer, model, folder, prompts):
    """Packs every row into `folder`; returns the files, that of floats first."""
    quiet, calib = ["--quiet"], folder / "calib.safetensors"
    files = [folder / "f32.aqt"]
    run(packer, model, "--q-config", "f32", "-o", files[0], *quiet)
    run(packer, "calibrate", model, "-o", calib, *prompts, *quiet)
    shortcuts = (model / "unet").exists()
    for project, setting, spec, flags, rounding in ROWS:
        flags = [flag for flag in flags if shortcuts or flag != SPLIT]
        file = folder / file_name(project, setting)
        if "\n" in spec:
            config = file.with_suffix(".toml")
            config.write_text(spec)
            spec = config
        if rounding is not None:
            rounded = folder / "rounded.safetensors"
            if not rounded.exists():
                made = ["--calib", calib, *rounding, *prompts, *([SPLIT] if shortcuts else []), "-o", rounded, *quiet]
                run(packer, "reconstruct", model, "--q-config", spec, *made)
            flags = [*(flag for flag in flags if flag != SPLIT), "--import", rounded]
        run(packer, model, "--q-config", spec, "--calib", calib, *flags, "-o", file, *quiet)
        files.append(file)
    return files


def measure(tools, model, folder, args):
    """Packs `model` into `folder`; returns what evaluate reports of the files, and their times."""
    packer, aquatint = tools
    folder.mkdir(parents=True, exist_ok=True)
    figures, seconds = folder / "figures.json", folder / "times.json"
    if not figures.exists():
        prompts = ["--prompts", model / "prompts.txt"] if (model / "prompts.txt").exists() else []
        files = pack(packer, model, folder, prompts)
        scores = ["--classifier", model / "classifier.safetensors", "--score-n", args.score] if args.score else []
        at = ["--at", args.at] if args.at else []
        steps = ["--steps", args.steps] if args.steps else []
        run(packer, "evaluate", *files, *prompts, *scores, *at, *steps, "--n", args.images, "--json", figures, "--quiet")
    if args.turns and not seconds.exists():
        rows = [folder / file_name(project, setting) for project, setting, *_ in ROWS]
        reference = folder / file_name(OURS, REFERENCE)
        seconds.write_text(json.dumps(times(aquatint, [reference, *(file for file in rows if file != reference)], args.turns)))
    known = json.loads(seconds.read_text()) if seconds.exists() else {}
    return json.loads(figures.read_text()) | {"ratios": known}


def rows(report):
    """The figures of each row, in order."""
    by_name = {file["name"]: file for file in report["files"]}
    for project, setting, *_ in ROWS:
        name = file_name(project, setting)
        yield project, setting, by_name[name], report["ratios"].get(name)


def table(model, report):
    heads = ["project", "setting", "file", "eps error", "latents, median", "time of a call"]
    reads = criterion(report) if report["files"][0]["reads"] else None
    if reads:
        heads.insert(5, CRITERIA[reads])
    conditions = report["conditions"]
    shown = model.relative_to(ROOT) if model.is_relative_to(ROOT) else model
    lines = [
        f"`{shown}`: {conditions['images']} images compared, {conditions['scored']} read, {conditions['sampler']} of"
        f" {conditions['steps']} steps, guidance {conditions['guidance_scale']:g}; times against plain W4A8",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
    ]
    for project, setting, file, time in rows(report):
        eps, middle = (file["figures"][key]["value"] for key in ("eps", "latents_median"))
        cells = [project, setting, f"{file['bytes'] / 1e6:.2f} MB", f"{eps:.4f}", f"{middle:.3f}", "{median:.2f} ({low:.2f} to {high:.2f})".format(**time) if time else ""]
        if reads:
            share = file["reads"][reads]["share"]
            cells.insert(5, f"{100 * share['value']:.1f} % ({100 * share['low']:.1f} to {100 * share['high']:.1f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(reports, target):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, grid = plt.subplots(1, len(reports), figsize=(3.6 + 4.2 * len(reports), 0.3 * len(ROWS) + 1.2), dpi=110, sharey=True, squeeze=False)
    for (model, report), axes in zip(reports.items(), grid[0]):
        for at, (project, _, file, _) in enumerate(rows(report)):
            eps = file["figures"]["eps"]
            sides = [[eps["value"] - eps["low"]], [eps["high"] - eps["value"]]]
            colour = "#1f6f8b" if project == OURS else "#b5651d"
            axes.errorbar([eps["value"]], [at], xerr=sides, fmt="o", color=colour, markersize=5, capsize=2.5)
        axes.set_xscale("log")
        axes.set_xlabel(f"{model.name}: error of the network's calls")
        axes.grid(axis="x", which="both", color="#e9e9e9")
    names = [f"{project}: {setting}" for project, setting, *_ in ROWS]
    grid[0][0].set_yticks(range(len(names)), names)
    grid[0][0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(target)


def main():
    parser = quality.arguments(__doc__)
    parser.add_argument("--aquatint", type=Path, default=ROOT / "target/release/aquatint", help="(default: %(default)s)")
    parser.add_argument("--turns", type=int, default=50, help="calls of each file that are timed, 0 for none (default: %(default)s)")
    parser.add_argument("--at", help="network calls that are looked at, such as 2,13,25 (default: all)")
    parser.add_argument("--steps", type=int, help="steps of a run (default: the model's)")
    args = parser.parse_args()
    tools = (args.packer, args.aquatint)
    reports = quality.each(args, lambda model, folder: measure(tools, model, folder, args))
    quality.tell(args, reports, table)
    if args.plot:
        plot(reports, args.plot)


if __name__ == "__main__":
    main()
