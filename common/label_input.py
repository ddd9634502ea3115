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
from common.product import gradient, matmul
from common.sparse import times


class LabelInput:
    """Arguments as Dense; n_classes K of the n_in inputs are the label. params: W (n_in, n_out), b (n_out,).

    norm: how a row is scaled first, see goodness.scaled: "rms" (as above), "length" (r: the row's length) or "none".
    """

    def __init__(self, n_in, n_out, n_classes, rng, gain=2**0.5, dtype=np.float32, norm="rms", relu=True):
        self.dense = Dense(n_in, n_out, rng, relu=relu, gain=gain, dtype=dtype)
        self.params, self.state, self.n_classes, self.norm = self.dense.params, {}, n_classes, norm

    def image_part(self, p):
        """Pixels p (B, D - K) -> what all labels share: p, p W[K:] (B, n_out), |p|^2 (B,)."""
        squares = (p * p).sum(axis=1) if self.norm != "none" else None
        return p, times(p, self.params["W"][self.n_classes :]), squares

    def forward(self, part, codes, train=True):
        """part from `image_part` of B images, codes (n*B, K) -> y (n*B, n_out), cache. Row r is image r mod B."""
        p, pw, squares = part
        r_inverse = self.scale(squares, codes) if self.norm != "none" else None  # (n*B,)
        W, b = self.params["W"], self.params["b"]
        z = matmul(codes, W[: self.n_classes])
        by_label = z.reshape(-1, *pw.shape)  # (n, B, n_out), the same memory
        by_label += pw
        if r_inverse is not None:
            z *= r_inverse[:, None]
        y = activate(z, b) if self.dense.relu else z + b
        return y, (p, codes, r_inverse, y)

    def scale(self, squares, codes):
        """1 / r of every row."""
        n = len(codes) // len(squares)
        D, total = len(self.params["W"]), (codes * codes).sum(axis=1).reshape(n, -1) + squares
        r_inverse = 1 / namespace(codes).sqrt(total.ravel() / D + 1e-8)
        return r_inverse if self.norm == "rms" else r_inverse * codes.dtype.type(D**-0.5)

    def backward(self, dy, cache, need_dx=False, pull=None, rows=None):
        """dy (n*B, n_out), or (M, n_out) of some rows -> None, grads. pull and rows as in Dense.

        An image's pixels meet the sum of its rows' errors once.
        """
        p, codes, r_inverse, y = cache
        xp, B = namespace(p), len(p)
        rows = slice(None) if rows is None else rows
        dz = relu_grad(dy, y[rows]) if self.dense.relu else dy  # (M, n_out)
        db = dz.sum(axis=0)
        if r_inverse is not None:
            dz = dz * r_inverse[rows, None]
        if isinstance(rows, slice):
            of_images, images = dz, slice(None)
        else:
            of_images, images = xp.zeros_like(y), xp.unique(rows % B)
            of_images[rows] = dz
        of_images = of_images.reshape(-1, B, dz.shape[1]).sum(axis=0)  # (B, n_out)
        parts = [(codes[rows], dz), (p[images], of_images[images])]
        if pull is not None:  # as in Dense
            weights = xp.full(len(y), 1, dtype=y.dtype) if r_inverse is None else r_inverse
            of_image = weights.reshape(-1, B).sum(axis=0)  # (B,)
            sums = matmul(weights[None], codes)[0], matmul(of_image[None], p)[0]
            parts = [(stack(x, each), stack(d, pull)) for (x, d), each in zip(parts, sums, strict=True)]
            db += len(y) * pull
        return None, {"W": gradient(*parts), "b": db}
