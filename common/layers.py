"""Dense, ReLU, RMSNorm, Flatten; every layer is forward(x) -> y, cache and backward(dy, cache) -> dx, grads.

No base class and no hidden state between calls. `need_dx=False` is all that Forward-Forward ever asks for: a layer
that hands no gradient to the layer below cannot be part of backpropagation.
"""

import numpy as np

from common.arrays import namespace
from common.goodness import MeanSquare, rms_inverse, scale_rows


class Dense:
    """y = ReLU(x W + b), or without the ReLU. params: W (n_in, n_out), He-initialised from rng; b (n_out,), 0."""

    def __init__(self, n_in, n_out, rng, relu=True, dtype=np.float32):
        self.params = {
            "W": (np.sqrt(2.0 / n_in) * rng.standard_normal((n_in, n_out))).astype(dtype),
            "b": np.zeros(n_out, dtype),
        }
        self.state = {}
        self.relu = relu

    def forward(self, x, train=True):
        """x (B, n_in) -> y (B, n_out)."""
        y = x @ self.params["W"] + self.params["b"]
        if self.relu:
            y = y * (y > 0)
        return y, (x, y)

    def backward(self, dy, cache, need_dx=False):
        """dy (B, n_out) -> dx (B, n_in) or None, grads summed over the batch."""
        x, y = cache
        dz = dy * (y > 0) if self.relu else dy
        grads = {"W": x.T @ dz, "b": dz.sum(axis=0)}
        return dz @ self.params["W"].T if need_dx else None, grads


class ReLU:
    """y = max(x, 0), for stacks whose layers do not have it built in."""

    def __init__(self):
        self.params, self.state = {}, {}

    def forward(self, x, train=True):
        return namespace(x).maximum(x, 0), x

    def backward(self, dy, cache, need_dx=False):
        return dy * (cache > 0) if need_dx else None, {}


class RMSNorm:
    """y = x / r per row, r = sqrt(mean of x^2 + eps): `goodness.normalise` for those who need its gradient.

    dx = (dy - y mean(y dy)) / r.
    """

    def __init__(self, eps=1e-8):
        self.params, self.state, self.eps = {}, {}, eps

    def forward(self, x, train=True):
        g, _ = MeanSquare().forward(x)
        r_inverse = rms_inverse(g, self.eps)
        y = scale_rows(x, r_inverse)
        return y, (y, r_inverse)

    def backward(self, dy, cache, need_dx=False):
        if not need_dx:
            return None, {}
        y, r_inverse = cache
        along = (y * dy).mean(axis=tuple(range(1, y.ndim)))  # (B,)
        return scale_rows(dy - scale_rows(y, along), r_inverse), {}


class Flatten:
    """(B, ...) -> (B, D)."""

    def __init__(self):
        self.params, self.state = {}, {}

    def forward(self, x, train=True):
        return x.reshape(len(x), -1), x.shape

    def backward(self, dy, cache, need_dx=False):
        return dy.reshape(cache) if need_dx else None, {}
