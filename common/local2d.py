"""LocallyConnected2d: a convolution that shares no weights; every location has its own filters.

    z[b, i, j, o] = b[i, j, o] + sum_{ky, kx, c} x[b, i*s + ky - p, j*s + kx - p, c] W[i, j, ky, kx, c, o]

The readable definition is the batched matrix product below, one (B, K) x (K, O) product per location. It works on
NumPy and CuPy arrays of any float type; NumPy float32 arrays take the numba kernels of kernels_cpu.py, which give the
same numbers to rounding. Their activations are (B, H, W, C) like all others, with the batch innermost in memory.
"""

import numpy as np

from common.arrays import aligned, kernels, namespace


class LocallyConnected2d:
    """Locally connected layer, with ReLU unless told otherwise.

    in_shape (H, W, C), channels O, rf: side of the square receptive field, stride, padding (zeros on every side).
    params: W (OH, OW, rf, rf, C, O), normal, sd sqrt(variance / (rf*rf*C)), He's 2 by default; b (OH, OW, O), 0.
    Raises ValueError when the receptive field is larger than the padded map.
    """

    def __init__(self, in_shape, channels, rf, rng, stride=1, padding=0, relu=True, variance=2.0, dtype=np.float32):
        H, W, C = in_shape
        if rf < 1 or channels < 1 or stride < 1 or padding < 0:
            raise ValueError(
                f"rf {rf}, channels {channels} and stride {stride} must be at least 1, padding {padding} not negative"
            )
        if rf > min(H, W) + 2 * padding:
            raise ValueError(f"a receptive field of {rf} does not fit on a {H}x{W} map with padding {padding}")
        OH, OW = (H + 2 * padding - rf) // stride + 1, (W + 2 * padding - rf) // stride + 1
        scale = np.sqrt(variance / (rf * rf * C))
        self.params = {
            "W": (scale * rng.standard_normal((OH, OW, rf, rf, C, channels))).astype(dtype),
            "b": np.zeros((OH, OW, channels), dtype),
        }
        self.state = {}
        self.stride, self.padding, self.relu = stride, padding, relu
        self.in_shape, self.out_shape = (H, W, C), (OH, OW, channels)

    def forward(self, x, train=True):
        """x (B, H, W, C) -> y (B, OH, OW, O) and the cache of `backward`."""
        x = x.astype(self.params["W"].dtype, copy=False)  # the parameters decide
        if kernels(x) is None:
            patches = self._patches(x)  # (OH*OW, B, K)
            W = self.params["W"].reshape(*patches.shape[::2], -1)  # (OH*OW, K, O)
            z = namespace(x).matmul(patches, W)  # (OH*OW, B, O)
            y = z.transpose(1, 0, 2).reshape(len(x), *self.out_shape) + self.params["b"]
            if self.relu:
                y = y * (y > 0)
            return y, (patches, y, x.shape)
        xp = self.pack(x)
        y = self.new_output(len(x))
        self.forward_window(xp, y, 0, len(x), self.everywhere)
        y = y.transpose(3, 0, 1, 2)
        return y, (xp, y, x.shape)

    def backward(self, dy, cache, need_dx=False, pull=None):
        """dy (B, OH, OW, O) = dL/dy -> dx (B, H, W, C) or None, grads {"W", "b"} summed over the batch.

        pull (OH, OW, O), from goodness.peer_pull: added to every row's gradient by what enters the ReLU.
        """
        x, y, x_shape = cache
        dy = dy.astype(y.dtype, copy=False)
        if kernels(dy) is None:
            xp = namespace(dy)
            dz = (dy * (y > 0) if self.relu else dy) + (0 if pull is None else pull)
            B, (OH, OW, O) = len(dz), self.out_shape
            dz_t = dz.reshape(B, OH * OW, O).transpose(1, 0, 2)  # (OH*OW, B, O)
            dW = xp.matmul(x.transpose(0, 2, 1), dz_t).reshape(self.params["W"].shape)
            grads = {"W": dW, "b": dz.sum(axis=0)}
            if not need_dx:
                return None, grads
            W = self.params["W"].reshape(OH * OW, -1, O)
            return self._fold(xp.matmul(dz_t, W.transpose(0, 2, 1)), x_shape), grads
        dz = self.dz(dy, y)
        if pull is not None:
            dz = dz + pull[..., None]  # not in place: without a ReLU dz is the caller's
        grads = {k: aligned(self.params[k].shape) for k in ("W", "b")}
        self.weight_grad_window(x, dz, grads, self.everywhere)
        return self._input_grad(dz, x_shape) if need_dx else None, grads

    def linear(self, x):
        """x (B, H, W, C) -> W x (B, OH, OW, O), without bias and ReLU."""
        x = x.astype(self.params["W"].dtype, copy=False)
        if kernels(x) is None:
            patches = self._patches(x)
            z = namespace(x).matmul(patches, self.params["W"].reshape(*patches.shape[::2], -1))
            return z.transpose(1, 0, 2).reshape(len(x), *self.out_shape)
        y = self.new_output(len(x))
        self.forward_window(self.pack(x), y, 0, len(x), self.everywhere, linear=True)
        return y.transpose(3, 0, 1, 2)

    def linear_grads(self, x, dz):
        """x (B, H, W, C) that `linear` saw, dz (B, OH, OW, O) = dL/d(W x) -> grads {"W", "b"}, b's that of a bias
        added to W x. Raises ValueError for a layer with a ReLU."""
        if self.relu:
            raise ValueError("linear_grads is for a layer made with relu=False")
        seen = self._patches(x) if kernels(x) is None else self.pack(x)
        return self.backward(dz, (seen, dz, x.shape))[1]

    # ---- reference path: patches as a copy, one matrix product per location

    def _patches(self, x):
        """Every receptive field as a row: (B, H, W, C) -> (OH*OW, B, rf*rf*C)."""
        xp = namespace(x)
        OH, OW, rf, _, C, _ = self.params["W"].shape
        s, p = self.stride, self.padding
        x = xp.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
        image, row, pixel, number = xp.ascontiguousarray(x).strides
        shape, strides = (OH, OW, len(x), rf, rf * C), (s * row, s * pixel, image, row, number)
        windows = xp.lib.stride_tricks.as_strided(xp.ascontiguousarray(x), shape, strides)  # no copy yet: they overlap
        return xp.ascontiguousarray(windows).reshape(OH * OW, len(x), rf * rf * C)

    def _fold(self, d_patches, x_shape):
        """The transpose of `_patches`: add every patch's gradient back where it was cut out."""
        xp = namespace(d_patches)
        OH, OW, rf, _, C, _ = self.params["W"].shape
        s, p = self.stride, self.padding
        B, H, W, _ = x_shape
        d_patches = d_patches.reshape(OH, OW, B, rf, rf, C)
        dx = xp.zeros((B, H + 2 * p, W + 2 * p, C), dtype=d_patches.dtype)
        for ky in range(rf):
            for j in range(OW):
                dx[:, ky : ky + s * OH : s, j * s : j * s + rf] += d_patches[:, j, :, ky].transpose(1, 0, 2, 3)
        return dx[:, p : p + H, p : p + W]

    # ---- kernel path (NumPy float32); windows are (top, bottom, left, right) of the output map

    @property
    def everywhere(self):
        return 0, self.out_shape[0], 0, self.out_shape[1]

    def new_output(self, B):
        return aligned((*self.out_shape, B))  # (OH, OW, O, B)

    def pack(self, x):
        """Blocks of images side by side in SIMD lanes (kernels_cpu.pack); padding included."""
        k = kernels(x)
        p = self.padding
        if p:
            x = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
        B, H, W, C = x.shape
        Q = -(-B // k.BLOCK)
        packed = aligned(Q * H * W * C * k.BLOCK + k.SLACK)
        packed[-k.SLACK :] = 0
        packed = packed[: -k.SLACK].reshape(Q, H, W * C, k.BLOCK)
        images_first = x.flags.c_contiguous
        x = x.reshape(B, H, W * C) if images_first else batch_innermost(x).reshape(H, W * C, B)
        k.pack(x, packed, images_first)
        return packed

    def forward_window(self, xp, y, first, B, window, linear=False, again=None):
        """Write y[top:bottom, left:right, :, first : first + B] for packed images xp; `linear`: no bias and no ReLU.

        again: the column from which on the same numbers are written once more.
        """
        W, b = self.params["W"], self.params["b"]
        width = xp.shape[2] // W.shape[4]
        b = np.zeros_like(b) if linear else b
        again = first if again is None else again
        relu = self.relu and not linear
        kernels(y).forward(xp, W, b, y, first, again, B, width, self.stride, relu, *window)

    def dz(self, dy, y):
        """dL/dz (OH, OW, O, B) from dL/dy and y (B, OH, OW, O): the ReLU's derivative, 1 where y > 0."""
        dy = batch_innermost(dy)
        if not self.relu:
            return dy
        y = batch_innermost(y)
        dz = aligned(dy.shape)
        kernels(dy).relu_grad(dy.reshape(-1), y.reshape(-1), dz.reshape(-1))
        return dz

    def dz_of_pairs(self, dy, y):
        """dL/dz of rows b and B + b added up: dy and y (2B, OH, OW, O) -> (OH, OW, O, B)."""
        dy, y = batch_innermost(dy), batch_innermost(y)
        B = dy.shape[3] // 2
        if not self.relu:
            return dy[..., :B] + dy[..., B:]
        dz = aligned((*dy.shape[:3], B))
        kernels(dy).relu_grad_pairs(dy.reshape(-1, 2 * B), y.reshape(-1, 2 * B), dz.reshape(-1, B))
        return dz

    def weight_grad_window(self, xp, dz, grads, window):
        """Write grads of the locations in the window, from packed images xp and dz (OH, OW, O, B)."""
        width = xp.shape[2] // self.in_shape[2]
        kernels(dz).weight_grad(xp, dz, grads["W"], grads["b"], width, self.stride, *window)

    def _input_grad(self, dz, x_shape):
        k = kernels(dz)
        B, H, W, C = x_shape
        p = self.padding
        OH, OW, O = self.out_shape
        packed = aligned((-(-B // k.BLOCK), OH, OW * O, k.BLOCK))
        k.pack(dz.reshape(OH, OW * O, B), packed, False)
        dx = aligned((H + 2 * p, W + 2 * p, C, B))
        k.input_grad(packed, self.params["W"], dx, OW, self.stride)
        return dx[p : p + H, p : p + W].transpose(3, 0, 1, 2)


def batch_innermost(x):
    """(B, H, W, C) -> a contiguous (H, W, C, B) array; a view where the memory already is in that order."""
    return np.ascontiguousarray(x.transpose(1, 2, 3, 0))
