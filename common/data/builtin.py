"""One outline, one distance table, many pictures: two image sets that are drawn here, without a network.

Every class (a digit of a font, or a shape) is a closed outline. Its signed distance (negative inside) is tabulated once
on a square grid; an image looks the table up under a random affine map, and distance d in pixels turns into ink:
`clip(1/2 - d)` is an anti-aliased edge, `d - w` a thicker stroke, `d / s` a blur.

    glyphs   28x28x1  digits 0..9 of 20 fonts that ship with matplotlib; white on black, bent, slanted, noisy
    shapes   32x32x3  ten textured shapes on textured clutter; colour and mean say next to nothing about the class

Symbols: x, y pixels from the image's centre (y down); u, v table coordinates (outlines live in about [-1, 1]).

Determinism. Image i is a function of (set, split, i) alone: blocks of BLOCK images have their own seeds, so a small set
is a prefix of a large one, and every full block holds each class equally often. The bytes should be the same wherever
arithmetic is IEEE-754: random numbers are PCG64 integers and uniforms (no normal(), whose stream NumPy may improve),
the rest is elementwise + - * / sqrt (no BLAS, no sums whose order could vary; the few sines are rounded to six digits).
Digits come as outlines in half font units, so no rasteriser or hinter takes part, but the font files do: `glyphs`
changes if matplotlib ever ships other versions of them (`shapes` does not). tests/ pins a checksum of both.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np

BLOCK = 40  # images that share one seed and are drawn together (another value draws another set)
REACH, GRID, BAND = 1.5, 96, 0.5  # tables cover [-REACH, REACH]^2 with GRID x GRID points; distances are cut at +-BAND
FONTS = (
    *(f"DejaVuSans{mono}{style}" for mono in ("", "Mono") for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmb10", "cmss10", "cmtt10"),
)
DIGITS = tuple("0123456789")
SHAPES = ("disc", "ring", "crescent", "square", "triangle", "star", "cross", "arrow", "heart", "bolt")


def glyphs(n_train=20000, n_test=4000):
    """Digits from fonts: (x_train uint8 (n, 28, 28, 1), y_train uint8 (n,), x_test, y_test, class_names).

    Grey levels 0..255, white ink on black. Both splits use all fonts. Raises ValueError for a negative n, OSError if
    matplotlib's font files are missing."""
    return (*_make(_draw_glyphs, 28, 1, n_train, 1, 0), *_make(_draw_glyphs, 28, 1, n_test, 1, 1), DIGITS)


def shapes(n_train=20000, n_test=4000):
    """Coloured shapes on clutter: (x_train uint8 (n, 32, 32, 3), y_train uint8 (n,), x_test, y_test, class_names).

    RGB, 0..255. Raises ValueError for a negative n."""
    return (*_make(_draw_shapes, 32, 3, n_train, 2, 0), *_make(_draw_shapes, 32, 3, n_test, 2, 1), SHAPES)


def _make(draw, size, channels, n, *seed):
    """n images in blocks: draw(rng, labels (BLOCK,)) -> (BLOCK, channels, size, size), cut to [0, 1] here."""
    if n < 0:
        raise ValueError(f"the number of images cannot be negative: {n}")
    x, y = np.empty((n, size, size, channels), np.uint8), np.empty(n, np.uint8)
    for start in range(0, n, BLOCK):
        rng = np.random.Generator(np.random.PCG64([*seed, start // BLOCK]))
        labels = np.argsort(rng.random(BLOCK), kind="stable") % 10  # each class BLOCK / 10 times, in random order
        k = min(BLOCK, n - start)
        x[start : start + k] = np.moveaxis((np.clip(draw(rng, labels), 0, 1) * 255 + 0.5).astype(np.uint8), 1, 3)[:k]
        y[start : start + k] = labels[:k]
    return x, y


# ---- outlines -> distance tables -> ink ----


def _distance_table(contours):
    """Signed distance (GRID, GRID) float32 to the edge of what polygons [(k, 2), ...] wind around, cut at +-BAND.

    The polygons may contain, but not overlap, each other: an edge inside the ink would be taken for its rim."""
    at = (np.arange(GRID) + 0.5) * (2 * REACH / GRID) - REACH
    near, winding = np.full((GRID, GRID), BAND * BAND), np.zeros((GRID, GRID), np.int32)
    for polygon in contours:
        for (ax, ay), (bx, by) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            ex, ey = bx - ax, by - ay
            c = slice(*np.searchsorted(at, (min(ax, bx) - BAND, max(ax, bx) + BAND)))
            r = slice(*np.searchsorted(at, (min(ay, by) - BAND, max(ay, by) + BAND)))
            x, y = at[c] - ax, at[r, None] - ay
            t = np.clip((x * ex + y * ey) / max(ex * ex + ey * ey, 1e-12), 0, 1)  # where the edge comes nearest
            near[r, c] = np.minimum(near[r, c], (x - t * ex) ** 2 + (y - t * ey) ** 2)
            r = slice(*np.searchsorted(at, (min(ay, by), max(ay, by))))  # rows that the edge crosses
            if ey:
                winding[r] += (1 if ey > 0 else -1) * (at > ax + (at[r, None] - ay) * (ex / ey))
    return (np.where(winding == 0, 1, -1) * np.sqrt(near)).astype(np.float32)


def _look_up(tables, which, u, v):
    """Tables (K, GRID, GRID) number `which` (BLOCK, 1, 1) at u, v (BLOCK, H, W), bilinearly -> (BLOCK, H, W)."""
    u, v = (np.clip(w * (GRID / 2 / REACH) + (GRID - 1) / 2, 0, GRID - 1.01) for w in (u, v))
    row, column = np.floor(v), np.floor(u)
    u, v, k = u - column, v - row, (row * GRID + column).astype(np.intp) + which * (GRID * GRID)
    above, above_right, below, below_right = (tables.ravel()[step:].take(k) for step in (0, 1, GRID, GRID + 1))
    above += (above_right - above) * u
    below += (below_right - below) * u
    return above + (below - above) * v


def _between(rng, low, high):
    """Uniform float32 (BLOCK, 1, 1) in [low, high)."""
    return (low + (high - low) * rng.random((BLOCK, 1, 1))).astype(np.float32)


def _turn(rng, most):
    """cos and sin (BLOCK, 1, 1) of random angles up to +-most radians (at most pi/2), from t = tan(angle / 2)."""
    t = _between(rng, -1, 1) * np.float32(round(np.tan(most / 2), 6))
    return (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)


def _pixels(size):
    """Pixel centres around the image's middle: x (1, 1, size), y (1, size, 1), float32."""
    at = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
    return at[None, None, :], at[None, :, None]


# ---- glyphs ----


@lru_cache(maxsize=1)
def _digit_tables():
    """Distance tables (len(FONTS) * 10, GRID, GRID), font by font; every digit is centred and fills v = -1..1."""
    import matplotlib
    from matplotlib import ft2font

    old = not hasattr(ft2font, "LoadFlags")  # matplotlib < 3.10
    no_hinting = ft2font.LOAD_NO_HINTING if old else ft2font.LoadFlags.NO_HINTING
    tables = []
    for name in FONTS:
        font = ft2font.FT2Font(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"))
        font.set_size(font.units_per_EM, 72)  # one pixel per font unit: the outline stays in whole units
        for digit in DIGITS:
            font.load_char(ord(digit), flags=no_hinting)
            contours = _flatten(*font.get_path())
            points = np.concatenate(contours)
            low, high = points.min(axis=0), points.max(axis=0)
            half = (high[1] - low[1]) / 2
            tables.append(_distance_table([(c - (low + high) / 2) / (half, -half) for c in contours]))
    return np.stack(tables)


def _flatten(vertices, codes):
    """Polygons [(k, 2), ...] of an outline with codes 1 move, 2 line, 3 quadratic curve (becomes 4 edges), 79 close."""
    vertices, contours, i = np.round(vertices * 2) / 2, [], 0
    while i < len(codes):
        if codes[i] == 1:
            contours.append([vertices[i]])
        elif codes[i] == 2:
            contours[-1].append(vertices[i])
        elif codes[i] == 3:
            a, b, c = contours[-1][-1], vertices[i], vertices[i + 1]
            contours[-1] += [a + (b - a) * (2 * t) + (a - b * 2 + c) * (t * t) for t in (0.25, 0.5, 0.75, 1.0)]
            i += 1
        i += 1
    return [np.array(c) for c in contours]


def _draw_glyphs(rng, labels):
    """Digits (BLOCK, 1, 28, 28): random font, affine map, bend, stroke width, blur, noise."""
    x, y = _pixels(28)
    font = rng.integers(len(FONTS), size=(BLOCK, 1, 1))
    x, y = x - _between(rng, -2.5, 2.5), y - _between(rng, -2.5, 2.5)
    (c, s), height = _turn(rng, 0.35), _between(rng, 7, 10.5)  # half the height of the digit in pixels
    x, y = (c * x + s * y) / height, (c * y - s * x) / height
    x = x * _between(rng, 0.75, 1.2) + y * _between(rng, -0.3, 0.3)
    a, b, p, q = (_between(rng, -0.22, 0.22) for _ in range(4))
    u = x + a * (y * y - 0.3) + b * (x * y)
    v = y + p * (x * x - 0.1) + q * (x * y)
    d = _look_up(_digit_tables(), font * 10 + labels[:, None, None], u, v) * height
    ink = np.clip(0.5 - (d - _between(rng, 0, 0.9)) / _between(rng, 1, 2.4), 0, 1) * _between(rng, 0.7, 1)
    ink += (rng.random(ink.shape, np.float32) - 0.5) * _between(rng, 0, 0.4)
    return ink[:, None]


# ---- shapes ----


def _arc(start, stop, n=48):
    """Points (n, 2) on the unit circle between two angles in degrees; six digits, the same on every platform."""
    angle = np.linspace(start, stop, n) * (np.pi / 180)
    return np.round(np.stack([np.cos(angle), np.sin(angle)], axis=1), 6)


@lru_cache(maxsize=1)
def _shape_tables():
    """Distance tables (10, GRID, GRID) in the order of SHAPES; y points down, sizes chosen so that areas are alike."""
    circle, t = _arc(0, 360, 65)[:-1], np.linspace(0, 2 * np.pi, 65)[:-1]
    arm = np.array([(0.95, -0.3), (0.95, 0.3), (0.3, 0.3)])
    side = arm[:, ::-1] * (-1, 1)  # the arm after a quarter turn
    heart = [16 * np.sin(t) ** 3, -13 * np.cos(t) + 5 * np.cos(2 * t) + 2 * np.cos(3 * t) + np.cos(4 * t)]
    outlines = {
        "disc": [circle * 0.8],
        "ring": [circle * 0.95, circle[::-1] * 0.5],
        "crescent": [np.concatenate([_arc(50, 310), _arc(280.6, 79.4) * 0.779 + (0.5, 0)]) + (0.1, 0)],
        "square": [np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.74],
        "triangle": [np.array([(0, -1), (0.95, 0.7), (-0.95, 0.7)])],
        "star": [_arc(-90, 270, 11)[:-1] * np.where(np.arange(10) % 2, 0.45, 1.1)[:, None]],
        "cross": [np.concatenate([arm, side, -arm, -side])],
        "arrow": [np.array([(-1, -0.33), (0, -0.33), (0, -0.9), (1.05, 0), (0, 0.9), (0, 0.33), (-1, 0.33)])],
        "heart": [np.round(np.stack(heart, axis=1) / 17 + (0, -0.1), 6)],
        "bolt": [np.array([(0.4, -1.1), (-0.8, 0.2), (-0.12, 0.2), (-0.4, 1.1), (0.8, -0.25), (0.12, -0.25)])],
    }
    return np.stack([_distance_table(outlines[name]) for name in SHAPES])


def _texture(rng, x, y):
    """How far colours swing (3, BLOCK, 1, 1); slow waves, stripes, checks or blobs (BLOCK, H, W) in [-1/2, 1/2]."""
    (c, s), kind = _turn(rng, np.pi / 2), rng.integers(4, size=(BLOCK, 1, 1))
    pitch = np.where(kind == 0, _between(rng, 30, 60), _between(rng, 4, 11))  # pixels from crest to crest
    a, b = (_triangle_wave(p / pitch * x + q / pitch * y + _between(rng, 8, 9)) for p, q in ((c, s), (-s, c)))
    blobs = _zoom(_zoom(rng.random((BLOCK, 9, 9), np.float32) * 3 - 1.5, x.size).swapaxes(1, 2), x.size)
    wave = np.where(kind == 3, blobs, a)
    np.multiply(wave, b, out=wave, where=kind == 2)
    wave *= np.where(kind == 0, np.float32(0.5), _between(rng, 0.4, 1.2))
    return (rng.random((3, BLOCK, 1, 1), np.float32) - 0.5) * 0.7, np.clip(wave, -0.5, 0.5)


def _triangle_wave(z):
    """Up and down between -1 and 1 once per unit of z > 0."""
    return np.abs((z - np.floor(z)) * 4 - 2) - 1


def _zoom(z, size):
    """Linear interpolation of the last axis (B, m, k) -> (B, m, size), end to end."""
    at = np.arange(size, dtype=np.float32) * np.float32((z.shape[2] - 1) / size)
    i = at.astype(np.int32)
    return z[..., i] + (z[..., i + 1] - z[..., i]) * (at - i).astype(np.float32)


def _draw_shapes(rng, labels):
    """Shapes (BLOCK, 3, 32, 32): background, two fragments, the shape, one fragment in front, noise.

    Per channel the shape is lighter than its background 85 times in 100: that much a linear model sees."""
    x, y = _pixels(32)
    a = rng.random((BLOCK, 3, 1, 1), np.float32)
    b = (a + 0.3 + 0.4 * rng.random((BLOCK, 3, 1, 1), np.float32)) % 1
    lighter = rng.random((BLOCK, 3, 1, 1)) < 0.85
    image = np.zeros((BLOCK, 3, 32, 32), np.float32)
    _lay(image, np.float32(-1), np.where(lighter, np.minimum(a, b), np.maximum(a, b)), *_texture(rng, x, y))
    for _ in range(2):
        _lay(image, *_fragment(rng, x, y))
    d = _place(rng, labels, x, y, reach=4, sizes=(8, 12), turn=0.6)
    _lay(image, d, np.where(lighter, np.maximum(a, b), np.minimum(a, b)), *_texture(rng, x, y))
    _lay(image, *_fragment(rng, x, y))
    contrast, noise = _between(rng, 0.5, 1), _between(rng, 0, 0.16)
    for plane in np.moveaxis(image, 1, 0):
        plane *= contrast
        plane += rng.random(plane.shape, np.float32) * noise + (1 - contrast - noise) / 2
    return image


def _fragment(rng, x, y):
    """Distance (BLOCK, 32, 32) and colour (BLOCK, 3, 1, 1) of a small shape of any class, cut by a straight line."""
    which, cut = rng.integers(10, size=BLOCK), _between(rng, -0.25, 0.25)
    d = _place(rng, which, x, y, reach=16, sizes=(4, 8), turn=np.pi / 2, cut=cut)
    return d, rng.random((BLOCK, 3, 1, 1), np.float32)


def _place(rng, which, x, y, reach, sizes, turn, cut=REACH):
    """Distance in pixels (BLOCK, 32, 32) to shapes `which` (BLOCK,), placed at random and cut off where u > cut."""
    x, y, (c, s) = x - _between(rng, -reach, reach), y - _between(rng, -reach, reach), _turn(rng, turn)
    size, stretch = _between(rng, *sizes), _between(rng, 0.85, 1.15)
    across, along = 1 / (size * stretch), stretch / size
    u, v = c * across * x + s * across * y, c * along * y - s * along * x
    return np.maximum(_look_up(_shape_tables(), which[:, None, None], u, v), u - cut) * size


def _lay(image, d, colour, swing=(0, 0, 0), texture=0):
    """Paint the image (BLOCK, 3, 32, 32) in place where d < 0, with colour (BLOCK, 3, 1, 1) + swing * texture."""
    ink = np.clip(0.5 - d, 0, 1)
    for plane, c, s in zip(np.moveaxis(image, 1, 0), np.moveaxis(colour, 1, 0), swing, strict=True):
        plane += (c + s * texture - plane) * ink
