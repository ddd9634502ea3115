"""LabelInput: a dense first layer of which the first K inputs are the label, the others the pixels of an image.

    x = [c, p]        c (K,) the label's code, p (D - K,) the pixels; the row is scaled to mean square 1:
    y = ReLU(x W / r + b),    r^2 = (|c|^2 + |p|^2) / D                              (Hinton's program normalises so)

Rows that show one image under several labels share p W[K:], nearly all of the work: with `image_part` it is computed
once, for the right label, a wrong one and the neutral one in training, and for all ten in prediction. Nothing is
approximated; the plain path is Dense on `normalise(x)`, and the tests compare the two.
"""

import numpy as np

from common.arrays import namespace
from common.layers import Dense, activate, relu_grad, stack
from common.product import gradient
from common.sparse import times


class LabelInput:
    """Arguments as Dense; n_classes K of the n_in inputs are the label. params: W (n_in, n_out), b (n_out,)."""

    def __init__(self, n_in, n_out, n_classes, rng, gain=2**0.5, dtype=np.float32):
        self.dense = Dense(n_in, n_out, rng, gain=gain, dtype=dtype)
        self.params, self.state, self.n_classes = self.dense.params, {}, n_classes

    def image_part(self, p):
        """Pixels p (B, D - K) -> what all labels share: p, p W[K:] (B, n_out), |p|^2 (B,)."""
        return p, times(p, self.params["W"][self.n_classes :]), (p * p).sum(axis=1)

    def forward(self, part, codes, train=True):
        """part from `image_part` of B images, codes (n*B, K) -> y (n*B, n_out), cache. Row r is image r mod B."""
        p, pw, squares = part
        n = len(codes) // len(p)
        r_inverse = self.scale(squares, codes)  # (n*B,)
        W, b = self.params["W"], self.params["b"]
        xp = namespace(pw)
        z = xp.concatenate([pw] * n) if n > 1 else pw.copy()
        z += codes @ W[: self.n_classes]
        z *= r_inverse[:, None]
        y = activate(z, b)
        return y, (p, codes, r_inverse, y)

    def scale(self, squares, codes):
        """1 / r of every row."""
        n = len(codes) // len(squares)
        total = namespace(codes).concatenate([squares] * n) + (codes * codes).sum(axis=1)
        return 1 / namespace(codes).sqrt(total / len(self.params["W"]) + 1e-8)

    def backward(self, dy, cache, need_dx=False, pull=None, rows=None):
        """dy (n*B, n_out), or (M, n_out) of some rows -> None, grads. pull and rows as in Dense.

        An image's pixels meet the sum of its rows' errors once.
        """
        p, codes, r_inverse, y = cache
        xp, B = namespace(p), len(p)
        rows = xp.arange(len(y)) if rows is None else rows
        dz = relu_grad(dy, y[rows])  # (M, n_out)
        db = dz.sum(axis=0)
        dz = dz * r_inverse[rows, None]
        of_images = xp.zeros_like(y)
        of_images[rows] = dz
        of_images = of_images.reshape(-1, B, dz.shape[1]).sum(axis=0)  # (B, n_out)
        images = xp.unique(rows % B)
        parts = [(codes[rows], dz), (p[images], of_images[images])]
        if pull is not None:  # as in Dense
            sums = r_inverse @ codes, r_inverse.reshape(-1, B).sum(axis=0) @ p
            parts = [(stack(x, each), stack(d, pull)) for (x, d), each in zip(parts, sums, strict=True)]
            db += len(y) * pull
        return None, {"W": gradient(*parts), "b": db}
