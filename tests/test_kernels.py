"""The numba kernels against the readable reference, naive loops, and themselves on another number of threads."""

import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from common import kernels_cpu, optim
from common.goodness import MeanSquare, normalise
from common.label_map import LabelMap
from common.label_sharing import SharedPair, goodness_of_labels, window_seeing
from common.labels import write_slot, wrong_labels
from common.local2d import LocallyConnected2d

rng = np.random.default_rng(11)
SHAPES = [  # H, W, C, O, rf, stride, padding, batch: full and partial SIMD blocks, every tile remainder
    (12, 12, 3, 8, 11, 1, 0, 64),
    (9, 8, 8, 8, 5, 1, 0, 37),
    (9, 7, 3, 3, 4, 2, 1, 5),
    (8, 10, 2, 16, 3, 1, 1, 33),
    (8, 8, 1, 12, 8, 1, 0, 1),
    (12, 12, 5, 40, 3, 3, 2, 70),
    (6, 6, 2, 1, 1, 1, 0, 32),
    (7, 7, 4, 7, 2, 1, 0, 16),
]


def twins(H, W, C, O, rf, stride, padding, relu=True):
    """The same layer in float32 (kernels) and in float64 (reference)."""
    fast = LocallyConnected2d((H, W, C), O, rf, rng, stride, padding, relu)
    fast.params["b"] += 0.3 * rng.standard_normal(fast.out_shape).astype(np.float32)
    exact = LocallyConnected2d((H, W, C), O, rf, rng, stride, padding, relu, dtype=np.float64)
    exact.params = {k: p.astype(np.float64) for k, p in fast.params.items()}
    return fast, exact


def near(a, b, tolerance=1e-5):
    """float32 sums of a few hundred products: norm-wise 1e-6 is usual, 1e-5 the promise."""
    assert a.shape == b.shape and np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_gradients(shape):
    *geometry, B = shape
    fast, exact = twins(*geometry)
    x = rng.standard_normal((B, *fast.in_shape)).astype(np.float32)
    y, cache = fast.forward(x)
    y64, cache64 = exact.forward(np.float64(x))
    assert y.dtype == np.float32
    near(y, y64)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    dy[(y > 0) != (y64 > 0)] = 0  # an input within rounding of the ReLU's kink
    dx, grads = fast.backward(dy, cache, need_dx=True)
    dx64, grads64 = exact.backward(np.float64(dy), cache64, need_dx=True)
    near(dx, dx64)
    near(grads["W"], grads64["W"])
    near(grads["b"], grads64["b"])


def test_reference_is_the_definition():
    """The formula of local2d.py's docstring as seven nested loops."""
    fast, exact = twins(5, 6, 2, 3, 3, 2, 1)
    x = rng.standard_normal((2, 5, 6, 2))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    W, b = exact.params["W"], exact.params["b"]
    y, _ = exact.forward(x)
    for n, i, j, o in np.ndindex(y.shape):
        z = b[i, j, o]
        for ky, kx, c in np.ndindex(3, 3, 2):
            z += padded[n, i * 2 + ky, j * 2 + kx, c] * W[i, j, ky, kx, c, o]
        assert np.isclose(y[n, i, j, o], max(z, 0))


@pytest.mark.parametrize("order", ["images first", "batch innermost", "strided"])
def test_memory_order_does_not_matter(order):
    fast, _ = twins(9, 8, 8, 8, 5, 1, 0)
    x = rng.standard_normal((33, 9, 8, 8)).astype(np.float32)
    expected, _ = fast.forward(x)
    if order == "batch innermost":
        x = np.ascontiguousarray(x.transpose(1, 2, 3, 0)).transpose(3, 0, 1, 2)
    if order == "strided":
        x = np.repeat(x, 2, axis=0)[::2]
    assert np.array_equal(fast.forward(x)[0], expected)


def test_same_bits_on_one_and_two_threads():
    fast, _ = twins(12, 12, 3, 8, 5, 1, 0)
    x = rng.standard_normal((64, 12, 12, 3)).astype(np.float32)

    def everything():
        layer, _ = twins(12, 12, 3, 8, 5, 1, 0)
        layer.params = {k: p.copy() for k, p in fast.params.items()}
        y, cache = layer.forward(x)
        dx, grads = layer.backward(y, cache, need_dx=True)
        opt = optim.Adam(layer.params, 0.01)
        opt.step(grads)
        g = goodness_of_labels([layer, second], x, 3, 10)
        labelled = LabelMap((12, 12, 3), 8, 5, 10, np.random.default_rng(1))
        labelled.params["U"] += np.random.default_rng(2).standard_normal(labelled.params["U"].shape).astype(np.float32)
        a, cache = labelled.image_part(x)
        all_labels = labelled.goodness(a)
        grads_all = labelled.backward_goodness(all_labels, a, cache)
        rows, cache = labelled.forward(x, np.arange(128) % 10)
        _, grads_rows = labelled.backward(rows, cache)
        ours = [all_labels, rows, *grads_all.values(), *grads_rows.values()]
        return [y, dx, *grads.values(), *layer.params.values(), *opt.state.values(), g, *ours]

    second = LocallyConnected2d(fast.out_shape, 4, 3, np.random.default_rng(0))
    try:
        numba.set_num_threads(1)
        one = everything()
        numba.set_num_threads(2)
        two = everything()
    finally:
        numba.set_num_threads(2)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_same_bits_from_the_process_that_compiles_and_from_later_ones(tmp_path):
    """numba optimises once more what it caches: where rounding is free (fastmath), a first run would differ."""
    assert "fastmath" not in Path(kernels_cpu.__file__).read_text(encoding="utf-8")
    code = """
import numpy as np
from common import kernels_cpu as k
r = np.random.default_rng(0)
a, u, c, pull = (r.standard_normal(s, np.float32) for s in ((3, 2, 4, 37), (3, 2, 10, 4), (1, 10, 37), (3, 2, 4)))
da, du = np.empty_like(a), np.empty_like(u)
k.label_error(a, u, c, pull, da, du)
print(da.tobytes().hex(), du.tobytes().hex())
"""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", code]
    first, later = (subprocess.check_output(command, env=environment, text=True, timeout=300) for _ in range(2))
    assert list(tmp_path.rglob("*.nbi")) and first == later


@pytest.mark.parametrize("B", [2 * kernels_cpu.BLOCK, kernels_cpu.BLOCK + 1])
@pytest.mark.parametrize("stride, padding", [(1, 0), (2, 0), (1, 2)])
def test_shared_pair_is_the_layer(B, stride, padding):
    fast, _ = twins(14, 13, 3, 8, 5, stride, padding)
    labels = rng.integers(0, 10, B)
    x = np.concatenate([rng.standard_normal((B, 14, 13, 3)).astype(np.float32)] * 2)
    write_slot(x, np.concatenate([labels, wrong_labels(labels, 10, rng)]), 3, 10)
    pair = SharedPair(fast, (0, 3, 0, 10))
    y, cache = pair.forward(x)
    expected, plain_cache = fast.forward(x)
    assert np.array_equal(y, expected)
    dy = np.ascontiguousarray(rng.standard_normal(y.shape[1:] + y.shape[:1]).astype(np.float32)).transpose(3, 0, 1, 2)
    _, grads = pair.backward(dy, cache)
    _, plain = fast.backward(dy, plain_cache)
    near(grads["W"], plain["W"])
    near(grads["b"], plain["b"])
    with pytest.raises(ValueError, match="no input gradient"):
        pair.backward(dy, cache, need_dx=True)


def test_window_is_exactly_what_sees_the_slot():
    for stride, padding in ((1, 0), (2, 0), (1, 2), (3, 1)):
        layer, _ = twins(14, 13, 1, 1, 5, stride, padding, relu=False)
        layer.params["W"][:] = 1
        layer.params["b"][:] = 0
        x = np.zeros((1, 14, 13, 1), np.float32)
        x[:, 1:3, 2:7] = 1
        top, bottom, left, right = window_seeing(layer, (1, 3, 2, 7))
        seen = np.zeros(layer.out_shape[:2], bool)
        seen[top:bottom, left:right] = True
        assert np.array_equal(layer.forward(x)[0][0, :, :, 0] > 0, seen)


@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("stride, padding", [(1, 0), (2, 0), (1, 2)])
def test_ten_labels_at_once(n_layers, stride, padding):
    layers, shape = [], (16, 15, 3)
    for rf in (5, 3, 2)[:n_layers]:
        layers.append(LocallyConnected2d(shape, 4, rf, rng, stride if not layers else 1, padding if not layers else 0))
        layers[-1].params["b"] += 0.2 * rng.standard_normal(layers[-1].out_shape).astype(np.float32)
        shape = layers[-1].out_shape
    images = rng.standard_normal((21, 16, 15, 3)).astype(np.float32)
    kept = images.copy()
    g = goodness_of_labels(layers, images, 3, 10)
    assert np.array_equal(images, kept)
    one_by_one = goodness_of_labels(layers, images, 3, 10, shared=False)
    assert g.shape == (n_layers, 21, 10) and np.abs(g / one_by_one - 1).max() < 1e-5
    # and independently of both: layer by layer with the label written in
    h = write_slot(images.copy(), np.full(21, 4), 3, 10)
    for depth, layer in enumerate(layers):
        y, _ = layer.forward(h)
        assert np.allclose(g[depth, :, 4], MeanSquare().forward(y)[0], rtol=1e-5)
        h = normalise(y)


@pytest.mark.parametrize("B, O, K", [(64, 16, 10), (37, 3, 10), (5, 8, 2), (1, 1, 100)])
def test_label_map(B, O, K):
    fast = LabelMap((9, 8, 3), O, 4, K, rng)
    fast.params["U"] += 0.3 * rng.standard_normal(fast.params["U"].shape).astype(np.float32)
    exact = LabelMap((9, 8, 3), O, 4, K, rng, dtype=np.float64)
    for k, p in fast.params.items():
        exact.params[k][...] = p
    x, labels = rng.standard_normal((B, 9, 8, 3)).astype(np.float32), rng.integers(0, K, 2 * B)
    a, cache = fast.image_part(x)
    a64, cache64 = exact.image_part(np.float64(x))
    g, g64 = fast.goodness(a), exact.goodness(a64)
    assert g.dtype == np.float32 and np.abs(g / g64 - 1).max() < 1e-5
    for label in {0, K - 1}:  # what all labels share is exact: the same as one pass under one label
        y, _ = fast.forward(x, np.full(B, label))
        assert np.abs(g[:, label] / MeanSquare().forward(y)[0] - 1).max() < 1e-5
    near(fast.goodness_map(a), exact.goodness_map(a64))
    assert np.allclose(g64, np.stack([MeanSquare().forward(exact._under(a64, k))[0] for k in range(K)], axis=1))
    dg = rng.standard_normal(g.shape).astype(np.float32)
    dmap = rng.standard_normal((B, *fast.out_shape[:2], K)).astype(np.float32)
    pull = rng.standard_normal(fast.out_shape).astype(np.float32)
    mapped, mapped64 = (
        layer.backward_goodness(dmap.astype(pull.dtype), *part, pull)
        for layer, part, pull in ((fast, (a, cache), pull), (exact, (a64, cache64), np.float64(pull)))
    )
    ours, reference = fast.backward_goodness(dg, a, cache), exact.backward_goodness(np.float64(dg), a64, cache64)
    y, cache = fast.forward(x, labels)
    y64, cache64 = exact.forward(np.float64(x), labels)
    near(y, y64)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    dy[(y > 0) != (y64 > 0)] = 0  # an input within rounding of the ReLU's kink
    _, rows = fast.backward(dy, cache, pull=pull)
    _, rows64 = exact.backward(np.float64(dy), cache64, pull=np.float64(pull))
    for k in fast.params:
        near(ours[k], reference[k])
        near(mapped[k], mapped64[k])
        near(rows[k], rows64[k])


@pytest.mark.parametrize("make", [lambda p: optim.Adam(p, 0.01), lambda p: optim.Adam(p, 0.01, decay=0.1),
                                  lambda p: optim.SGD(p, 0.1), lambda p: optim.SGD(p, 0.1, 0.5, 0.01)])  # fmt: skip
def test_optimisers_in_one_pass(make):
    start = {"W": rng.standard_normal((5, 7)), "b": rng.standard_normal(3)}
    fast, exact = ({k: p.astype(t) for k, p in start.items()} for t in (np.float32, np.float64))
    a, b = make(fast), make(exact)
    for _ in range(5):
        grads = {k: rng.standard_normal(p.shape) for k, p in start.items()}
        a.step({k: g.astype(np.float32) for k, g in grads.items()})
        b.step(grads)
    for k in start:
        assert np.allclose(fast[k], exact[k], rtol=1e-5, atol=1e-6)


def test_averages_of_dead_units_do_not_become_denormal():
    """Denormal numbers cost a hundred cycles each: they halved the speed of backpropagation from its fifth epoch on."""
    params = {"W": np.ones(64, np.float32)}
    for opt in (optim.Adam(params, 0.01), optim.SGD(params, 0.01)):
        opt.step({"W": np.full(64, 1e-3, np.float32)})
        for _ in range(1000):  # 0.9^1000 = 1e-46, far below the smallest normal number, 1.2e-38
            opt.step({"W": np.zeros(64, np.float32)})
        assert np.all(opt.state["m_W"] == 0)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_torchs(decay):
    torch = pytest.importorskip("torch")
    w = rng.standard_normal((4, 3))
    ours, theirs = {"W": w.copy()}, torch.tensor(w, requires_grad=True)
    opt, peer = optim.Adam(ours, 0.01, decay=decay), torch.optim.AdamW([theirs], lr=0.01, weight_decay=decay)
    for _ in range(4):
        g = rng.standard_normal(w.shape)
        opt.step({"W": g})
        theirs.grad = torch.tensor(g)
        peer.step()
    assert np.allclose(ours["W"], theirs.detach().numpy(), rtol=1e-12)


def test_schedules():
    factors = [optim.cosine(t, 10, warmup=2) for t in range(11)]
    assert factors[:3] == [0.5, 1.0, 1.0] and np.isclose(factors[6], 0.5) and np.isclose(factors[10], 0)
    assert [optim.linear(t, 4) for t in range(5)] == [1, 0.75, 0.5, 0.25, 0]
    assert {f(0, 4) for f in optim.SCHEDULES.values()} == {1} and len(optim.SCHEDULES) == 4
    assert [optim.half(t, 8) for t in range(0, 9, 2)] == [1, 1, 1, 0.5, 0]
    assert optim.constant(4, 4) == 1
