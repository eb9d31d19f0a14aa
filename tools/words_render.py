"""Captioned letters: the data of the text-to-image model in models/words.

An image is a capital A-Z in one of three styles, in one of eight named colours on another; its caption names all four
in one of several wordings.  Letters are rendered as glyphs_render.py renders them.
"""

import re

import numpy as np
import torch
from glyphs_render import LETTERS, compose, render_mask

# Far enough apart in sRGB that a jitter of a few codes cannot turn one into another: the nearest two,
# pink and white, are 110 codes apart.
COLOURS = {
    "black": (20, 20, 20),
    "white": (245, 245, 245),
    "red": (214, 40, 40),
    "green": (40, 150, 70),
    "blue": (40, 80, 215),
    "yellow": (250, 215, 40),
    "pink": (250, 150, 190),
    "purple": (150, 50, 170),
}
COLOUR_NAMES = list(COLOURS)
PALETTE = np.array(list(COLOURS.values()), np.float32) / 255
JITTER = 0.02  # of a colour's channels, in 0..1

STYLES = ["plain", "bold", "italic"]
# Families that have all three styles, in the order of STYLES.
COMMON = ("-Regular", "-Bold", "-Italic")
FAMILIES = {
    "dejavu/DejaVuSans": ("", "-Bold", "-Oblique"),
    "dejavu/DejaVuSerif": ("", "-Bold", "-Italic"),
    "dejavu/DejaVuSansMono": ("", "-Bold", "-Oblique"),
    "liberation/LiberationSans": COMMON,
    "liberation/LiberationSerif": COMMON,
    "liberation/LiberationMono": COMMON,
    "freefont/FreeSans": ("", "Bold", "Oblique"),
    "freefont/FreeSerif": ("", "Bold", "Italic"),
    "noto/NotoSans": COMMON,
    "noto/NotoSerif": COMMON,
    "lato/Lato": COMMON,
    "open-sans/OpenSans": COMMON,
    "crosextra/Carlito": COMMON,
    "crosextra/Caladea": COMMON,
    "roboto/unhinted/RobotoTTF/Roboto": COMMON,
}

WORDINGS = [
    "a {ink} {letter} on {background}, {style}",
    "a {style} {ink} {letter} on {background}",
    "{letter}, {ink} on {background}, {style}",
    "the letter {letter}, {style}, in {ink} on a {background} background",
    "{style} {ink} letter {letter} on a {background} background",
    "a {letter} in {style} {ink} on {background}",
]


def word_caption(attributes, wording, say_plain=True):
    """The caption of (letter, ink, background, style), all indices; "plain" may stay unsaid."""
    letter, ink, background, style = attributes
    text = WORDINGS[wording]
    if STYLES[style] == "plain" and not say_plain:
        text = re.sub(r"(, )?\{style\}( (?=\{))?", "", text)
    names = {"letter": LETTERS[letter], "ink": COLOUR_NAMES[ink], "background": COLOUR_NAMES[background]}
    return text.format(style=STYLES[style], **names)


def read_caption(caption):
    """(letter, ink, background, style) that a caption names, as indices.

    The background is the colour after "on" or "on a"; a style that is not named is "plain".
    """
    letter = re.findall(r"\b[A-Z]\b", caption)
    background = re.findall(r"\bon (?:a )?(\w+)", caption)
    colours = [word for word in re.findall(r"\w+", caption) if word in COLOURS]
    if len(letter) != 1 or len(background) != 1 or len(colours) != 2 or background[0] not in colours:
        raise SystemExit(f"not a caption of a letter in a colour on another: {caption!r}")
    colours.remove(background[0])
    style = next((i for i, name in enumerate(STYLES) if re.search(rf"\b{name}\b", caption)), 0)
    return LETTERS.index(letter[0]), COLOUR_NAMES.index(colours[0]), COLOUR_NAMES.index(background[0]), style


def balanced_captions(count, rng):
    """Distinct captions: letters cycle A..Z; pairs of colours, styles and wordings come equally often."""
    pairs = [(ink, background) for ink in range(8) for background in range(8) if ink != background]
    # Repeated as they are, so that a letter meets another pair in each of up to 28 rounds: 26 and 56 share a 2.
    pairs = np.resize(rng.permutation(pairs), (count, 2))
    styles, wordings = (
        np.concatenate([rng.permutation(kinds) for _ in range(-(-count // kinds))]) for kinds in (3, len(WORDINGS))
    )
    captions = [
        word_caption((i % 26, *pairs[i], styles[i]), wordings[i], say_plain=rng.random() < 0.5) for i in range(count)
    ]
    if len(set(map(read_caption, captions))) != count:
        raise ValueError(f"{count} distinct captions: at most 28 rounds of the alphabet")
    return captions


def random_attributes(count, rng, without=()):
    """Attributes [count,4] (letter, ink, background, style), uniform over all but the tuples in `without`."""
    kept = []
    while len(kept) < count:
        draw = rng.integers([26, 8, 8, 3], size=(count, 4))
        kept += [row for row in draw[draw[:, 1] != draw[:, 2]] if tuple(row.tolist()) not in without]
    return np.stack(kept[:count])


def random_caption(attributes, rng):
    """A caption in a random wording."""
    return word_caption(attributes, rng.integers(len(WORDINGS)), say_plain=rng.random() < 0.5)


def render_chunk(job):
    """Masks, uint8 [N,48,48], of one job: (font root, seeds, attributes [N,4])."""
    root, seeds, attributes = job
    rng = np.random.default_rng(seeds)
    families = [[f"{root}/{family}{style}.ttf" for style in styles] for family, styles in FAMILIES.items()]
    masks = [
        render_mask(
            LETTERS[letter],
            families[rng.integers(len(families))][style],
            cap_height=rng.uniform(27, 34),
            # A slant tells italics apart, so the letters hardly turn.
            angle=rng.uniform(-3, 3),
            shift=rng.uniform(-0.6, 0.6, 2),
        )
        for letter, _, _, style in attributes
    ]
    return np.stack(masks)


def paint(masks, attributes, rng):
    """Images, torch [N,3,48,48] in -1..1, of masks in the colours that `attributes` name, a little off."""
    colours = PALETTE[attributes[:, [2, 1]]]
    colours = (colours + rng.uniform(-JITTER, JITTER, colours.shape)).clip(0, 1).astype(np.float32)
    return compose(torch.from_numpy(masks), torch.from_numpy(colours))
