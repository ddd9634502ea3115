"""LabelConv: a convolution in which every location also receives K label units, the same weights at every location.

    a[b, i, j, o] = (x * W)[b, i, j, o] + bias[o]          the image part, whatever the label
    g_bk = mean over i, j, o of ReLU(a_bijo + U_ko)^2      goodness of label k: the mean of squares of what it excites

label_map.py with weights that are shared over the map. The goodness of all K labels costs one convolution and K
additions, and for a loss on these numbers with dg = dL/dg (B, K), D the number of units,

    d_bkijo = (2 / D) dg_bk ReLU(a_bijo + U_ko),    dL/da = sum_k d,    dL/dU_ko = sum_bij d

so that the K errors are added up before they meet the image.
"""

import numpy as np

from common.arrays import kernels, namespace
from common.conv import Conv2d


class LabelConv:
    """Arguments as Conv2d, and n_classes K. params: W (k, k, C, O), b (O,), U (K, O), normal with the sd of W.

    label_rng: where U is drawn from (default: rng, after W).
    """

    def __init__(self, C, O, n_classes, rng, k=3, dtype=np.float32, label_rng=None):
        self.conv = Conv2d(C, O, rng, k, padding=k // 2, relu=False, dtype=dtype)
        U = (np.sqrt(2.0 / (k * k * C)) * (label_rng or rng).standard_normal((n_classes, O))).astype(dtype)
        self.params, self.state = self.conv.params | {"U": U}, {}

    def image_part(self, x, train=True):
        """x (B, H, W, C) -> a (B, H, W, O), no label and no ReLU yet, and the cache of `backward_goodness`."""
        return self.conv.forward(x, train)

    def goodness(self, a):
        """a (B, H, W, O) -> g (B, K)."""
        U, xp = self.params["U"], namespace(a)
        if kernels(a):
            from common import kernels_image

            g = np.empty((len(a), len(U)), np.float32)
            kernels_image.label_goodness(a, U, g)
            return g
        return xp.stack([(xp.maximum(a + u, 0) ** 2).mean(axis=(1, 2, 3)) for u in U], axis=1)

    def error(self, dg, a):
        """dg (B, K) = dL/dg, a (B, H, W, O) from `image_part` -> dL/da (B, H, W, O), dL/dU (K, O)."""
        U, xp = self.params["U"], namespace(a)
        f = dg * dg.dtype.type(2 / (a.shape[1] * a.shape[2] * a.shape[3]))
        if kernels(a):
            from common import kernels_image

            da, dU = np.empty_like(a), np.empty((len(a), *U.shape), np.float32)
            kernels_image.label_error(a, U, f.astype(np.float32, copy=False), da, dU)
            return da, dU.sum(axis=0)
        d = [xp.maximum(a + u, 0) * f[:, k, None, None, None] for k, u in enumerate(U)]
        return sum(d), xp.stack([each.sum(axis=(0, 1, 2)) for each in d])

    def backward_goodness(self, dg, a, cache):
        """dg (B, K) = dL/dg, a and cache from `image_part` -> grads {"W", "b", "U"}."""
        da, dU = self.error(dg, a)
        _, grads = self.conv.backward(da, cache)
        return grads | {"U": dU}
