"""Sparse products skip zeros, settled rows drop out of gradients, and nothing changes but the time."""

import gradcheck
import numba
import numpy as np
import pytest

from common import kernels_cpu, sparse
from common.goodness import threshold_loss, unsettled
from common.label_input import LabelInput
from common.layers import Dense

SPAN, DEPTH, TALL = kernels_cpu.SPAN, kernels_cpu.DEPTH, kernels_cpu.TALL
SHAPES = [(32, 1, SPAN), (33, DEPTH, SPAN + 1), (40, DEPTH + 1, 2 * SPAN), (TALL + 1, 3 * DEPTH - 1, 3 * SPAN - 5)]


def mostly_zero(B, K, share=0.3, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((B, K)) * (rng.random((B, K)) < share)).astype(np.float32)


@pytest.mark.parametrize("B, K, N", SHAPES)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_kernel_multiplies(B, K, N, share):
    x, W = mostly_zero(B, K, share), np.random.default_rng(1).standard_normal((K, N)).astype(np.float32)
    out = np.full((B, N), np.nan, np.float32)
    kernels_cpu.sparse_product(*kernels_cpu.nonzeros(x), W, out)
    assert np.allclose(out, x.astype(np.float64) @ W, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("B, K, N", [(1, 1, SPAN), (32, 7, SPAN + 1), (100, 25, 3 * SPAN), (256, 70, 515)])
def test_the_dense_kernel_multiplies(B, K, N):
    """Edges of every kind; and it reads nothing but x and w: not-a-numbers around them stay there."""
    rng, nan = np.random.default_rng(0), np.float32(np.nan)
    x, W = rng.standard_normal((B, K)).astype(np.float32), np.full((K + 9, N), nan)
    W[:K] = rng.standard_normal((K, N))
    out = np.full((B + 1, N), nan)
    kernels_cpu.dense_product(x, W[:K], out[:B])
    assert np.allclose(out[:B], x.astype(np.float64) @ W[:K], rtol=1e-5, atol=1e-5)
    assert np.isnan(out[B]).all()


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_bits_do_not_depend_on_threads(share):
    x, W = (
        mostly_zero(256, 200, share),
        np.random.default_rng(1).standard_normal((200, 3 * SPAN + 7)).astype(np.float32),
    )
    found = []
    kept = numba.get_num_threads()
    for threads in (1, numba.config.NUMBA_NUM_THREADS):
        numba.set_num_threads(threads)
        found.append(sparse.times(x, W))
    numba.set_num_threads(kept)
    assert np.array_equal(*found)


def test_who_multiplies(monkeypatch):
    """A kernel only where it is faster: many rows, wide W, float32; which, the zeros say; both see not-a-numbers."""
    calls = []

    def watched(name):
        kernel = getattr(kernels_cpu, name)
        monkeypatch.setattr(kernels_cpu, name, lambda *args: calls.append(name) or kernel(*args))

    watched("sparse_product"), watched("dense_product")
    W = np.ones((60, SPAN), np.float32)
    for x, w in [
        (mostly_zero(sparse.FEWEST - 1, 60), W),
        (mostly_zero(50, 60), W[:, 1:].copy()),
        (mostly_zero(sparse.MOST + 1, 60, 0.9), W),
        (mostly_zero(50, 60).astype(np.float64), W.astype(np.float64)),
    ]:
        assert np.array_equal(sparse.times(x, w), x @ w) and not calls
    wide = mostly_zero(50, 70)[:, 10:]  # not contiguous, as the pixels beside a label are
    assert np.allclose(sparse.times(wide, W), wide @ W, atol=1e-5)
    full = mostly_zero(50, 60, 0.9)
    assert np.allclose(sparse.times(full, W), full @ W, atol=1e-5)
    full[:: len(full) // 8] = 0  # a few rows look sparse; all together are not
    assert np.allclose(sparse.times(full, W), full @ W, atol=1e-5)
    assert calls == ["sparse_product", "dense_product", "dense_product"]
    wide[3, 5] = np.nan
    full[2, 5] = np.nan
    for x in (wide, full):
        assert np.array_equal(np.isnan(sparse.times(x, W)), np.isnan(x @ W))


def test_unsettled_rows():
    """Rows far on their side of theta drop out; those on the wrong side, near theta, or not a number stay."""
    t = np.float32([1, 1, 1, -1, -1, -1])
    g = np.float32([140, 101, 50, 60, 99, 300])
    _, dg = threshold_loss(g, t, 100)
    assert list(unsettled(dg)) == [1, 2, 4, 5]
    assert np.abs(np.delete(dg, unsettled(dg))).sum() < 1e-9 * np.abs(dg).sum()
    assert list(unsettled(np.float32([0, np.nan, np.inf, 1]))) == [1, 2, 3]


@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize("rows", [[], [7], [0, 3, 6, 8], [3, 8]])
@pytest.mark.parametrize("kind", ["dense", "label"])
def test_rows_left_out_are_rows_without_gradient(kind, rows, dtype, tolerance):
    """backward of some rows = backward of all, the others' dy being 0; peer normalisation still pulls at every row."""
    rng = np.random.default_rng(0)
    if kind == "dense":
        layer = Dense(30, 70, rng, dtype=dtype)
        _, cache = layer.forward(rng.standard_normal((10, 30)).astype(dtype))
    else:
        layer = LabelInput(30, 70, 4, rng, dtype=dtype)
        codes = np.eye(4)[rng.integers(0, 4, 10)].astype(dtype)
        _, cache = layer.forward(layer.image_part(rng.random((5, 26)).astype(dtype)), codes)
    rows, dy = np.array(rows, int), np.zeros((10, 70), dtype)
    dy[rows] = rng.standard_normal((len(rows), 70))
    for pull in (None, rng.standard_normal(70).astype(dtype)):
        some, every = layer.backward(dy[rows], cache, pull=pull, rows=rows)[1], layer.backward(dy, cache, pull=pull)[1]
        for k in every:
            a, b = np.asarray(some[k]), np.asarray(every[k])
            assert a.shape == layer.params[k].shape
            assert np.allclose(a, b, rtol=tolerance, atol=10 * tolerance), k


@pytest.mark.parametrize("kind", ["dense", "label"])
def test_pull_is_a_gradient(kind):
    """pull added to every row by what enters the ReLU: as a loss, sum of pull z over the rows."""
    rng = np.random.default_rng(0)
    layer = Dense(6, 5, rng, dtype=np.float64) if kind == "dense" else LabelInput(6, 5, 2, rng, dtype=np.float64)
    x, codes, pull = rng.random((3, 6)), np.eye(2)[[0, 1, 1, 1, 0, 0]], rng.standard_normal(5)
    p, weights = x[:, 2:], rng.standard_normal((6 if kind == "label" else 3, 5))

    def forward():
        return layer.forward(x) if kind == "dense" else layer.forward(layer.image_part(p), codes)

    def objective():
        W, b = layer.params["W"], layer.params["b"]
        if kind == "dense":
            z = x @ W + b
        else:
            rows = np.concatenate([codes, np.concatenate([p, p])], axis=1)
            z = rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + 1e-8) @ W + b
        return np.sum(weights * forward()[0]) + np.sum(pull * z)

    gradcheck.check(objective, layer.params, layer.backward(weights, forward()[1], pull=pull)[1])


def test_dx_has_the_pull():
    layer, rng = Dense(6, 5, np.random.default_rng(0), dtype=np.float64), np.random.default_rng(1)
    y, cache = layer.forward(rng.standard_normal((4, 6)))
    dy, pull = rng.standard_normal(y.shape), rng.standard_normal(5)
    dx, _ = layer.backward(dy, cache, need_dx=True, pull=pull)
    assert np.allclose(dx, (dy * (y > 0) + pull) @ layer.params["W"].T)
