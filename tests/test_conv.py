"""Conv2d: gradients, kernels against the readable reference and against torch, any shape, stride and padding."""

import gradcheck
import numpy as np
import pytest

from common.conv import Conv2d

rng = np.random.default_rng(11)
SHAPES = [  # B, C, O, H, W, k, stride, padding: full and partial tiles, small and large maps
    (7, 3, 70, 9, 10, 3, 1, 1),
    (5, 8, 64, 6, 5, 3, 2, 1),
    (13, 16, 33, 5, 5, 1, 1, 0),
    (3, 5, 5, 12, 12, 5, 1, 2),
    (20, 7, 130, 2, 2, 3, 1, 1),
    (2, 9, 16, 8, 9, 3, 2, 0),
    (1, 1, 1, 3, 3, 3, 1, 0),
]


def twins(B, C, O, H, W, k, stride, padding):
    """The same layer in float32 (kernels) and in float64 (reference), and images."""
    fast, exact = (
        Conv2d(C, O, np.random.default_rng(0), k, stride, padding, dtype=t) for t in (np.float32, np.float64)
    )
    fast.params["b"] += 0.3 * rng.standard_normal(O).astype(np.float32)
    exact.params = {key: p.astype(np.float64) for key, p in fast.params.items()}
    return fast, exact, rng.standard_normal((B, H, W, C)).astype(np.float32)


def near(a, b):
    assert a.shape == b.shape and np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels(shape):
    fast, exact, x = twins(*shape)
    (y, cache), (y64, cache64) = fast.forward(x), exact.forward(np.float64(x))
    assert y.dtype == np.float32
    near(y, y64)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    dy[(y > 0) != (y64 > 0)] = 0  # an input within rounding of the ReLU's kink
    dx, grads = fast.backward(dy, cache, need_dx=True)
    dx64, grads64 = exact.backward(np.float64(dy), cache64, need_dx=True)
    for ours, expected in ((dx, dx64), (grads["W"], grads64["W"]), (grads["b"], grads64["b"])):
        near(ours, expected)
    assert fast.backward(dy, cache)[0] is None


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
@pytest.mark.parametrize("relu", [True, False])
def test_gradient(shape, relu):
    *_, k, stride, padding = shape
    layer = Conv2d(3, 4, np.random.default_rng(0), k, stride, padding, relu, dtype=np.float64)
    layer.params["b"] += 0.1 * rng.standard_normal(4)
    x = rng.standard_normal((2, 7, 6, 3))
    y, cache = layer.forward(x)
    weights = rng.standard_normal(y.shape)
    dx, grads = layer.backward(weights, cache, need_dx=True)
    gradcheck.check(lambda: np.sum(weights * layer.forward(x)[0]), {"x": x} | layer.params, {"x": dx} | grads)


def test_reference_is_the_definition():
    """The formula of conv.py's docstring as nested loops."""
    layer = Conv2d(2, 3, np.random.default_rng(0), 3, 2, 1, dtype=np.float64)
    layer.params["b"] += rng.standard_normal(3)
    x = rng.standard_normal((2, 5, 6, 2))
    y, _ = layer.forward(x)
    for n, i, j, o in np.ndindex(y.shape):
        z = layer.params["b"][o]
        for u, v, c in np.ndindex(3, 3, 2):
            if 0 <= 2 * i + u - 1 < 5 and 0 <= 2 * j + v - 1 < 6:
                z += x[n, 2 * i + u - 1, 2 * j + v - 1, c] * layer.params["W"][u, v, c, o]
        assert np.isclose(y[n, i, j, o], max(z, 0))


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_torch_agrees(shape):
    torch = pytest.importorskip("torch")
    fast, _, x = twins(*shape)
    *_, stride, padding = shape
    y, cache = fast.forward(x)
    dy = rng.standard_normal(y.shape).astype(np.float32)
    dx, grads = fast.backward(dy, cache, need_dx=True)
    images = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    W = torch.from_numpy(fast.params["W"].transpose(3, 2, 0, 1).copy()).requires_grad_()
    b = torch.from_numpy(fast.params["b"]).requires_grad_()
    out = torch.nn.functional.conv2d(images, W, b, stride, padding).relu()
    out.backward(torch.from_numpy(dy.transpose(0, 3, 1, 2).copy()))
    near(y, out.detach().numpy().transpose(0, 2, 3, 1))
    for ours, theirs in (
        (dx, images.grad.permute(0, 2, 3, 1)),
        (grads["W"], W.grad.permute(2, 3, 1, 0)),
        (grads["b"], b.grad),
    ):
        near(ours, theirs.numpy())
