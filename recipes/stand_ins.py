"""Stand-ins for MNIST, Fashion-MNIST and CIFAR-100: drawn here, so that nothing need be downloaded.

They have the real sets' shapes, dtypes and class counts, and are learnable but not trivial. The
same seed gives the same bytes everywhere: drawing uses +, -, *, / and sqrt alone, which every
machine rounds alike, and the pictures are put together in integers.

    grey sets   a class is a glyph (a seven-segment digit, a garment's outline), drawn in many
                hands, shifted, dimmed and buried in noise: a linear model gets most of them,
                a small convolutional network nearly all
    colour set  a class is a texture, half hidden by another class's: no model can be sure, so one
                that is right about everything in its training set has memorised it
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

_CHUNK = 10_000  # images put together at a time, to bound memory

# The strokes of a seven-segment display in a unit square: (x0, y0, x1, y1), y pointing down.
_SEGMENTS = {
    "top": (0, 0, 1, 0),
    "middle": (0, 0.5, 1, 0.5),
    "bottom": (0, 1, 1, 1),
    "upper left": (0, 0, 0, 0.5),
    "upper right": (1, 0, 1, 0.5),
    "lower left": (0, 0.5, 0, 1),
    "lower right": (1, 0.5, 1, 1),
}
_DIGITS = (  # the strokes that each digit leaves out
    ("middle",),
    ("top", "middle", "bottom", "upper left", "lower left"),
    ("upper left", "lower right"),
    ("upper left", "lower left"),
    ("top", "bottom", "lower left"),
    ("upper right", "lower left"),
    ("upper right",),
    ("middle", "bottom", "upper left", "lower left"),
    (),
    ("lower left",),
)
# Garments as polygons in the same square, in the order of Fashion-MNIST's classes.
_GARMENTS = (
    "0,.1 .3,0 .7,0 1,.1 1,.4 .8,.4 .8,1 .2,1 .2,.4 0,.4",  # T-shirt/top
    ".25,0 .75,0 .85,1 .6,1 .5,.3 .4,1 .15,1",  # Trouser
    "0,.1 .3,0 .7,0 1,.1 1,.95 .85,.95 .8,.4 .8,1 .2,1 .2,.4 .15,.95 0,.95",  # Pullover
    ".35,0 .65,0 .6,.35 .85,1 .15,1 .4,.35",  # Dress
    "0,.1 .3,0 .5,.25 .7,0 1,.1 1,1 .85,1 .8,.4 .8,1 .53,1 .5,.4 .47,1 .2,1 .2,.4 .15,1 0,1",  # Coat
    "0,.6 .35,.75 .75,.3 .9,.3 .6,.75 1,.5 1,.85 0,.85",  # Sandal
    "0,.1 .3,0 .5,.2 .7,0 1,.1 1,.7 .85,.7 .8,.4 .8,1 .2,1 .2,.4 .15,.7 0,.7",  # Shirt
    "0,.5 .45,.35 .6,.5 1,.6 1,.85 0,.85",  # Sneaker
    "0,.4 .3,.4 .3,.1 .7,.1 .7,.4 1,.4 1,.95 0,.95",  # Bag
    "0,.15 .4,.15 .45,.5 1,.65 1,.9 0,.9",  # Ankle boot
)


def arrays(name: str, spec: Mapping) -> dict[str, np.ndarray]:
    """The stand-in for the data set `name`, as large as its table of `datasets/registry.toml` says.

    Returns:
        `train_images`, `train_labels`, `test_images`, ... as `recipes.data` caches the real ones.
    """
    parts = {}
    for part, array in zip(("images", "labels"), _drawn(name, spec["train"] + spec["test"]), strict=True):
        parts[f"train_{part}"], parts[f"test_{part}"] = np.split(array, [spec["train"]])
    if "coarse_classes" in spec:
        groups = enumerate(spec["coarse_classes"].values())
        coarse = {fine: label for label, group in groups for fine in group}
        coarse_of_fine = np.array([coarse[fine] for fine in sorted(coarse)], np.uint8)
        for split in ("train", "test"):
            parts[f"{split}_coarse_labels"] = coarse_of_fine[parts[f"{split}_labels"]]
    return parts


@functools.lru_cache(maxsize=2)  # drawing takes seconds, and a notebook loads its data many times
def _drawn(name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    draw, seed = {"mnist": (digits, 0), "fashion-mnist": (garments, 1), "cifar-100": (textures, 2)}[name]
    images, labels = draw(count, np.random.default_rng(seed))
    images.flags.writeable = labels.flags.writeable = False  # all who load them share them
    return images, labels


def digits(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Seven-segment digits: images [count, 28, 28] uint8 and labels [count] uint8."""
    hands = [_draw_digit(missing, rng) for missing in _DIGITS for _ in range(_HANDS)]
    return _scatter(np.stack(hands), count, rng)


def garments(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Outlines of garments: images [count, 28, 28] uint8 and labels [count] uint8."""
    corners = [[tuple(map(float, c.split(","))) for c in g.split()] for g in _GARMENTS]
    hands = [_draw_garment(polygon, rng) for polygon in corners for _ in range(_HANDS)]
    return _scatter(np.stack(hands), count, rng)


def textures(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Colour textures of 100 classes: images [count, 32, 32, 3] uint8, labels [count] uint8."""
    bank = _enlarge(rng.integers(0, 256, (100, _GRID, _GRID, 3)))
    windows = sliding_window_view(bank, (32, 32), axis=(1, 2))
    shifts = windows.shape[1]
    labels = _balanced(count, 100, rng)
    images = np.empty((count, 32, 32, 3), np.uint8)
    for start in range(0, count, _CHUNK):
        label = labels[start : start + _CHUNK]
        n = len(label)
        other = rng.integers(0, 100, n)
        own, hidden = (
            windows[c, rng.integers(0, shifts, n), rng.integers(0, shifts, n)] for c in (label, other)
        )
        share = rng.integers(90, 200, (n, 1, 1, 1), np.uint16)  # of the own texture, in 256ths
        mixed = (own * share + hidden * (256 - share)) >> 8  # [n, 3, 32, 32] uint16
        noise = rng.integers(0, 48, (n, 3, 32, 32), np.uint8)
        images[start : start + n] = ((mixed * 208 >> 8) + noise).astype(np.uint8).transpose(0, 2, 3, 1)
    return images, labels


_HANDS = 60  # drawings of each glyph
_GRID = 7  # a texture's colour cells along each side
_MARGIN = 3  # pixels that a glyph may move in each direction
_CANVAS = 28 + 2 * _MARGIN


def _scatter(bank: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Shift, dim and bury the drawings `bank` [10 * _HANDS, _CANVAS, _CANVAS] uint8."""
    windows = sliding_window_view(bank, (28, 28), axis=(1, 2))  # [drawing, dy, dx, 28, 28]
    labels = _balanced(count, 10, rng)
    images = np.empty((count, 28, 28), np.uint8)
    for start in range(0, count, _CHUNK):
        label = labels[start : start + _CHUNK].astype(np.intp)
        n = len(label)
        drawing = label * _HANDS + rng.integers(0, _HANDS, n)
        dy, dx = rng.integers(0, 2 * _MARGIN + 1, (2, n))
        brightness = rng.integers(110, 200, (n, 1, 1), np.uint16)
        noise = rng.integers(0, 56, (n, 28, 28), np.uint8)
        glyphs = windows[drawing, dy, dx] * brightness >> 8
        images[start : start + n] = glyphs.astype(np.uint8) + noise  # at most 199 + 55
    return images, labels


def _balanced(count: int, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Labels [count] uint8, shuffled, with as many of each class in every thousand."""
    thousands = np.tile(np.arange(1000) % classes, (-(-count // 1000), 1))
    return rng.permuted(thousands, axis=1).ravel()[:count].astype(np.uint8)


def _draw_digit(missing: tuple[str, ...], rng: np.random.Generator) -> np.ndarray:
    """One hand's drawing of a digit, [_CANVAS, _CANVAS] uint8."""
    x, y = _unit_square(rng, width=(9, 13), height=(15, 20))
    reach = rng.integers(10, 22) / 10  # half the stroke's width, in pixels
    ink = np.zeros((_CANVAS, _CANVAS))
    for name, ends in _SEGMENTS.items():
        if name not in missing:
            x0, y0, x1, y1 = np.asarray(ends) + rng.integers(-12, 13, 4) / 100
            ink = np.maximum(ink, reach + 0.5 - _distance(x, y, x0, y0, x1, y1))
    return (np.clip(ink, 0, 1) * 255).astype(np.uint8)


def _draw_garment(polygon: list[tuple[float, float]], rng: np.random.Generator) -> np.ndarray:
    """One hand's drawing of a garment, [_CANVAS, _CANVAS] uint8."""
    (x, _), (y, _) = _unit_square(rng, width=(15, 22), height=(16, 23))
    corners = np.asarray(polygon) + rng.integers(-5, 6, (len(polygon), 2)) / 100
    inside = np.zeros((_CANVAS, _CANVAS), bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        crosses = (y0 > y) != (y1 > y)  # the even-odd rule, on a ray to the right
        inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / np.where(y1 == y0, 1, y1 - y0))
    fold = rng.integers(150, 256, (3, 3, 1))  # cloth is not evenly bright
    cloth = _enlarge(fold[None], side=_CANVAS)[0, :, :, 0]
    return np.where(inside, cloth, 0).astype(np.uint8)


def _unit_square(rng: np.random.Generator, width: tuple[int, int], height: tuple[int, int]):
    """Every pixel's place in a slanted unit square on the canvas: (x, pixels), (y, pixels)."""
    wide, high = rng.integers(*width), rng.integers(*height)
    row, column = np.mgrid[:_CANVAS, :_CANVAS] - (_CANVAS - 1) / 2
    slant = rng.integers(-25, 26) / 100
    return ((column + slant * row) / wide + 0.5, wide), (row / high + 0.5, high)


def _distance(x, y, x0, y0, x1, y1) -> np.ndarray:
    """Every pixel's distance in pixels from the stroke (x0, y0)-(x1, y1) of the unit square."""
    (x, wide), (y, high) = x, y
    px, py = (x - x0) * wide, (y - y0) * high
    dx, dy = (x1 - x0) * wide, (y1 - y0) * high
    along = np.clip((px * dx + py * dy) / (dx * dx + dy * dy), 0, 1)
    return np.sqrt((px - along * dx) ** 2 + (py - along * dy) ** 2)


def _enlarge(cells: np.ndarray, side: int = 44) -> np.ndarray:
    """Bilinear enlargement of [..., g, g, channels] integers to [..., side, side, channels] uint8."""
    position = np.arange(side) * ((cells.shape[-2] - 1) * 256) // (side - 1)
    low, part = position // 256, position % 256
    high = np.minimum(low + 1, cells.shape[-2] - 1)
    part = part[:, None]
    rows = cells[..., low, :, :] * (256 - part[..., None]) + cells[..., high, :, :] * part[..., None]
    both = rows[..., low, :] * (256 - part) + rows[..., high, :] * part
    return (both >> 16).astype(np.uint8)
