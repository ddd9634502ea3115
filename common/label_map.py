"""LabelMap: a locally connected layer in which every location also receives the ten label units, one weight each.

    a[b, i, j, o] = bias[i, j, o] + sum_{ky, kx, c} x[b, i + ky, j + kx, c] W[i, j, ky, kx, c, o]      the image part
    y[b, i, j, o] = ReLU(a[b, i, j, o] + U[i, j, label_b, o])                            activity under a label

So a label reaches every part of the image. (A slot painted into the corner, as in labels.py, meets only the corner.)
Trying a label costs an addition per unit, not a product, and that makes two ways to learn cheap:

    rows     `forward`, `backward`: rows that carry one label each, for pairs of a right and a wrong label. The image
             part is computed once, however many labels an image is paired with.
    labels   `image_part`, `goodness`, `backward_goodness`: the goodness of all K labels from one image part,

                 g_bk = (1/D) sum_u ReLU(a_bu + U_ku)^2                u runs over the layer's D units, k over labels

             and for a loss on these numbers with dg = dL/dg (B, K), since d ReLU(z)^2 / dz = 2 ReLU(z),

                 dL/dU_ku = sum_b d_bku   and   dL/da_bu = sum_k d_bku   with   d_bku = (2/D) dg_bk ReLU(a_bu + U_ku)

             so the K errors are added up before they meet the image: one product for the weight gradient, not K.
"""

import numpy as np

from common.arrays import aligned, kernels, namespace
from common.local2d import LocallyConnected2d, batch_innermost


class LabelMap:
    """Locally connected ReLU layer with K label units at every location.

    Arguments as LocallyConnected2d, and n_classes K. params: W (OH, OW, rf, rf, C, O), b (OH, OW, O) as there,
    U (OH, OW, K, O), normal with the standard deviation of W. (From 0 all labels have one goodness,
    their errors cancel, and the first gradient of W is nothing but rounding.)
    """

    def __init__(self, in_shape, channels, rf, n_classes, rng, dtype=np.float32):
        self.layer = LocallyConnected2d(in_shape, channels, rf, rng, relu=False, dtype=dtype)
        self.in_shape, self.out_shape = self.layer.in_shape, self.layer.out_shape
        OH, OW, O = self.out_shape
        scale = np.sqrt(2.0 / (rf * rf * in_shape[2]))
        U = (scale * rng.standard_normal((OH, OW, n_classes, O))).astype(dtype)
        self.params = self.layer.params  # the same dict: optimisers write in place, and a move to a GPU is one of both
        self.params["U"] = U
        self.state = {}

    # ---- all labels of an image at once

    def image_part(self, x, train=True):
        """x (B, H, W, C) -> a (B, OH, OW, O), no label and no ReLU yet, and the cache of `backward_goodness`."""
        return self.layer.forward(x, train)

    def goodness(self, a):
        """a (B, OH, OW, O) -> g (B, K), mean of squares under every label."""
        return self.goodness_map(a).mean(axis=(1, 2))

    def goodness_map(self, a):
        """a (B, OH, OW, O) -> (B, OH, OW, K), mean of squares at every location; over the map it averages to g."""
        U = self.params["U"]
        OH, OW, K, O = U.shape
        if kernels(a) is None:
            xp = namespace(a)
            return xp.stack([(self._under(a, k) ** 2).mean(axis=3) for k in range(K)], axis=3)
        means = aligned((OH, OW, K, len(a)))
        kernels(a).label_goodness(batch_innermost(a), U, means)
        return means.transpose(3, 0, 1, 2)

    def backward_goodness(self, dg, a, cache, pull=None):
        """dg (B, K) = dL/dg, a and cache from `image_part` -> grads {"W", "b", "U"}.

        For a loss on single locations: dg (B, OH, OW, K), its derivative by `goodness_map`.
        pull (OH, OW, O), from goodness.peer_pull: added to dL/da of every image.
        """
        U = self.params["U"]
        units = a.size // len(a) if dg.ndim == 2 else a.shape[3]
        factor = (2 / units) * dg.reshape(len(a), *((1, 1) if dg.ndim == 2 else dg.shape[1:3]), -1)
        if kernels(a) is None:
            xp = namespace(a)
            d = xp.stack([factor[..., k, None] * self._under(a, k) for k in range(U.shape[2])])
            _, grads = self.layer.backward(d.sum(axis=0) + (0 if pull is None else pull), cache)
            return grads | {"U": d.sum(axis=1).transpose(1, 2, 0, 3)}  # (K, OH, OW, O) -> (OH, OW, K, O)
        inner = batch_innermost(a)  # (OH, OW, O, B)
        da, dU = aligned(inner.shape), aligned(U.shape)
        factor = batch_innermost(factor.astype(np.float32))
        pull = np.zeros(self.out_shape, np.float32) if pull is None else pull
        kernels(a).label_error(inner, U, factor.reshape(-1, *factor.shape[2:]), pull, da, dU)
        _, grads = self.layer.backward(da.transpose(3, 0, 1, 2), cache)
        return grads | {"U": dU}

    def _under(self, a, label):
        """ReLU(a + U_label), (B, OH, OW, O)."""
        z = a + self.params["U"][:, :, label]
        return z * (z > 0)

    # ---- rows with one label each

    def forward(self, x, labels, train=True):
        """x (B, H, W, C), labels (n*B,) -> y (n*B, OH, OW, O), cache. Row r is image r mod B with labels[r]."""
        a, cache = self.image_part(x, train)
        y = self.with_labels(a, labels)
        return y, (y, labels, cache)

    def with_labels(self, a, labels):
        """a (B, OH, OW, O) from `image_part`, labels (n*B,) -> y (n*B, OH, OW, O)."""
        U = self.params["U"]
        if kernels(a) is None:
            xp = namespace(a)
            z = xp.concatenate([a] * (len(labels) // len(a))) + U[:, :, labels].transpose(2, 0, 1, 3)
            return z * (z > 0)
        y = aligned((*self.out_shape, len(labels)))
        kernels(a).add_labels(batch_innermost(a), U, labels, y)
        return y.transpose(3, 0, 1, 2)

    def backward(self, dy, cache, need_dx=False, pull=None):
        """dy (n*B, OH, OW, O) = dL/dy -> None, grads {"W", "b", "U"}.

        pull (OH, OW, O), from goodness.peer_pull: added to every row's gradient with respect to what enters the ReLU.
        """
        if need_dx:
            raise ValueError("LabelMap computes no input gradient: Forward-Forward needs none")
        y, labels, cache = cache
        U, B = self.params["U"], cache[2][0]
        dy = dy.astype(y.dtype, copy=False)
        if kernels(y) is None:
            xp = namespace(y)
            dz = dy * (y > 0) + (0 if pull is None else pull)
            _, grads = self.layer.backward(dz.reshape(-1, B, *self.out_shape).sum(axis=0), cache)
            one_hot = xp.eye(U.shape[2], dtype=dz.dtype)[labels]  # (n*B, K)
            return None, grads | {"U": xp.einsum("rijo,rk->ijko", dz, one_hot)}
        da, dU = aligned((*self.out_shape, B)), aligned(U.shape)
        pull = np.zeros(self.out_shape, np.float32) if pull is None else pull
        kernels(y).add_labels_grad(batch_innermost(dy), batch_innermost(y), labels, pull, da, dU)
        _, grads = self.layer.backward(da.transpose(3, 0, 1, 2), cache)
        return None, grads | {"U": dU}
