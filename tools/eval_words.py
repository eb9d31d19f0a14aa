#!/usr/bin/env python3
"""Score images of letters against their captions: letter, ink, background, style.

    python tools/eval_words.py PATH                    # a .safetensors file with `image` [N,3,48,48] in 0..1
    python tools/eval_words.py PATH --captions FILE    # with captions of other images
    python tools/eval_words.py --diffusers             # generate with diffusers first: the reference row

Captions are one a line and the images as many, or a multiple of them: image i has caption i modulo their number.
Without --captions they are those that the file names in its metadata (a JSON list, `captions`), or else the model's
prompts.txt.  One line of JSON is printed:

    images      number of images scored
    letter      share whose letter the classifier reads as the caption's
    ink         share whose ink is nearest to the caption's colour of the eight in words_render.py
    background  the same of the background
    all         share with all three right
    style       share whose style (plain, bold, italic) the classifier reads as the caption's

The background of an image is the median, channel by channel, of the frame two pixels wide at its border.  Its ink is
the median of the 40 pixels that differ most from that background, by Euclidean distance in sRGB, as does "nearest".
The classifier (`classifier.safetensors`) lies beside the model; it has the architecture of the one in models/glyphs
and three outputs more, for the styles.  Scoring needs numpy, safetensors and torch; `--diffusers` also needs diffusers
and transformers.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from eval_glyphs import classify, save_sheet
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from words_render import PALETTE, read_caption

MODEL_DIR = Path(__file__).resolve().parent.parent / "models" / "words"
FRAME, INK_PIXELS = 2, 40


def read_prompts(path):
    """The captions of a file, one a line."""
    return [line for line in path.read_text().splitlines() if line]


def nearest_colour(colours):
    """Indices of the named colours nearest to colours [N,3] in 0..1."""
    return np.linalg.norm(colours[:, None] - PALETTE, axis=2).argmin(1)


def read_colours(images):
    """(ink [N], background [N]) of images [N,3,48,48] in 0..1, as indices of named colours."""
    inner = np.zeros(images.shape[2:], bool)
    inner[FRAME:-FRAME, FRAME:-FRAME] = True
    background = np.median(images[:, :, ~inner], axis=2)
    pixels = images.reshape(len(images), 3, -1).transpose(0, 2, 1)
    distance = np.linalg.norm(pixels - background[:, None], axis=2)
    farthest = np.argsort(distance, axis=1)[:, -INK_PIXELS:]
    ink = np.median(np.take_along_axis(pixels, farthest[:, :, None], axis=1), axis=1)
    return nearest_colour(ink), nearest_colour(background)


def read_images(images, model_dir=MODEL_DIR):
    """What is seen in images [N,3,48,48]: int [N,4] of letter, ink, background, style."""
    _, logits = classify(load_file(model_dir / "classifier.safetensors"), images)
    ink, background = read_colours(images)
    return np.stack([logits[:, :26].argmax(1), ink, background, logits[:, 26:].argmax(1)], axis=1)


def score(images, attributes, model_dir=MODEL_DIR):
    """The dictionary that is printed for these images and the attributes [N,4] that they should have."""
    right = read_images(images, model_dir) == attributes
    names = ["letter", "ink", "background", "all", "style"]
    shares = [*right[:, :3].mean(0), right[:, :3].all(1).mean(), right[:, 3].mean()]
    return {"images": len(images)} | {name: round(float(share), 4) for name, share in zip(names, shares)}


def generate_with_diffusers(model_dir, captions, steps, guidance, seed, batch=52, dtype="float32"):
    """Images of the captions from diffusers' own StableDiffusionPipeline, float [N,3,48,48] in 0..1."""
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(model_dir, torch_dtype=getattr(torch, dtype))
    pipe.set_progress_bar_config(disable=True)
    side = pipe.unet.config.sample_size
    noise = torch.randn(len(captions), 4, side, side, generator=torch.Generator().manual_seed(seed))
    images = []
    for start in range(0, len(captions), batch):
        part = slice(start, start + batch)
        out = pipe(
            captions[part], height=4 * side, width=4 * side, latents=noise[part].to(pipe.dtype),
            num_inference_steps=steps, guidance_scale=guidance, output_type="pt",
        )
        images.append(out.images.float().numpy())
    return np.concatenate(images)


def load_images(path, captions):
    """(images, captions) of a file; the captions are given, or its own, or the model's."""
    with safe_open(path, "numpy") as file:
        if "image" not in file.keys():
            sys.exit(f"{path}: no tensor `image`")
        images = file.get_tensor("image")
        own = (file.metadata() or {}).get("captions")
    captions = captions or (json.loads(own) if own else read_prompts(MODEL_DIR / "prompts.txt"))
    if len(images) % len(captions):
        sys.exit(f"{path}: {len(images)} images, and {len(captions)} captions")
    return images, captions * (len(images) // len(captions))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, help="a .safetensors file")
    parser.add_argument("--captions", type=Path, help="a file of captions, one a line")
    parser.add_argument("--diffusers", action="store_true", help="generate with diffusers first")
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="directory of the model (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="steps of the model's sampler (default: %(default)s)")
    parser.add_argument("--guidance", type=float, default=7.5, help="guidance scale (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial noise (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="compute type for diffusers (default: %(default)s)")
    parser.add_argument("--save", type=Path, help="keep `image` and the captions in this file")
    parser.add_argument("--sheet", type=Path, help="write the images as one PNG")
    args = parser.parse_args()
    if args.diffusers == (args.path is not None):
        parser.error("give either a path or --diffusers")
    captions = read_prompts(args.captions) if args.captions else None
    if args.diffusers:
        captions = captions or read_prompts(MODEL_DIR / "prompts.txt")
        images = generate_with_diffusers(
            args.model, captions, args.steps, args.guidance, args.seed, dtype=args.dtype
        )
        if args.save:
            save_file({"image": images}, args.save, metadata={"captions": json.dumps(captions)})
    else:
        images, captions = load_images(args.path, captions)
    if args.sheet:
        save_sheet(images, args.sheet)
    print(json.dumps(score(images, np.array([read_caption(caption) for caption in captions]), args.model)))


if __name__ == "__main__":
    main()
