"""Conv2d: a convolutional layer, the same weights at every location, with its own gradient written by hand.

    y[b, i, j, o] = ReLU(sum_{u, v, c} x[b, i s + u - p, j s + v - p, c] W[u, v, c, o] + b[o])    stride s, padding p

Images are (B, H, W, C), zeros around them. In index notation, with dz = dy where the ReLU is on:

    dW[u, v, c, o] = sum_{b, i, j} x[b, i s + u - p, j s + v - p, c] dz[b, i, j, o]
    dx[b, i', j', c] = sum_{u, v, o} dz[b, i, j, o] W[u, v, c, o]   over all i s + u - p = i', j s + v - p = j'

The reference below is one matrix product for each of the kernel's places (u, v): the image, shifted, times W[u, v].
float32 takes the kernels, which need no shifted copies. Forward-Forward never asks for dx: a third of the work.
"""

import numpy as np

from common.arrays import gpu_kernels, kernels, namespace
from common.layers import activate
from common.pool import Grad, full
from common.product import matmul


class Conv2d:
    """C -> O channels, k x k. params: W (k, k, C, O), normal with sd gain / sqrt(k k C); b (O,), 0."""

    def __init__(self, C, O, rng, k=3, stride=1, padding=1, relu=True, gain=2**0.5, dtype=np.float32):
        self.params = {
            "W": (gain / np.sqrt(k * k * C) * rng.standard_normal((k, k, C, O))).astype(dtype),
            "b": np.zeros(O, dtype),
        }
        self.state, self.stride, self.padding, self.relu = {}, stride, padding, relu

    def out_size(self, n):
        """Rows (or columns) of y for n rows of x."""
        return (n + 2 * self.padding - len(self.params["W"])) // self.stride + 1

    def places(self, OH, OW):
        """The kernel's places u, v, and what each of them sees of the padded image."""
        k, s = len(self.params["W"]), self.stride
        for u in range(k):
            for v in range(k):
                yield u, v, np.s_[:, u : u + s * OH : s, v : v + s * OW : s]

    def forward(self, x, train=True):
        """x (B, H, W, C) -> y (B, OH, OW, O)."""
        W, b = self.params["W"], self.params["b"]
        OH, OW = self.out_size(x.shape[1]), self.out_size(x.shape[2])
        if kernels(x) and kernels(W):
            x = np.ascontiguousarray(x)
            y = convolve(x, W, b, (OH, OW), self.stride, self.padding, self.relu)
            return y, (x, y)
        if gpu_kernels(x):
            return self._gpu_forward(x, OH, OW)
        xp, p = namespace(x), self.padding
        x = xp.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
        y = b
        for u, v, seen in self.places(OH, OW):
            y = y + x[seen] @ W[u, v]
        y = xp.maximum(y, 0) if self.relu else y
        return y, (x, y)

    def backward(self, dy, cache, need_dx=False):
        """dy (B, OH, OW, O), or a pool.Grad of y -> dx (B, H, W, C) or None, grads summed over the batch."""
        x, y, *columns = cache
        W, p = self.params["W"], self.padding
        if kernels(x) and kernels(W):
            return self._fast_backward(dy, x, y, need_dx)
        if columns:
            return self._gpu_backward(dy, x, y, *columns, need_dx)
        xp = namespace(x)
        dz = full(dy) * (y > 0) if self.relu else full(dy)
        dW, rows = xp.zeros_like(W), dz.reshape(-1, dz.shape[3])
        dx = xp.zeros_like(x) if need_dx else None
        for u, v, seen in self.places(*dz.shape[1:3]):
            dW[u, v] = x[seen].reshape(-1, x.shape[3]).T @ rows
            if need_dx:
                dx[seen] += dz @ W[u, v].T
        if need_dx:
            dx = dx[:, p : x.shape[1] - p, p : x.shape[2] - p]
        return dx, {"W": dW, "b": rows.sum(axis=0)}

    def _gpu_forward(self, x, OH, OW):
        """One matrix product, of all that the kernel sees at each place (im2col) with the weights."""
        k, W = gpu_kernels(x), self.params["W"]
        columns = k.im2col(namespace(x).ascontiguousarray(x), len(W), self.stride, self.padding, OH, OW)
        z = matmul(columns, W.reshape(-1, W.shape[3]))
        z = activate(z, self.params["b"]) if self.relu else z + self.params["b"]
        y = z.reshape(len(x), OH, OW, -1)
        return y, (x, y, columns)

    def _gpu_backward(self, dy, x, y, columns, need_dx):
        W = self.params["W"]
        dy = dy if isinstance(dy, Grad) else Grad(dy, y)
        dz = dy.full(self.relu).reshape(-1, y.shape[3])
        grads = {"W": matmul(columns.T, dz).reshape(W.shape), "b": dz.sum(axis=0)}
        if not need_dx:
            return None, grads
        dcolumns = matmul(dz, W.reshape(-1, W.shape[3]).T)
        return gpu_kernels(x).col2im(dcolumns, x.shape, len(W), self.stride, self.padding, *y.shape[1:3]), grads

    def _fast_backward(self, dy, x, y, need_dx):
        from common import kernels_conv, kernels_image

        W, s, p = self.params["W"], self.stride, self.padding
        g, mode = dy, kernels_image.MASKED if self.relu else kernels_image.PLAIN
        if isinstance(dy, Grad):  # dL/dy is large, and what it is made from is small, or there anyway
            g, mode = dy.d, kernels_image.TIMES if dy.squares else mode
        g = np.ascontiguousarray(g, np.float32)
        size, together, columns, parts = kernels_conv.plan(*y.shape[:2], *W.shape)
        dW, db = np.empty((parts, *W.shape), np.float32), np.empty((len(y), y.shape[3]), np.float32)
        kernels_conv.weight_grad(x, g, y, mode, dW, size, kernels_conv.SPANS[size], together, columns, s, p)
        kernels_image.bias_grad(g, y, mode, db)
        grads = {"W": dW.sum(axis=0) if len(dW) > 1 else dW[0], "b": db.sum(axis=0)}
        if not need_dx:
            return None, grads
        dz = g
        if mode != kernels_image.PLAIN or g.shape != y.shape:
            dz = np.empty_like(y)
            kernels_image.spread(g, y, mode, dz)
        k, (B, OH, OW, O), (H, Wd) = len(W), dz.shape, x.shape[1:3]
        if s > 1:  # dx is a convolution of dz, spread out by the stride, with the kernel turned around
            apart = np.zeros((B, H + 2 * p - k + 1, Wd + 2 * p - k + 1, O), np.float32)
            apart[:, : s * OH : s, : s * OW : s] = dz
            dz = apart
        turned = np.ascontiguousarray(W[::-1, ::-1].transpose(0, 1, 3, 2))
        dx = convolve(dz, turned, np.zeros(W.shape[2], np.float32), (H, Wd), 1, k - 1 - p, False)
        return dx, grads


class Residual:
    """y = ReLU(conv2(ReLU(conv1(x))) + shortcut(x)), 3 x 3 each (He et al. 2016, without BatchNorm).

    C -> O channels; the shortcut is x itself where the shapes agree, else a 1 x 1 convolution. params: W1, b1, W2, b2
    (and W0, b0 of that shortcut). It is one block: inside it, conv1 learns from what conv2 hands back.
    """

    def __init__(self, C, O, rng, stride=1, dtype=np.float32):
        self.parts = {
            "1": Conv2d(C, O, rng, stride=stride, dtype=dtype),
            "2": Conv2d(O, O, rng, relu=False, gain=1.0, dtype=dtype),
        }
        if stride > 1 or C != O:
            self.parts["0"] = Conv2d(C, O, rng, k=1, stride=stride, padding=0, relu=False, gain=1.0, dtype=dtype)
        self.params = {k + name: p for name, part in self.parts.items() for k, p in part.params.items()}
        self.state = {}

    def out_size(self, n):
        return self.parts["1"].out_size(n)

    def forward(self, x, train=True):
        """x (B, H, W, C) -> y (B, OH, OW, O)."""
        for name, part in self.parts.items():  # params may have been replaced, on their way to a GPU
            part.params = {k: self.params[k + name] for k in "Wb"}
        caches = {}
        inner, caches["1"] = self.parts["1"].forward(x)
        y, caches["2"] = self.parts["2"].forward(inner)
        short = x
        if "0" in self.parts:
            short, caches["0"] = self.parts["0"].forward(x)
        y = namespace(x).maximum(y + short, 0)
        return y, (y, caches)

    def backward(self, dy, cache, need_dx=False):
        """dy (B, OH, OW, O), or a pool.Grad of y -> dx (B, H, W, C) or None, grads summed over the batch."""
        y, caches = cache
        dz = full(dy) * (y > 0)
        dinner, second = self.parts["2"].backward(dz, caches["2"], need_dx=True)
        dx, first = self.parts["1"].backward(dinner, caches["1"], need_dx)
        grads = {"W1": first["W"], "b1": first["b"], "W2": second["W"], "b2": second["b"]}
        dshort = dz
        if "0" in self.parts:
            dshort, short = self.parts["0"].backward(dz, caches["0"], need_dx)
            grads |= {"W0": short["W"], "b0": short["b"]}
        return dx + dshort if need_dx else None, grads


def convolve(x, W, b, size, stride, pad, relu):
    """The kernels' convolution, float32: x (B, H, W, C), W (k, k, C, O), b (O,), size (OH, OW) -> (B, OH, OW, O)."""
    from common import kernels_conv

    K, O = W[..., 0].size, W.shape[3]
    width = kernels_conv.size_for(O)
    span = kernels_conv.SPANS[width]
    panels = np.empty((-(-O // span), K, span), np.float32)
    kernels_conv.pack_weights(W.reshape(K, O), panels)
    y = np.empty((len(x), *size, O), np.float32)
    kernels_conv.forward(x, panels, width, b, y, *W.shape[:2], stride, pad, relu)
    return y
