"""From what is measured of one layer to a score for each class, for losses of that layer alone.

    psi_bk = sum_m (u_bm / T) R_mk + b_k                       (DTG-FF, arXiv 2606.06539, eq. 4)
    T      = low + (high - low) sigmoid(alpha)                 (eq. 2; alpha starts at 0)

u (B, M): goodness of the layer's parts and channels. R and b are drawn once, N(0, 1/K), and stay: with softmax
cross-entropy on psi the layer learns which of its channels to excite for which class. Gradients, d = dL/dpsi:

    du     = d R^T / T                                         (eq. 10; so |du| <= sqrt 2 / T |R|, eq. 11)
    dT     = -sum_bm (d R^T)_bm u_bm / T^2
    dalpha = dT (high - low) sigmoid(alpha) (1 - sigmoid(alpha))
"""

import numpy as np

from common.arrays import namespace
from common.functions import sigmoid
from common.product import matmul


class Temperature:
    """u -> u / T, T learned between low and high. params: alpha (1,), 0 at the start."""

    def __init__(self, low=0.5, high=2.0, dtype=np.float32):
        self.params, self.state, self.low, self.high = {"alpha": np.zeros(1, dtype)}, {}, low, high

    @property
    def T(self):
        """Of shape (1,)."""
        return self.low + (self.high - self.low) * sigmoid(self.params["alpha"])

    def forward(self, u, train=True):
        return u / self.T, u

    def backward(self, dy, cache, need_dx=True):
        """du and grads; need_dx here stays inside the layer that is read."""
        s, T = sigmoid(self.params["alpha"]), self.T
        alpha = -(dy * cache).sum() / T**2 * (self.high - self.low) * s * (1 - s)
        return dy / T if need_dx else None, {"alpha": alpha}


class ChannelGroups:
    """u (B, P, C) -> mean over all parts of each class's own group of C / K channels (B, K), times a scale.

    Papathanasiou & Benos 2023 (CwComp, AAAI 2024): a channel belongs to one class. No parameters. Raises ValueError
    where the channels cannot be shared out.
    """

    def __init__(self, C, K, scale=1.0):
        if C % K:
            raise ValueError(f"{C} channels cannot be shared out among {K} classes")
        self.params, self.state, self.C, self.K, self.scale = {}, {}, C, K, scale

    def forward(self, u, train=True):
        """u (B, P C), channels innermost."""
        return u.reshape(len(u), -1, self.K, self.C // self.K).mean(axis=(1, 3)) * u.dtype.type(self.scale), u.shape

    def backward(self, dpsi, cache, need_dx=True):
        B, n = cache
        d = dpsi[:, None, :, None] * dpsi.dtype.type(self.scale * self.K / n)
        full = namespace(dpsi).zeros((B, n // self.C, self.K, self.C // self.K), dtype=dpsi.dtype) + d
        return full.reshape(B, n) if need_dx else None, {}


class RandomMap:
    """u (B, M) -> u R + b (B, K), never learned. state: R (M, K) and b (K,), N(0, 1/K).

    unit: the columns of R have length 1 instead (App. A.5).
    """

    def __init__(self, M, K, rng, unit=False, dtype=np.float32):
        R, b = rng.standard_normal((M, K)) / np.sqrt(K), rng.standard_normal(K) / np.sqrt(K)
        if unit:
            R /= np.sqrt((R * R).sum(axis=0))
        self.params, self.state = {}, {"R": R.astype(dtype), "b": b.astype(dtype)}

    def forward(self, u, train=True):
        return matmul(u, self.state["R"]) + self.state["b"], None

    def backward(self, dpsi, cache, need_dx=True):
        return matmul(dpsi, self.state["R"].T) if need_dx else None, {}
