#!/usr/bin/env python3
"""Whether a low-rank branch beside codes is worth its bytes: W = U V + Q, as SVDQuant has it, against more bits for Q.

    packer calibrate models/glyphs -o calib.safetensors
    python tools/low_rank.py models/glyphs calib.safetensors

For every linear layer of a trained model, with the second moments H of its inputs, and for layers of DiT-XL/2's and Stable
Diffusion's shapes with spectra that fall as trained ones do (singular values i^-0.5, moments i^-1), it prints the part of
the output's power that the error makes, tr E H E^T / tr W H W^T, and bits per weight: of codes by error feedback (LDLQ) on
uniform levels per row; with a branch of rank 16 and 32 in f16 taken out before (best for the weight under H) or added after
(best for what codes leave under H); and of one more bit.  Needs numpy and safetensors.
"""

import argparse
from pathlib import Path

import numpy as np
from safetensors import safe_open

RANKS = (16, 32)
# What steps and zero points take, in bits per row.
OVERHEAD = 32


def levels(w, bits):
    """Step and zero point per row of the least square error, of 20 shrunken ranges."""
    low, high = w.min(1, keepdims=True), w.max(1, keepdims=True)
    top = 2**bits - 1
    best = None
    for shrink in np.linspace(1.0, 0.6, 20):
        step = np.maximum((high - low) * shrink / top, 1e-12)
        zero = np.round(-low * shrink / step)
        q = (np.clip(np.round(w / step) + zero, 0, top) - zero) * step
        error = ((w - q) ** 2).sum(1, keepdims=True)
        if best is None:
            best = [error, step, zero]
        else:
            better = error < best[0]
            best = [np.where(better, new, old) for new, old in zip((error, step, zero), best)]
    return best[1], best[2]


def quantize(w, factor, bits):
    """LDLQ on uniform levels: `factor` is the unit lower triangle L of H = L D L^T."""
    step, zero = levels(w, bits)
    top = 2**bits - 1
    q = np.zeros_like(w)
    for k in range(w.shape[1] - 1, -1, -1):
        wanted = w[:, k] + (w[:, k + 1 :] - q[:, k + 1 :]) @ factor[k + 1 :, k]
        q[:, k] = (np.clip(np.round(wanted / step[:, 0]) + zero[:, 0], 0, top) - zero[:, 0]) * step[:, 0]
    return q


def branch(w, root, inverse, rank):
    """The matrix of this rank that is nearest to `w` under H = root root^T."""
    u, s, vt = np.linalg.svd(w @ root, full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ vt[:rank]) @ inverse


def measure(w, h):
    """Rows of (what, error, bits per weight)."""
    n, k = w.shape
    h = h + 0.01 * np.trace(h) / k * np.eye(k)
    root = np.linalg.cholesky(h)
    inverse = np.linalg.inv(root)
    factor = root / np.diag(root)
    power = np.sum((w @ root) ** 2)
    error = lambda q: np.sum(((w - q) @ root) ** 2) / power
    rows = []
    for bits in (3, 4):
        q = quantize(w, factor, bits)
        rows.append((f"W{bits}", error(q), bits + OVERHEAD / k))
        for rank in RANKS:
            cost = bits + (OVERHEAD * n + 16 * rank * (n + k)) / (n * k)
            low = branch(w, root, inverse, rank)
            rows.append((f"W{bits}, rank {rank} before", error(low + quantize(w - low, factor, bits)), cost))
            rows.append((f"W{bits}, rank {rank} after", error(q + branch(w - q, root, inverse, rank)), cost))
    rows.append(("W5", error(quantize(w, factor, 5)), 5 + OVERHEAD / k))
    return rows


def trained(model, calibration):
    """Weights and second moments of a model's linear layers of at least 64 inputs."""
    import json

    files = [*Path(model).glob("transformer/*.safetensors"), *Path(model).glob("unet/*.safetensors")]
    calib = safe_open(calibration, "np")
    layers = json.loads(next(iter(calib.metadata().values())))["layers"]
    with safe_open(files[0], "np") as weights:
        for name, inputs in layers.items():
            key = name.split("/", 1)[1]
            w = weights.get_tensor(key).astype(np.float64)
            triangle = calib.get_tensor(f"inputs.{inputs[0]}.second")
            if w.ndim != 2 or w.shape[1] < 64 or triangle.size != w.shape[1] * (w.shape[1] + 1) // 2:
                continue
            h = np.zeros((w.shape[1],) * 2)
            h[np.tril_indices(w.shape[1])] = triangle
            yield w, h + np.tril(h, -1).T


def synthetic(n, k, seed):
    """A layer whose singular values and moments fall as powers do."""
    rng = np.random.default_rng(seed)
    basis = lambda size: np.linalg.qr(rng.standard_normal((size, size)))[0]
    m = min(n, k)
    w = (basis(n)[:, :m] * np.arange(1, m + 1) ** -0.5) @ basis(k)[:m]
    b = basis(k)
    return w, (b / np.arange(1, k + 1)) @ b.T


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    args = parser.parse_args()
    groups = {f"{args.model.name}, mean of layers": list(trained(args.model, args.calibration))}
    for n, k in ((1152, 1152), (320, 1280), (640, 640)):
        groups[f"{n} x {k}, falling spectra"] = [synthetic(n, k, 1)]
    for name, layers in groups.items():
        tables = [measure(w, h) for w, h in layers]
        print(f"{name} ({len(tables)})")
        for rows in zip(*tables):
            print(f"  {rows[0][0]:22} {np.mean([row[1] for row in rows]):.5f}  {np.mean([row[2] for row in rows]):.2f} bits")


if __name__ == "__main__":
    main()
