#!/usr/bin/env python3
"""Score generated letters: classifier accuracy and Frechet distance.

    python tools/eval_glyphs.py PATH             # a .safetensors file, or a directory of them
    python tools/eval_glyphs.py --diffusers      # generate with diffusers first: the reference row

PATH holds, under the keys `image` ([N,3,48,48] float32 in 0..1) and
`class_labels` ([N], 0 = "A" .. 25 = "Z"), what a run has generated.  One line of JSON is
printed:

    images      number of images scored
    accuracy    share of images which the classifier reads as the letter asked for
    confidence  mean probability that the classifier gives to its own answer
    frechet     Frechet distance between the classifier's 96 penultimate features of
                these images and of 5,200 rendered letters (200 per letter) which no
                model saw in training; lower is better.  It falls with the number of
                images, so compare only runs of the same size.

The classifier (`classifier.safetensors`) and the reference statistics
(`reference.safetensors`) lie beside the model.  Scoring needs only numpy and
safetensors; `--diffusers` also needs torch and diffusers.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

MODEL_DIR = Path(__file__).resolve().parent.parent / "models" / "glyphs"
CONV_LAYERS = 4  # conv1..conv4: 3x3, stride 2, padding 1; 48 -> 24 -> 12 -> 6 -> 3


def conv_3x3_stride_2(x, weight, bias):
    """A 3x3 convolution with stride 2 and padding 1 on [N,C,H,W], as one matrix product."""
    n, c, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(n * (h // 2) * (w // 2), c * 9)
    out = columns @ weight.reshape(weight.shape[0], -1).T + bias
    return out.reshape(n, h // 2, w // 2, -1).transpose(0, 3, 1, 2)


def classify(weights, images, batch=256):
    """Returns (features [N,96], logits [N,26]) of images [N,3,48,48] in 0..1."""
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    features, logits = [], []
    for start in range(0, len(images), batch):
        x = images[start : start + batch].astype(np.float32) * 2 - 1
        for i in range(1, CONV_LAYERS + 1):
            x = np.maximum(conv_3x3_stride_2(x, weights[f"conv{i}.weight"], weights[f"conv{i}.bias"]), 0)
        x = np.maximum(x.reshape(len(x), -1) @ weights["fc1.weight"].T + weights["fc1.bias"], 0)
        features.append(x)
        logits.append(x @ weights["fc2.weight"].T + weights["fc2.bias"])
    return np.concatenate(features), np.concatenate(logits)


def statistics(features):
    """Mean and covariance of features [N,D], in float64."""
    features = features.astype(np.float64)
    return features.mean(axis=0), np.cov(features, rowvar=False)


def matrix_sqrt(matrix):
    """Square root of a symmetric positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def frechet_distance(mean_a, cov_a, mean_b, cov_b):
    """Squared Frechet (Wasserstein-2) distance between two Gaussians."""
    # The trace of sqrt(A B) equals that of sqrt(sqrt(A) B sqrt(A)), and the latter is symmetric.
    root = matrix_sqrt(cov_a)
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def score(images, labels, model_dir=MODEL_DIR):
    """The dictionary that is printed for these images and labels."""
    features, logits = classify(load_file(model_dir / "classifier.safetensors"), images)
    reference = load_file(model_dir / "reference.safetensors")
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    distance = frechet_distance(*statistics(features), reference["mean"], reference["covariance"])
    return {
        "images": len(images),
        "accuracy": round(float((logits.argmax(axis=1) == labels.astype(np.int64)).mean()), 5),
        "confidence": round(float(probabilities.max(axis=1).mean()), 5),
        "frechet": round(distance, 4),
    }


def read_images(path):
    """Images and labels of one file, or of every .safetensors file in a directory."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    parts = [part for part in map(load_file, files) if "image" in part and "class_labels" in part]
    if not parts:
        sys.exit(f"{path}: no file with the keys `image` and `class_labels`")
    images = np.concatenate([part["image"] for part in parts])
    return images, np.concatenate([part["class_labels"].reshape(-1) for part in parts])


def generate_with_diffusers(model_dir, per_class, steps, guidance, seed, batch=130, dtype="float32"):
    """Letters A..Z, A..Z, ... from diffusers' own DiTPipeline.

    The initial noise is one draw of [26 * per_class, 4, 12, 12] from a CPU generator with
    `seed`; it is returned too, so that another implementation can start from the same noise.
    """
    import torch
    from diffusers import DiTPipeline
    from diffusers.pipelines.dit import pipeline_dit

    pipe = DiTPipeline.from_pretrained(model_dir, torch_dtype=getattr(torch, dtype))
    pipe.set_progress_bar_config(disable=True)
    config = pipe.transformer.config
    labels = np.tile(np.arange(26), per_class)
    shape = (len(labels), config.in_channels, config.sample_size, config.sample_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    images, original = [], pipeline_dit.randn_tensor
    for start in range(0, len(labels), batch):
        # DiTPipeline takes no initial latents, so it is handed this batch's share of the noise.
        pipeline_dit.randn_tensor = lambda **kw: noise[start : start + batch].to(kw["dtype"])
        try:
            chunk = labels[start : start + batch].tolist()
            out = pipe(chunk, guidance_scale=guidance, num_inference_steps=steps, output_type="pt")
        finally:
            pipeline_dit.randn_tensor = original
        images.append(out.images.float().numpy())
    return np.concatenate(images), labels, noise.numpy()


def save_sheet(images, path, columns=26):
    """Writes the images as one PNG, row by row."""
    from PIL import Image

    rows = -(-len(images) // columns)
    sheet = np.full((rows * 52, columns * 52, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * 52 + 2, i % columns * 52 + 2
        sheet[y : y + 48, x : x + 48] = (image.transpose(1, 2, 0) * 255).round().clip(0, 255)
    Image.fromarray(sheet).save(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, help="a .safetensors file or a directory of them")
    parser.add_argument("--diffusers", action="store_true", help="generate with diffusers first")
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="directory of the model (default: %(default)s)")
    parser.add_argument("--per-class", type=int, default=20, help="images per letter (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="DDIM steps (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=4.0, help="guidance scale (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial noise (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="compute type for diffusers (default: %(default)s)")
    parser.add_argument("--save", type=Path, help="keep `image`, `class_labels` and `noise` in this file")
    parser.add_argument("--sheet", type=Path, help="write the images as one PNG")
    args = parser.parse_args()
    if args.diffusers == (args.path is not None):
        parser.error("give either a path or --diffusers")
    if args.diffusers:
        images, labels, noise = generate_with_diffusers(
            args.model, args.per_class, args.steps, args.guidance, args.seed, dtype=args.dtype
        )
        if args.save:
            save_file({"image": images, "class_labels": labels, "noise": noise}, args.save)
    else:
        images, labels = read_images(args.path)
    if args.sheet:
        save_sheet(images, args.sheet)
    print(json.dumps(score(images, labels, args.model)))


if __name__ == "__main__":
    main()
