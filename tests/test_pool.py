"""What blocks measure and hand on: gradients, kernels against the formulas, torch."""

import gradcheck
import numpy as np
import pytest

from common import layers, pool
from common.conv import Conv2d

rng = np.random.default_rng(5)
NORMS = ("layer", "rms", "none")


def near(a, b, tolerance=1e-5):
    assert a.shape == b.shape and np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@pytest.mark.parametrize(
    "shape, n", [((3, 8, 8, 5), 4), ((2, 6, 6, 33), 1), ((4, 5, 5, 16), 5), ((3, 7, 7, 18), 3)], ids=str
)
def test_parts(shape, n):
    z, layer = rng.standard_normal(shape), pool.Parts(n)
    (u, m), cache = layer.forward(z)
    for ours, theirs in zip(layer.forward(z.astype(np.float32))[0], (u, m), strict=True):
        near(ours, theirs)
    side = shape[1] // n
    assert n == 3 or np.isclose(u[1, 0, n - 1, 2], (z[1, :side, -side:, 2] ** 2).mean())
    a, b = rng.standard_normal((2, *u.shape))
    dz = layer.backward_squares(a, cache).full() + layer.backward_means(b, cache).full()

    def value():
        (u, m), _ = layer.forward(z)
        return (a * u + b * m).sum()

    gradcheck.check(value, {"z": z}, {"z": dz})


def test_unequal_parts():
    """7 rows in 3 parts: 2, 2 and 3, each place in one of them."""
    z = rng.standard_normal((2, 7, 5, 4))
    (u, m), _ = pool.Parts(3, 2).forward(z)
    assert np.allclose(u[:, 2, 0], (z[:, 4:, :2] ** 2).mean(axis=(1, 2)))
    assert np.allclose(m[:, 1, 1], z[:, 2:4, 2:].mean(axis=(1, 2)))
    assert np.bincount(pool.part_of(7, 3)).tolist() == [2, 2, 3]
    assert np.allclose(pool.spread(u, z.shape)[:, 4:, :2], u[:, 2, 0][:, None, None])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", ["average", "rms", "max"])
@pytest.mark.parametrize("shape, side", [((3, 8, 8, 5), 2), ((2, 3, 3, 40), 1), ((2, 7, 6, 16), 3)], ids=str)
def test_hand_on(shape, side, kind, norm):
    z, layer = rng.standard_normal(shape), pool.HandOn(side, norm, dropout=0.3, kind=kind)
    h, cache = layer.forward(z, key=77)
    assert 0.1 < (h == 0).mean() < 0.5
    fast, fast_cache = layer.forward(z.astype(np.float32), key=77)
    assert fast.dtype == np.float32
    near(fast, h)
    weights = rng.standard_normal(h.shape)
    dz = layer.backward(weights, cache)
    gradcheck.check(lambda: (weights * layer.forward(z, key=77)[0]).sum(), {"z": z}, {"z": dz})
    near(layer.backward(weights.astype(np.float32), fast_cache), dz)
    assert not np.array_equal(layer.forward(z, key=78)[0] == 0, h == 0)
    tested, _ = layer.forward(z, train=False)
    assert np.allclose(tested[h != 0] / (1 - 0.3), h[h != 0])


def test_coins_are_fair():
    """Shares of four in a row, at every key: a weak hash gives patterns."""
    for key in (0, 1, 2**31, 12345):
        kept = layers.coins((4000, 64), key) >= layers.least(0.5)
        assert abs(kept.mean() - 0.5) < 0.005
        pattern = kept.reshape(-1, 4) @ [1, 2, 4, 8]
        assert abs(np.bincount(pattern, minlength=16) / len(pattern) - 1 / 16).max() < 0.005
    other = layers.coins((4000, 64), 7) >= layers.least(0.5)
    assert abs((kept == other).mean() - 0.5) < 0.005


@pytest.mark.parametrize("squares", [True, False])
@pytest.mark.parametrize("relu", [True, False])
def test_convolution_reads_a_grad_as_it_is(squares, relu):
    """Its weight gradient from the small form and from the full one, kernels and formulas."""
    layer = Conv2d(5, 34, np.random.default_rng(0), relu=relu)
    exact = Conv2d(5, 34, np.random.default_rng(0), relu=relu, dtype=np.float64)
    exact.params = {k: p.astype(np.float64) for k, p in layer.params.items()}
    x = rng.standard_normal((6, 8, 8, 5)).astype(np.float32)
    y, cache = layer.forward(x)
    grad = pool.Grad(rng.standard_normal((6, 3, 4, 34)).astype(np.float32), y, squares)
    _, cache64 = exact.forward(x.astype(np.float64))
    expected = exact.backward(grad.full().astype(np.float64), cache64, need_dx=True)
    if relu or not squares:
        assert np.allclose(grad.full(relu=True), grad.full() * (y > 0))
    for given in (grad, grad.full()):
        dx, grads = layer.backward(given, cache, need_dx=True)
        near(dx, expected[0])
        for k in ("W", "b"):
            near(grads[k], expected[1][k])


@pytest.mark.parametrize("kind", ["average", "max"])
@pytest.mark.parametrize("norm", ["layer", "none"])
def test_torch_agrees(norm, kind):
    torch = pytest.importorskip("torch")
    z = rng.standard_normal((3, 8, 8, 6)).astype(np.float32)
    layer = pool.HandOn(2, norm, kind=kind)
    h, cache = layer.forward(z)
    theirs = torch.from_numpy(z.transpose(0, 3, 1, 2).copy()).requires_grad_()
    pooled = torch.nn.functional.avg_pool2d if kind == "average" else torch.nn.functional.max_pool2d
    out = pooled(theirs, 2).permute(0, 2, 3, 1)
    if norm == "layer":
        out = torch.nn.functional.layer_norm(out, (6,))
    dh = rng.standard_normal(h.shape).astype(np.float32)
    out.backward(torch.from_numpy(dh))
    near(h, out.detach().numpy())
    near(layer.backward(dh, cache), theirs.grad.permute(0, 2, 3, 1).numpy())
    (u, m), _ = pool.Parts(2).forward(z)
    t = torch.from_numpy(z.transpose(0, 3, 1, 2).copy())
    near(u, torch.nn.functional.adaptive_avg_pool2d(t**2, 2).permute(0, 2, 3, 1).numpy())
    near(m, torch.nn.functional.adaptive_avg_pool2d(t, 2).permute(0, 2, 3, 1).numpy())
