#!/usr/bin/env python3
"""Draws quality against size for the letter model: the README's plot, from the README's own table.

    python tools/plot_quality.py README.md models/quality.png

Reads the table with the columns `weights, activations | file | read right | Fréchet`. Needs matplotlib.
"""

import re
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROW = re.compile(r"^\| ([^|]+?) \| ([\d.]+) MB \| ([\d.]+) % \| [\d.]+ \|$", re.M)

# Where names stand that would cover each other, in points from their dots.
OFFSETS = {"w4a8:kmeans": (-8, 9), "w4a8:mse": (9, -12), "w3a8:kmeans": (2, -22)}


def main(readme, output):
    rows = [(name.split(" (")[0], float(size), float(right)) for name, size, right in ROW.findall(open(readme).read())]
    rows = [row for row in rows if not row[0].startswith("the same")]
    assert len(rows) >= 4, "the table was not found"
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(figsize=(7.2, 3.2), dpi=110)
    sizes, rights = [row[1] for row in rows], [row[2] for row in rows]
    axes.plot(sizes, rights, "o", color="#1f6f8b", markersize=7)
    for name, size, right in rows:
        offset = OFFSETS.get(name, (8, -4))
        axes.annotate(name, (size, right), xytext=offset, textcoords="offset points", color="#333333")
    axes.set_xscale("log")
    axes.set_xticks([2, 3, 4, 6, 8, 10], ["2", "3", "4", "6", "8", "10"])
    axes.minorticks_off()
    axes.set_xlim(1.8, 13)
    axes.set_ylim(40, 104)
    axes.set_xlabel("packed file, MB")
    axes.set_ylabel("letters read right, %")
    axes.grid(axis="y", color="#e4e4e4")
    figure.tight_layout()
    figure.savefig(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
