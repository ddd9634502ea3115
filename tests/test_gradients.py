"""Every layer, goodness and loss: finite differences in float64, and torch's autograd where torch is installed."""

import gradcheck
import numpy as np
import pytest
import train

from common import functions, goodness
from common.label_map import LabelMap
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


@pytest.mark.parametrize("beta", [1.0, 7.0])
def test_losses_of_goodness(beta):
    g, labels = rng.standard_normal((6, 4)) / beta, np.array([0, 3, 1, 1, 2, 0])
    t, pos, neg = np.repeat([1.0, -1.0], 3), g[:, 0].copy(), g[:, 1].copy()
    loss, d = goodness.threshold_loss(pos, t, 0.1, beta)
    assert np.isclose(loss, np.mean(np.log1p(np.exp(-t * beta * (pos - 0.1)))))
    gradcheck.check(lambda: goodness.threshold_loss(pos, t, 0.1, beta)[0], {"g": pos}, {"g": d})
    loss, d_pos, d_neg = goodness.margin_loss(pos, neg, beta)
    assert np.isclose(loss, np.mean(np.log1p(np.exp(-beta * (pos - neg)))))
    both = {"pos": pos, "neg": neg}
    gradcheck.check(lambda: goodness.margin_loss(pos, neg, beta)[0], both, {"pos": d_pos, "neg": d_neg})
    loss, dg = goodness.label_loss(g, labels, beta)
    assert np.isclose(loss, -np.mean(np.log(functions.softmax(beta * g)[np.arange(6), labels])))
    gradcheck.check(lambda: goodness.label_loss(g, labels, beta)[0], {"g": g}, {"g": dg})


@pytest.mark.parametrize("loss", train.CHOICES["loss"])
@pytest.mark.parametrize("negatives", train.CHOICES["negatives"])
def test_every_choice_of_negatives(negatives, loss):
    """What ff_cifar_lc makes of the goodness of every label: the loss, its gradient, and the wrong labels' goodness."""
    cfg = train.Config(negatives=negatives, loss=loss, beta=3.0, threshold=0.2)
    g, labels = rng.standard_normal((6, 4)), np.array([0, 3, 1, 1, 2, 0])

    def objective():
        return train.compare(g, labels, cfg, np.random.default_rng(1))  # the same draw each time

    _, dg, g_neg = objective()
    gradcheck.check(lambda: objective()[0], {"g": g}, {"g": dg})
    wrong = (dg != 0) & ~np.eye(4, dtype=bool)[labels]  # which wrong labels the loss has seen
    assert (wrong.sum(axis=1) == (3 if negatives == "all" else 1)).all() and np.isclose(g[wrong].mean(), g_neg)
    if negatives == "hard":
        assert np.allclose(g[wrong], np.where(np.eye(4, dtype=bool)[labels], -np.inf, g).max(axis=1))


def label_map():
    layer = LabelMap((7, 6, 2), 3, 3, 4, rng, dtype=F64)
    layer.params["U"] += 0.3 * rng.standard_normal(layer.params["U"].shape)
    layer.params["b"] += 0.1 * rng.standard_normal(layer.out_shape)
    return layer


def test_label_map_all_labels():
    """The whole objective of --negatives all: one image part, ten labels, one loss over their goodness."""
    layer, x, labels = label_map(), rng.standard_normal((5, 7, 6, 2)), np.array([0, 3, 1, 1, 2])

    def objective():
        a, cache = layer.image_part(x)
        g = layer.goodness(a)
        return *goodness.label_loss(g, labels, 5.0), g, a, cache

    _, dg, g, a, cache = objective()
    for k in range(4):  # goodness by its definition
        y = np.maximum(a + layer.params["U"][:, :, k], 0)
        assert np.allclose(g[:, k], [np.mean(row**2) for row in y])
    grads = layer.backward_goodness(dg, a, cache)
    assert set(grads) == set(layer.params)
    gradcheck.check(lambda: objective()[0], layer.params, grads)
    pull = rng.standard_normal(layer.out_shape)  # what is added to dL/da: as a loss, pull * a, without any ReLU
    gradcheck.check(
        lambda: objective()[0] + np.sum(pull * layer.image_part(x)[0]),
        layer.params,
        layer.backward_goodness(dg, a, cache, pull),
    )
    weights = rng.standard_normal((5, *layer.out_shape[:2], 4))  # a loss on single locations
    gradcheck.check(
        lambda: np.sum(weights * layer.goodness_map(layer.image_part(x)[0])),
        layer.params,
        layer.backward_goodness(weights, a, cache),
    )


def test_peer_pull_points_to_the_layers_mean():
    y = np.maximum(rng.standard_normal((6, 4, 3, 2)), 0)
    y[..., 0, 1] = 0  # two columns of a unit that is always off
    pull = goodness.peer_pull(y.mean(axis=0), 0.5)
    m = np.mean([*y], axis=0)
    assert pull.shape == (4, 3, 2) and np.allclose(pull, 0.5 * (m - m.mean())) and np.isclose(pull.sum(), 0)
    assert (pull[..., 0, 1] < 0).all()  # descent raises what is silent


@pytest.mark.parametrize("n", [1, 2, 4])
def test_label_map_rows(n):
    layer, x, labels = label_map(), rng.standard_normal((5, 7, 6, 2)), rng.integers(0, 4, 5 * n)
    y, cache = layer.forward(x, labels)
    a, _ = layer.image_part(x)
    for r, label in enumerate(labels):
        assert np.allclose(y[r], np.maximum(a[r % 5] + layer.params["U"][:, :, label], 0))
    weights = rng.standard_normal(y.shape)
    none, grads = layer.backward(weights, cache)
    assert none is None and set(grads) == set(layer.params)
    gradcheck.check(lambda: np.sum(weights * layer.forward(x, labels)[0]), layer.params, grads)
    pull = rng.standard_normal(layer.out_shape)

    def pulled():
        z = np.concatenate([layer.image_part(x)[0]] * n) + layer.params["U"][:, :, labels].transpose(2, 0, 1, 3)
        return np.sum(weights * layer.forward(x, labels)[0]) + np.sum(pull * z)

    gradcheck.check(pulled, layer.params, layer.backward(weights, cache, pull=pull)[1])
    with pytest.raises(ValueError, match="no input gradient"):
        layer.backward(weights, cache, need_dx=True)


@pytest.mark.parametrize("dtype, tolerance", [(F64, 1e-12), (np.float32, 1e-5)])
def test_label_map_torch_parity(dtype, tolerance):
    """float32 takes the kernels, float64 the reference; torch differentiates ten separate passes."""
    torch = pytest.importorskip("torch")
    layer, x, labels = label_map(), rng.standard_normal((6, 7, 6, 2)).astype(dtype), np.array([0, 3, 1, 1, 2, 0])
    for k, p in layer.params.items():
        layer.params[k] = p.astype(dtype)
    a, cache = layer.image_part(x)
    g = layer.goodness(a)
    loss, dg = goodness.label_loss(g, labels, 5.0)
    grads = layer.backward_goodness(dg, a, cache)
    ta, params = torch_lc(torch, layer.layer, torch.tensor(x))
    U = torch.tensor(layer.params["U"], requires_grad=True)
    tg = torch.stack([(ta + U[:, :, k]).relu().square().mean(dim=(1, 2, 3)) for k in range(4)], dim=1)
    tloss = torch.nn.functional.cross_entropy(5.0 * tg, torch.tensor(labels))
    tloss.backward()
    assert np.isclose(loss, tloss.item(), rtol=10 * tolerance)
    for k, p in (params | {"U": U}).items():
        assert np.linalg.norm(grads[k] - p.grad.numpy()) <= tolerance * np.linalg.norm(p.grad.numpy())


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
