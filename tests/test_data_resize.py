"""`upsampled` against the definition, pixel by pixel, and against PyTorch where it is installed."""

import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.data import resize, upsampled

SIZES = [(28, 28, 32), (5, 7, 11), (3, 1, 8), (6, 6, 6), (2, 2, 4)]


def images(*shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def naive(image, side):
    """(H, W, C) -> (side, side, C), one new pixel at a time, in fractions."""
    result = np.empty((side, side, image.shape[2]), np.uint8)
    for i, j, c in np.ndindex(result.shape):
        value = Fraction(0)
        near = []
        for k, n in ((i, image.shape[0]), (j, image.shape[1])):
            place = min(max(Fraction(2 * k + 1, 2) * Fraction(n, side) - Fraction(1, 2), 0), n - 1)
            first = int(place)
            near.append([(first, 1 - (place - first)), (min(first + 1, n - 1), place - first)])
        for y, high in near[0]:
            for x, wide in near[1]:
                value += high * wide * int(image[y, x, c])
        result[i, j, c] = int(value + Fraction(1, 2))
    return result


@pytest.mark.parametrize("h, w, side", SIZES)
def test_upsampled_is_the_definition(h, w, side):
    x = images(2, h, w, 2)
    before, got = x.copy(), upsampled(x, side)
    assert got.shape == (2, side, side, 2) and got.dtype == np.uint8 and np.array_equal(x, before)
    assert np.array_equal(got, np.stack([naive(image, side) for image in x]))


@pytest.mark.parametrize("h, w, side", [*SIZES, (9, 28, 100)])
def test_upsampled_is_pytorchs_interpolation(h, w, side):
    torch = pytest.importorskip("torch")
    x = images(3, h, w, 3)
    planes = torch.tensor(x.transpose(0, 3, 1, 2).copy(), dtype=torch.float64)
    exact = torch.nn.functional.interpolate(planes, size=(side, side), mode="bilinear", align_corners=False)
    away = exact.numpy().transpose(0, 2, 3, 1) - upsampled(x, side)
    assert abs(away).max() <= 0.5 + 1e-9  # rounding, and a tie that float64 misses by 1e-13


def test_images_do_not_move_and_ends_are_kept():
    x = images(1, 28, 28, 3)
    mirrored = upsampled(x[:, ::-1, ::-1], 32)[:, ::-1, ::-1]
    assert np.array_equal(upsampled(x, 32), mirrored)  # centres on centres: no side is preferred
    assert np.array_equal(upsampled(x, 32)[:, [0, 0, -1, -1], [0, -1, 0, -1]], x[:, [0, 0, -1, -1], [0, -1, 0, -1]])
    assert np.array_equal(upsampled(x, 28), x) and upsampled(x, 28) is not x
    white = np.full((1, 2, 3, 1), 255, np.uint8)
    assert (upsampled(white, resize.MAX_SIDE) == 255).all()  # no number on the way is too large


def test_chunks_change_nothing_and_bound_the_memory(monkeypatch):
    x = images(4000, 28, 28, 3)
    whole = upsampled(x, 32)
    monkeypatch.setattr(resize, "CHUNK", 32 * 32 * 3 * 7)  # 4000 is no multiple of 7
    tracemalloc.start()
    try:
        parts = upsampled(x, 32)
        assert tracemalloc.get_traced_memory()[1] < parts.nbytes + (1 << 20)
    finally:
        tracemalloc.stop()
    assert np.array_equal(whole, parts)
    monkeypatch.setattr(resize, "CHUNK", 1)  # an image is larger than a chunk
    assert np.array_equal(upsampled(x[:3], 32), whole[:3])
    assert upsampled(x[:0], 32).shape == (0, 32, 32, 3)


def test_what_cannot_be_upsampled():
    x = images(1, 4, 6, 3)
    for bad, side in ((x, 5), (x, 0), (x, 4096), (x[:, :0], 8), (x[0], 8), (x.astype(np.float32), 8)):
        with pytest.raises(ValueError, match="not uint8|cannot be upsampled"):
            upsampled(bad, side)
