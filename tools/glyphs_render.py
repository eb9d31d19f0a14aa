"""Renders of the capital letters A-Z: the data of the letter model in models/glyphs."""

import functools
import os

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SIZE = 48
SUPERSAMPLE = 4

# Plain text families with clearly formed capitals.  A render draws a family first and a style
# second, so that a family with many styles does not dominate.
STYLES = ["-Regular", "-Bold", "-Italic", "-BoldItalic"]
FAMILIES = {
    "dejavu/DejaVuSans": ["", "-Bold", "-Oblique", "-BoldOblique"],
    "dejavu/DejaVuSerif": ["", "-Bold", "-Italic", "-BoldItalic"],
    "dejavu/DejaVuSansMono": ["", "-Bold"],
    "liberation/LiberationSans": STYLES,
    "liberation/LiberationSerif": STYLES,
    "liberation/LiberationMono": STYLES,
    "freefont/FreeSans": ["", "Bold", "Oblique", "BoldOblique"],
    "freefont/FreeSerif": ["", "Bold", "Italic", "BoldItalic"],
    "noto/NotoSans": STYLES,
    "noto/NotoSerif": STYLES,
    "lato/Lato": [*STYLES, "-Black"],
    "open-sans/OpenSans": [*STYLES, "-ExtraBold"],
    "crosextra/Carlito": STYLES,
    "crosextra/Caladea": STYLES,
    "roboto/unhinted/RobotoTTF/Roboto": [*STYLES, "-Black"],
    "comfortaa/Comfortaa": ["-Regular", "-Bold"],
    "quicksand/Quicksand": ["-Medium", "-Bold"],
    "play/Play": ["-Regular", "-Bold"],
}


def font_files(root):
    """The font files of every family; a missing file is an error, since it would change the data."""
    families = [[f"{root}/{family}{style}.ttf" for style in styles] for family, styles in FAMILIES.items()]
    missing = [name for files in families for name in files if not os.path.exists(name)]
    if missing:
        raise SystemExit(f"fonts not found: {missing}")
    return families


@functools.cache
def size_per_cap_height(font_file):
    """Font size per pixel of cap height."""
    _, top, _, bottom = ImageFont.truetype(font_file, 200).getbbox("H")
    return 200 / (bottom - top)


def render_mask(letter, font_file, cap_height, angle, shift):
    """Coverage of one letter, uint8 [48,48]; `shift` in -1..1 uses up the free margin."""
    side = SIZE * SUPERSAMPLE
    size = cap_height * SUPERSAMPLE * size_per_cap_height(font_file)
    font = ImageFont.truetype(font_file, size)
    left, top, right, bottom = font.getbbox(letter)
    limit = 0.84 * side
    if max(right - left, bottom - top) > limit:  # a wide W in a bold face
        font = ImageFont.truetype(font_file, size * limit / max(right - left, bottom - top))
        left, top, right, bottom = font.getbbox(letter)
    image = Image.new("L", (side, side))
    at = ((side - left - right) / 2, (side - top - bottom) / 2)
    ImageDraw.Draw(image).text(at, letter, font=font, fill=255)
    image = image.rotate(angle, Image.Resampling.BICUBIC)
    # The ink's box after rotation tells how far the letter can move and stay inside.
    x0, y0, x1, y1 = image.getbbox()
    margin = SUPERSAMPLE * 2
    room_x, room_y = min(x0, side - x1) - margin, min(y0, side - y1) - margin
    dx = shift[0] * min(max(room_x, 0), 4 * SUPERSAMPLE)
    dy = shift[1] * min(max(room_y, 0), 4 * SUPERSAMPLE)
    image = image.transform(image.size, Image.Transform.AFFINE, (1, 0, -dx, 0, 1, -dy), Image.Resampling.BILINEAR)
    return np.asarray(image.reduce(SUPERSAMPLE))


def render_chunk(job):
    """Masks of `count` letters; the letters cycle through A..Z."""
    root, seed, chunk, count = job
    rng = np.random.default_rng([seed, chunk])
    families = font_files(root)
    masks = np.empty((count, SIZE, SIZE), np.uint8)
    for i in range(count):
        files = families[rng.integers(len(families))]
        masks[i] = render_mask(
            LETTERS[i % 26],
            files[rng.integers(len(files))],
            cap_height=rng.uniform(25, 34),
            angle=rng.uniform(-8, 8),
            shift=rng.uniform(-1, 1, 2),
        )
    return masks


def random_colours(count, rng):
    """Background and ink colours [count,2,3] in 0..1 with a WCAG contrast ratio of at least 3.5."""
    kept = []
    while sum(map(len, kept)) < count:
        pair = rng.random((4 * count, 2, 3), dtype=np.float32)
        linear = np.where(pair <= 0.04045, pair / 12.92, ((pair + 0.055) / 1.055) ** 2.4)
        luminance = linear @ np.array([0.2126, 0.7152, 0.0722], np.float32)
        ratio = (luminance.max(1) + 0.05) / (luminance.min(1) + 0.05)
        kept.append(pair[ratio >= 3.5])
    return np.concatenate(kept)[:count]


def compose(masks, colours):
    """Images [N,3,48,48] in -1..1 from uint8 masks and colours in 0..1 (both torch)."""
    alpha = masks.float().div(255).unsqueeze(1)
    background, ink = colours[:, 0, :, None, None], colours[:, 1, :, None, None]
    return (background + alpha * (ink - background)) * 2 - 1
