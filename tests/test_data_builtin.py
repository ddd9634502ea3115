"""The built-in sets: the same bytes everywhere, a prefix when smaller, ten fair classes, and not for linear models."""

import hashlib

import numpy as np
import pytest

from common.data import builtin

SETS = {
    "glyphs": (builtin.glyphs, (28, 28, 1), "a7d966465ad36ae7d7fdc9f239611bc8498c29f1f3e34966119d123ddcbee762"),
    "shapes": (builtin.shapes, (32, 32, 3), "20afc6454daf2d31e0c6a879b81fc0a0e1c9bd667ba64952a05ecd2d801bb954"),
}
both = pytest.mark.parametrize("name", SETS)


@both
def test_shapes_dtypes_and_names(name):
    make, shape, _ = SETS[name]
    x, y, x_test, y_test, names = make(70, 30)
    assert x.shape == (70, *shape) and x_test.shape == (30, *shape) and y.shape == (70,) and y_test.shape == (30,)
    assert {a.dtype for a in (x, y, x_test, y_test)} == {np.dtype(np.uint8)}
    assert isinstance(names, tuple) and len(set(names)) == 10
    assert make(0, 0)[0].shape == (0, *shape)
    with pytest.raises(ValueError, match="negative"):
        make(-1, 0)


@both
def test_a_small_set_is_a_prefix_of_a_larger_one(name):
    make = SETS[name][0]
    small, large = make(70, 120), make(130, 60)
    for i, n in enumerate((70, 70, 60, 60)):
        np.testing.assert_array_equal(small[i][:n], large[i][:n])


@both
def test_the_bytes_are_the_published_ones(name):
    """On every platform, Python and NumPy. If only `glyphs` fails: does matplotlib ship other font files now?"""
    make, _, checksum = SETS[name]
    digest = hashlib.sha256()
    for a in make(200, 100)[:4]:
        digest.update(a.tobytes())
    assert digest.hexdigest() == checksum


@both
def test_classes_are_balanced_and_in_random_order(name):
    _, y, _, y_test, _ = SETS[name][0](400, 200)
    assert (np.bincount(y, minlength=10) == 40).all() and (np.bincount(y_test, minlength=10) == 20).all()
    assert 10 < (y[1:] == y[:-1]).sum() < 70  # neighbours agree about once in ten


@both
def test_no_image_occurs_twice(name):
    x, _, x_test, _, _ = SETS[name][0](1500, 500)
    assert len({image.tobytes() for image in (*x, *x_test)}) == 2000


def test_glyphs_are_strokes_on_black():
    x, y, *_ = builtin.glyphs(1000, 0)
    ink = x.mean(axis=(1, 2, 3))
    assert 25 < ink.mean() < 65 and ink.min() > 3 and ink.max() < 160
    assert (x.max(axis=(1, 2, 3)) > 120).all()  # each image has a stroke
    border = np.concatenate([x[:, [0, -1]].reshape(1000, -1), x[:, :, [0, -1]].reshape(1000, -1)], axis=1)
    assert np.median(border) < 20 and border.mean() < 25  # and a dark frame: the digit is inside
    means = np.stack([x[y == k].mean(axis=0) for k in range(10)])
    assert (np.ptp(means, axis=0)).max() > 100  # digits differ where it matters


@pytest.mark.parametrize("table", [builtin._digit_tables, builtin._shape_tables])
def test_tables_are_distances(table):
    """Neighbours differ by at most their distance on the grid, and the ink is a fair part of the table, not its rim."""
    d, step = table(), 2 * builtin.REACH / builtin.GRID
    assert np.abs(np.diff(d, axis=1)).max() < step * 1.001 and np.abs(np.diff(d, axis=2)).max() < step * 1.001
    inside = (d < 0).mean(axis=(1, 2))
    assert inside.min() > 0.02 and inside.max() < 0.4
    assert (d[:, [0, -1]] > 0).all() and (d[:, :, [0, -1]] > 0).all()


def _ridge_accuracy(f, y, n, penalty):
    """Least squares on one-hot targets: fit on the first n rows of features f, test accuracy on the others."""
    f = np.asarray(f, np.float32).reshape(len(f), -1)
    f = (f - f[:n].mean(axis=0)) / (f[:n].std(axis=0) + 1e-6)
    a, target = f[:n], np.eye(10, dtype=np.float32)[y[:n]] - 0.1
    w = np.linalg.solve(a.T @ a + penalty * n * np.eye(a.shape[1], dtype=np.float32), a.T @ target)
    return ((f[n:] @ w).argmax(axis=1) == y[n:]).mean()


def _edges(x):
    """Strength of edges in four directions, whatever their sign and colour, in 4x4 cells: (n, 8, 8, 8)."""
    x = x.astype(np.float32)
    a, b, c, d = x[:, :-1, :-1], x[:, :-1, 1:], x[:, 1:, :-1], x[:, 1:, 1:]
    e = np.stack([(u * u).sum(axis=3) ** 0.5 for u in (a - b, a - c, a - d, b - c)], axis=3)
    e = np.pad(e, ((0, 0), (0, 1), (0, 1), (0, 0)))
    return e.reshape(len(x), 8, 4, 8, 4, 4).mean(axis=(2, 4))


def test_shapes_need_more_than_a_linear_model():
    """Chance is 10 %. Colour says almost nothing, a linear model of the pixels little; edges, not linear, say much."""
    x, y, *_ = builtin.shapes(2500, 0)
    n, mean = 1800, x.mean(axis=(1, 2))
    half = x.reshape(-1, 16, 2, 16, 2, 3).mean(axis=(2, 4))  # half the resolution suits so few images better
    assert _ridge_accuracy(np.concatenate([mean, mean**2], axis=1), y, n, 1e-3) < 0.18  # measured 0.11
    assert _ridge_accuracy(half, y, n, 1) < 0.36  # measured 0.29
    assert _ridge_accuracy(_edges(x), y, n, 1) > 0.45  # measured 0.55
