"""Every layer, goodness and loss: finite differences in float64, and torch's autograd where torch is installed."""

import gradcheck
import numpy as np
import pytest

from common import functions, goodness
from common.layers import Dense, Flatten, ReLU, RMSNorm
from common.local2d import LocallyConnected2d

rng = np.random.default_rng(7)
F64 = np.float64


def lc(shape, channels, rf, **options):
    layer = LocallyConnected2d(shape, channels, rf, rng, dtype=F64, **options)
    layer.params["b"] += 0.1 * rng.standard_normal(layer.out_shape)
    return layer


def dense(**options):
    layer = Dense(7, 5, rng, dtype=F64, **options)
    layer.params["b"] += 0.1 * rng.standard_normal(5)
    return layer


LAYERS = [
    (dense(), (4, 7)),
    (dense(relu=False), (4, 7)),
    (Flatten(), (3, 2, 4)),
    (ReLU(), (3, 5)),
    (RMSNorm(), (4, 6)),
    (RMSNorm(eps=0.5), (3, 2, 4, 2)),
    (lc((7, 6, 2), 3, 3), (4, 7, 6, 2)),
    (lc((7, 6, 2), 3, 3, relu=False), (4, 7, 6, 2)),
    (lc((8, 8, 3), 2, 4, stride=2, padding=1), (2, 8, 8, 3)),
    (lc((5, 5, 1), 4, 5), (3, 5, 5, 1)),
    (lc((9, 7, 2), 2, 2, stride=3), (2, 9, 7, 2)),
]


@pytest.mark.parametrize("layer, shape", LAYERS, ids=lambda v: type(v).__name__ if hasattr(v, "params") else str(v))
def test_layer(layer, shape):
    x = rng.standard_normal(shape)
    y, cache = layer.forward(x)
    weights = rng.standard_normal(y.shape)  # L = sum of weights * y
    dx, grads = layer.backward(weights, cache, need_dx=True)
    assert set(grads) == set(layer.params)
    gradcheck.check(lambda: np.sum(weights * layer.forward(x)[0]), {"x": x} | layer.params, {"x": dx} | grads)
    none, same = layer.backward(weights, cache)
    assert none is None and all(np.array_equal(same[k], grads[k]) for k in grads)


@pytest.mark.parametrize("kind", [goodness.SumSquare, goodness.MeanSquare])
def test_goodness(kind):
    y, dg = rng.standard_normal((5, 4, 3, 2)), rng.standard_normal(5)
    _, cache = kind().forward(y)
    gradcheck.check(lambda: np.sum(dg * kind().forward(y)[0]), {"y": y}, {"y": kind().backward(dg, cache)})


def test_mean_square_is_the_mean_of_squares():
    y = rng.standard_normal((3, 4, 5))
    assert np.allclose(goodness.MeanSquare().forward(y)[0], [np.mean(row**2) for row in y])
    assert np.allclose(goodness.SumSquare().forward(y)[0], [np.sum(row**2) for row in y])


@pytest.mark.parametrize("kind", [goodness.SumSquare, goodness.MeanSquare])
def test_ff_loss(kind):
    y, t = rng.standard_normal((6, 3, 2)), np.repeat([1.0, -1.0], 3)
    loss, g, dy = goodness.ff_loss(y, t, 1.5, kind)
    by_hand = np.mean([np.log1p(np.exp(-s * (a - 1.5))) for s, a in zip(t, kind().forward(y)[0], strict=True)])
    assert np.isclose(loss, by_hand) and np.allclose(g, kind().forward(y)[0])
    gradcheck.check(lambda: goodness.ff_loss(y, t, 1.5, kind)[0], {"y": y}, {"y": dy})


def test_softmax_cross_entropy():
    logits, labels = rng.standard_normal((5, 4)), np.array([0, 3, 1, 1, 2])
    loss, d = goodness.softmax_cross_entropy(logits, labels)
    assert np.isclose(loss, -np.mean(np.log(functions.softmax(logits)[np.arange(5), labels])))
    gradcheck.check(lambda: goodness.softmax_cross_entropy(logits, labels)[0], {"logits": logits}, {"logits": d})


def test_extreme_values_stay_finite():
    x = np.array([-1e4, -50.0, 0.0, 50.0, 1e4])
    with np.errstate(all="raise", under="ignore"):
        assert np.allclose(functions.softplus(x), [0, 0, np.log(2), 50, 1e4])
        assert np.allclose(functions.sigmoid(x), [0, 0, 0.5, 1, 1])
        assert np.isfinite(goodness.softmax_cross_entropy(np.array([[1e4, -1e4]]), np.array([1]))[0])


def test_normalise():
    x = rng.standard_normal((3, 4, 2))
    assert np.array_equal(RMSNorm().forward(x)[0], goodness.normalise(x))
    y = rng.standard_normal((4, 5, 3, 2))
    h = goodness.normalise(y)
    assert np.allclose(goodness.MeanSquare().forward(h)[0], 1)
    assert np.allclose(goodness.normalise(3 * y), h)  # nothing of the goodness is left
    assert np.all(np.isfinite(goodness.normalise(np.zeros((2, 3)))))


def test_a_wrong_gradient_is_caught():
    layer, x = lc((5, 5, 1), 2, 3), rng.standard_normal((2, 5, 5, 1))
    y, cache = layer.forward(x)
    _, grads = layer.backward(np.ones_like(y), cache)
    grads["W"] = grads["W"] * 1.001
    with pytest.raises(AssertionError, match="d/dW"):
        gradcheck.check(lambda: np.sum(layer.forward(x)[0]), layer.params, grads)


def torch_lc(torch, layer, x):
    """The layer's formula written independently in torch: unfold, then one einsum."""
    W, b = (torch.tensor(layer.params[k], requires_grad=True) for k in ("W", "b"))
    p, s, rf = layer.padding, layer.stride, W.shape[2]
    padded = torch.nn.functional.pad(x, (0, 0, p, p, p, p))
    patches = padded.unfold(1, rf, s).unfold(2, rf, s)  # (B, OH, OW, C, ky, kx)
    z = torch.einsum("bijcyx,ijyxco->bijo", patches, W) + b
    return (z.relu() if layer.relu else z), {"W": W, "b": b}


@pytest.mark.parametrize("layer, shape", [pair for pair in LAYERS if isinstance(pair[0], LocallyConnected2d)])
@pytest.mark.parametrize("dtype, tolerance", [(F64, 1e-12), (np.float32, 1e-5)])
def test_torch_parity(layer, shape, dtype, tolerance):
    """float32 takes the numba kernels, float64 the reference; both must match torch's autograd of the whole FF loss."""
    torch = pytest.importorskip("torch")
    layer.params = {k: p.astype(dtype) for k, p in layer.params.items()}
    x, t = rng.standard_normal(shape).astype(dtype), np.where(np.arange(shape[0]) % 2, 1, -1).astype(dtype)
    y, cache = layer.forward(x)
    loss, _, dy = goodness.ff_loss(y, t, 2.0)
    dx, grads = layer.backward(dy, cache, need_dx=True)
    tx = torch.tensor(x, requires_grad=True)
    ty, tparams = torch_lc(torch, layer, tx)
    tloss = torch.nn.functional.softplus(-torch.tensor(t) * (ty.square().mean(dim=(1, 2, 3)) - 2)).mean()
    tloss.backward()
    layer.params = {k: p.astype(F64) for k, p in layer.params.items()}

    def close(a, b):
        assert np.linalg.norm(a - b.numpy()) <= tolerance * max(1e-3, np.linalg.norm(b.numpy()))

    close(y, ty.detach())
    close(dx, tx.grad)
    close(grads["W"], tparams["W"].grad)
    close(grads["b"], tparams["b"].grad)
    assert np.isclose(loss, tloss.item(), rtol=10 * tolerance)
