"""Conv2d: a convolutional layer, the same weights at every location, with its own gradient written by hand.

    y[b, i, j, o] = ReLU(sum_{u, v, c} x[b, i s + u - p, j s + v - p, c] W[u, v, c, o] + b[o])    stride s, padding p

Images are (B, H, W, C), zeros around them. In index notation, with dz = dy where the ReLU is on:

    dW[u, v, c, o] = sum_{b, i, j} x[b, i s + u - p, j s + v - p, c] dz[b, i, j, o]
    dx[b, i', j', c] = sum_{u, v, o} dz[b, i, j, o] W[u, v, c, o]   over all i s + u - p = i', j s + v - p = j'

The reference below is one matrix product for each of the kernel's places (u, v): the image, shifted, times W[u, v].
float32 takes the kernels, which need no shifted copies. Forward-Forward never asks for dx: a third of the work.
"""

import numpy as np

from common.arrays import kernels, namespace


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
        xp, p = namespace(x), self.padding
        x = xp.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
        y = b
        for u, v, seen in self.places(OH, OW):
            y = y + x[seen] @ W[u, v]
        y = xp.maximum(y, 0) if self.relu else y
        return y, (x, y)

    def backward(self, dy, cache, need_dx=False):
        """dy (B, OH, OW, O) -> dx (B, H, W, C) or None, grads summed over the batch."""
        x, y = cache
        W, p = self.params["W"], self.padding
        dz = dy * (y > 0) if self.relu else dy
        if kernels(x) and kernels(W):
            return self._fast_backward(np.ascontiguousarray(dz, np.float32), x, need_dx)
        xp = namespace(x)
        dW, rows = xp.zeros_like(W), dz.reshape(-1, dz.shape[3])
        dx = xp.zeros_like(x) if need_dx else None
        for u, v, seen in self.places(*dz.shape[1:3]):
            dW[u, v] = x[seen].reshape(-1, x.shape[3]).T @ rows
            if need_dx:
                dx[seen] += dz @ W[u, v].T
        if need_dx:
            dx = dx[:, p : x.shape[1] - p, p : x.shape[2] - p]
        return dx, {"W": dW, "b": rows.sum(axis=0)}

    def _fast_backward(self, dz, x, need_dx):
        from common import kernels_conv

        W, s, p = self.params["W"], self.stride, self.padding
        dW, dx = np.empty_like(W), None
        kernels_conv.weight_grad(x, dz, dW, s, p)
        if need_dx:  # a convolution of dz, spread out by the stride, with the kernel turned around
            k, (B, OH, OW, O), (H, Wd) = len(W), dz.shape, x.shape[1:3]
            spread = dz
            if s > 1:
                spread = np.zeros((B, H + 2 * p - k + 1, Wd + 2 * p - k + 1, O), np.float32)
                spread[:, : s * OH : s, : s * OW : s] = dz
            turned = np.ascontiguousarray(W[::-1, ::-1].transpose(0, 1, 3, 2))
            dx = convolve(spread, turned, np.zeros(W.shape[2], np.float32), (H, Wd), 1, k - 1 - p, False)
        return dx, {"W": dW, "b": dz.sum(axis=(0, 1, 2))}


def convolve(x, W, b, size, stride, pad, relu):
    """The kernels' convolution, float32: x (B, H, W, C), W (k, k, C, O), b (O,), size (OH, OW) -> (B, OH, OW, O)."""
    from common import kernels_conv

    K, O = W[..., 0].size, W.shape[3]
    panels = np.empty((-(-O // kernels_conv.SPAN), K, kernels_conv.SPAN), np.float32)
    kernels_conv.pack_weights(W.reshape(K, O), panels)
    y = np.empty((len(x), *size, O), np.float32)
    kernels_conv.forward(x, panels, b, y, *W.shape[:2], stride, pad, relu)
    return y
