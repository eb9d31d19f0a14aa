#!/usr/bin/env python3
"""Measures what bits cost: packs a model at 8, 4, 3 and 2 bits, by nearest values and calibrated, and compares them.

    python tools/quality.py                          # models/glyphs, and models/words if it is there
    python tools/quality.py models/glyphs --plot models/quality.png --table quality.md

For each model `packer calibrate` gathers sums over the inputs of its layers, `packer` packs it with f32 and with
k-means codebooks of 8, 4, 3 and 2 bits and 8-bit activations, with and without these sums, and `packer evaluate`
compares all files with the f32 one: on noise that calibration has not seen, image by image.  The table is printed as
Markdown; the plot has a row of two panels for each model: error of the network's calls, and images read right, both
against the size of the file.  `--keep DIR` keeps the files and the figures (evaluate's JSON); figures found there are
not measured again.  Needs matplotlib for the plot.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BITS = [8, 4, 3, 2]
WAYS = {"nearest": "nearest value", "calibrated": "calibrated"}
COLOURS = {"nearest": "#b5651d", "calibrated": "#1f6f8b"}
# What is read in images, the first that a model is scored by: of words letter and both colours must be right.
CRITERIA = {"all": "letters and colours read right", "class": "letters read right"}


def run(packer, *args):
    command = [str(packer), *map(str, args)]
    print("$", " ".join(command), file=sys.stderr, flush=True)
    if subprocess.run(command).returncode:
        sys.exit(f"{' '.join(command)} failed")


def measure(packer, model, folder, ways, images, scored):
    """Packs `model` into `folder` and returns what `packer evaluate` reports of the files, as a dictionary."""
    folder.mkdir(parents=True, exist_ok=True)
    report = folder / "figures.json"
    if report.exists():
        return json.loads(report.read_text())
    prompts = ["--prompts", model / "prompts.txt"] if (model / "prompts.txt").exists() else []
    quiet = ["--quiet"]
    files = [folder / "f32.aqt"]
    run(packer, model, "--q-config", "f32", "-o", files[0], *quiet)
    if "calibrated" in ways:
        run(packer, "calibrate", model, "-o", folder / "calib.safetensors", *prompts, *quiet)
    for way in ways:
        calib = ["--calib", folder / "calib.safetensors"] if way == "calibrated" else []
        for bits in BITS:
            files.append(folder / f"w{bits}a8-{way}.aqt")
            run(packer, model, "--q-config", f"w{bits}a8:kmeans", *calib, "-o", files[-1], *quiet)
    scores = ["--classifier", model / "classifier.safetensors", "--score-n", scored]
    if (model / "reference.safetensors").exists():
        scores += ["--reference-features", model / "reference.safetensors"]
    run(packer, "evaluate", *files, *prompts, *scores, "--n", images, "--json", report, *quiet)
    return json.loads(report.read_text())


def criterion(report):
    return next(name for name in CRITERIA if name in report["files"][0]["reads"])


def series(report, way):
    """The reports of the files that were packed in one way, from many bits to few."""
    return [file for file in report["files"] if file["name"].endswith(f"-{way}.aqt")]


def row(file, name):
    """A row of the table."""
    title = file["name"].removesuffix(".aqt")
    title = title.replace("-nearest", ":kmeans").replace("-calibrated", ":kmeans, calibrated")
    read = file["reads"][name]["share"]
    cells = [title, f"{file['bytes'] / 1e6:.2f} MB"]
    if file["figures"]:
        eps, middle, tail = (file["figures"][key] for key in ("eps", "latents_median", "latents_p90"))
        cells += [f"{eps['value']:.4f}", f"{middle['value']:.3f} / {tail['value']:.3f}"]
    else:
        cells += ["", ""]
    cells.append(f"{100 * read['value']:.1f} %")
    if file["comparisons"]:
        paired = file["comparisons"][0]["reads"][name]
        p = "< .001" if paired["p"] < 0.0005 else f"{paired['p']:.3f}".lstrip("0")
        cells.append(f"{paired['lost']} / {paired['won']} ({p})")
    else:
        cells.append("")
    if file["frechet"]:
        cells.append(f"{file['frechet']['corrected']['value']:.1f}")
    return "| " + " | ".join(cells) + " |"


def table(model, report):
    name = criterion(report)
    conditions = report["conditions"]
    heads = ["weights, activations", "file", "eps error", "latents: median / p90", CRITERIA[name], "lost / won (p)"]
    if report["files"][0]["frechet"]:
        heads.append("Fréchet, corrected")
    lines = [
        f"`{model.relative_to(ROOT) if model.is_relative_to(ROOT) else model}`: {conditions['images']} images compared,"
        f" {conditions['scored']} read, {conditions['sampler']} of {conditions['steps']} steps,"
        f" guidance {conditions['guidance_scale']:g}, seeds from {conditions['seeds'][0]}",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
        *(row(file, name) for file in report["files"]),
    ]
    return "\n".join(lines)


def spread(estimates, factor=1.0):
    """Values of estimates and the lengths of their intervals to both sides."""
    values = [factor * e["value"] for e in estimates]
    sides = [[factor * (e["value"] - e["low"]) for e in estimates], [factor * (e["high"] - e["value"]) for e in estimates]]
    return values, [[max(side, 0) for side in row] for row in sides]


def panel(axes, report, ways, of, factor, above):
    """Draws one figure of the files against their sizes, a line for each way of packing."""
    for way in ways:
        files = series(report, way)
        sizes = [file["bytes"] / 1e6 for file in files]
        values, sides = spread([of(file) for file in files], factor)
        axes.errorbar(sizes, values, sides, fmt="o-", color=COLOURS[way], markersize=5, capsize=2.5, label=WAYS[way])
        # Names stand right of the line that is worse, on its outer side: both ways have the same bits.
        if way == ways[0]:
            for bits, size, value in zip(BITS, sizes, values):
                offset = (7, 3) if above else (8, -13)
                axes.annotate(f"w{bits}a8", (size, value), xytext=offset, textcoords="offset points")
    axes.set_xscale("log")
    axes.set_xlabel("packed file, MB")
    axes.grid(axis="y", color="#e4e4e4")


def plot(reports, ways, target):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, grid = plt.subplots(len(reports), 2, figsize=(9.6, 3.5 * len(reports)), dpi=110, squeeze=False)
    for (model, report), (left, right) in zip(reports.items(), grid):
        name = criterion(report)
        panel(left, report, ways, lambda file: file["figures"]["eps"], 1.0, above=True)
        left.set_yscale("log")
        left.set_ylabel("error of the network's calls")
        panel(right, report, ways, lambda file: file["reads"][name]["share"], 100.0, above=False)
        f32 = 100 * report["files"][0]["reads"][name]["share"]["value"]
        right.axhline(f32, color="#888888", linewidth=1, linestyle=":", label=f"f32, {report['files'][0]['bytes'] / 1e6:.1f} MB")
        right.set_ylabel(f"{CRITERIA[name]}, %")
        low = min(file["reads"][name]["share"]["low"] for way in ways for file in series(report, way))
        right.set_ylim(100 * low - 9, 104)
        right.legend(loc="lower right", frameon=False)
        for axes in (left, right):
            sizes = sorted({file["bytes"] / 1e6 for way in ways for file in series(report, way)})
            axes.set_xlim(0.94 * sizes[0], 1.15 * sizes[-1])
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())
            step = 0.5 if sizes[-1] < 6 else 1 if sizes[-1] < 12 else 10 ** len(str(int(sizes[-1])).strip("-")) / 20
            first = int(sizes[0] / step)
            ticks = [step * i for i in range(first, first + 40) if sizes[0] * 0.94 <= step * i <= sizes[-1] * 1.15]
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        left.yaxis.set_minor_formatter(NullFormatter())
        ticks = [t for t in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1) if left.get_ylim()[0] <= t <= left.get_ylim()[1]]
        left.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        if len(reports) > 1:
            left.set_title(model.name, loc="left", pad=12)
    figure.tight_layout()
    figure.savefig(target)


def arguments(doc):
    """The arguments that measurements have in common."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="model directories (default: models/glyphs, models/words)")
    parser.add_argument("--packer", type=Path, default=ROOT / "target/release/packer", help="(default: %(default)s)")
    parser.add_argument("--images", type=int, default=128, help="images compared (default: %(default)s)")
    parser.add_argument("--score", type=int, default=2080, help="images read (default: %(default)s)")
    parser.add_argument("--plot", type=Path, help="the PNG to draw, such as models/quality.png")
    parser.add_argument("--table", type=Path, help="write the table here, too")
    parser.add_argument("--keep", type=Path, help="a folder for packed files and figures")
    return parser


def each(args, measure):
    """What `measure(model, folder)` says of every model."""
    known = [ROOT / "models" / name for name in ("glyphs", "words")]
    models = args.models or [model for model in known if (model / "model_index.json").exists()]
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        return {model: measure(model, folder / model.name) for model in map(Path.resolve, models)}


def tell(args, reports, table):
    """Prints the table of every model."""
    text = "\n\n".join(table(model, report) for model, report in reports.items())
    print(text)
    if args.table:
        args.table.write_text(text + "\n")


def main():
    parser = arguments(__doc__)
    parser.add_argument("--nearest-only", action="store_true", help="without calibration")
    args = parser.parse_args()
    ways = ["nearest"] if args.nearest_only else list(WAYS)
    reports = each(args, lambda model, folder: measure(args.packer, model, folder, ways, args.images, args.score))
    tell(args, reports, table)
    if args.plot:
        plot(reports, ways, args.plot)


if __name__ == "__main__":
    main()
