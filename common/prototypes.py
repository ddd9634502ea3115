"""Prototypes: classes as unit vectors, and a layer's activity compared with them by angle (Hyperspherical FF, HFF).

    u_b = y_b / |y_b|                              a row of activities (D,) on the unit sphere
    cos_bkm = u_b . P_km                           P_km: prototype m of class k, of length 1
    score_bk = log sum_m exp(scale cos_bkm)        one prototype a class: scale cos_bk
    loss = -log softmax(score_b - scale margin [k = label_b])[label_b]

The right class's prototype is the positive, all others are negatives: no wrong label is ever shown to the network, and
one pass answers for all classes. (Sarode et al. 2026, arXiv 2605.00082; scale, margin and number of prototypes are not
in its public pages; the additive margin is that of CosFace, Wang et al. 2018)

Gradients, through both normalisations; d = dL/dscore (B, K), s_bkm = softmax over m of scale cos_bkm:

    dL/dcos_bkm = scale d_bk s_bkm
    dL/dy_b = (v - (v . u_b) u_b) / |y_b|,         v = sum_km dL/dcos_bkm P_km
    dL/dP_km = v - (v . P_km) P_km,                v = sum_b dL/dcos_bkm u_b    (P has length 1 before every step)
"""

import numpy as np

from common.arrays import namespace
from common.product import matmul


class Prototypes:
    """scores of K classes from activities of D units. params: P (K, M, D), rows of length 1."""

    def __init__(self, D, n_classes, rng, per_class=1, scale=10.0, dtype=np.float32):
        self.params = {"P": unit(rng.standard_normal((n_classes, per_class, D))).astype(dtype)}
        self.state, self.scale = {}, scale

    def forward(self, y, train=True):
        """y (B, D) -> scores (B, K), cache."""
        xp, P = namespace(y), self.params["P"]
        K, M, D = P.shape
        length = xp.sqrt((y * y).sum(axis=1, keepdims=True)) + y.dtype.type(1e-8)
        u = y / length
        z = matmul(u, P.reshape(-1, D).T).reshape(-1, K, M) * y.dtype.type(self.scale)
        if M == 1:
            return z[:, :, 0], (u, length, xp.full(z.shape, 1, dtype=z.dtype))
        most = z.max(axis=2, keepdims=True)
        e = xp.exp(z - most)
        total = e.sum(axis=2, keepdims=True)
        return (most + xp.log(total))[:, :, 0], (u, length, e / total)

    def backward(self, dscore, cache, need_dx=True):
        """dscore (B, K) -> dL/dy (B, D), grads; here need_dx stays inside the layer that owns these prototypes."""
        u, length, share = cache
        P = self.params["P"]
        K, M, D = P.shape
        dcos = (dscore[:, :, None] * share * dscore.dtype.type(self.scale)).reshape(len(u), K * M)
        v = matmul(dcos.T, u).reshape(P.shape)
        grads = {"P": v - (v * P).sum(axis=2, keepdims=True) * P}
        if not need_dx:
            return None, grads
        v = matmul(dcos, P.reshape(K * M, D))
        return (v - (v * u).sum(axis=1, keepdims=True) * u) / length, grads

    def renormalise(self):
        """After a step: every prototype back to length 1, in place."""
        self.params["P"][...] = unit(self.params["P"])


def unit(x):
    """x scaled so that its last axis has length 1."""
    return x / namespace(x).sqrt((x * x).sum(axis=-1, keepdims=True))
