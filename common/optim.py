"""Optimisers: one object per layer, so that no step of one layer can depend on another.

    SGD     m <- beta m + g + decay w                               w <- w - lr m
    Adam    m <- b1 m + (1-b1) g,  v <- b2 v + (1-b2) g^2           w <- (1 - lr decay) w - lr m^ / (sqrt(v^) + eps)
            with m^ = m / (1 - b1^t), v^ = v / (1 - b2^t)           (Kingma & Ba 2015, alg. 1; decay > 0 is AdamW)

step(grads) updates the layer's parameters in place: one pass over memory in float32, the formulas above elsewhere.
Everything that lives between steps is in `state` (arrays) and `t` (steps taken), which checkpoints save.
"""

import numpy as np

from common.arrays import float32, gpu_kernels, kernels, namespace
from common.product import Product


class SGD:
    """Stochastic gradient descent with momentum beta, on params (dict of arrays); no weight decay of biases (b...)."""

    def __init__(self, params, lr, beta=0.9, decay=0.0):
        self.params, self.lr, self.beta, self.decay = params, lr, beta, decay
        self.state = {f"m_{k}": namespace(p).zeros_like(p) for k, p in params.items()}
        self.t = 0

    def step(self, grads):
        self.t += 1
        for k, w in self.params.items():
            g, m = grads[k], self.state[f"m_{k}"]
            decay = self.decay if k[0] != "b" else 0.0
            fast, numbers = kernels(w) or gpu_kernels(w), [float32(v) for v in (self.lr, self.beta, decay)]
            if isinstance(g, Product):
                for rows, x, dz in g.rows():
                    fast.product_momentum(x, dz, w[rows], m[rows], *numbers)
            elif fast and w.flags.c_contiguous:
                fast.momentum(w.ravel(), g.ravel(), m.ravel(), *numbers)
            else:
                m[...] = self.beta * m + g + decay * w
                w -= self.lr * m


class Adam:
    """Adam on params (dict of arrays); decay is AdamW's decoupled weight decay, of all but biases (b...)."""

    def __init__(self, params, lr, betas=(0.9, 0.999), eps=1e-8, decay=0.0):
        self.params, self.lr, self.betas, self.eps, self.decay = params, lr, betas, eps, decay
        self.state = {f"{n}_{k}": namespace(p).zeros_like(p) for k, p in params.items() for n in "mv"}
        self.t = 0

    def step(self, grads):
        self.t += 1
        b1, b2 = self.betas
        step_size = self.lr / (1 - b1**self.t)
        root = 1 / (1 - b2**self.t) ** 0.5  # sqrt(v^) = sqrt(v) * root
        for k, w in self.params.items():
            g, m, v = grads[k], self.state[f"m_{k}"], self.state[f"v_{k}"]
            decay = self.lr * self.decay if k[0] != "b" else 0.0
            numbers = [float32(v) for v in (step_size, b1, b2, root, self.eps, decay)]
            fast = kernels(w) or gpu_kernels(w)
            if isinstance(g, Product):
                for rows, x, dz in g.rows():
                    fast.product_adam(x, dz, w[rows], m[rows], v[rows], *numbers)
            elif fast and w.flags.c_contiguous:
                fast.adam(w.ravel(), g.ravel(), m.ravel(), v.ravel(), *numbers)
            else:
                m[...] = b1 * m + (1 - b1) * g
                v[...] = b2 * v + (1 - b2) * g * g
                w[...] = (1 - decay) * w - step_size * m / (namespace(v).sqrt(v) * root + self.eps)


def clip(grads, most):
    """A layer's gradients, scaled so that all of them together have norm `most` or less (in place, if arrays)."""
    grads = {k: np.asarray(g) if isinstance(g, Product) else g for k, g in grads.items()}
    if not grads:
        return grads
    squares = sum((g * g).sum() for g in grads.values())
    if hasattr(squares, "get"):  # on a GPU the norm stays where it is: nothing waits for it
        factor = namespace(squares).minimum(most / namespace(squares).sqrt(squares), 1)
        return {k: g * factor for k, g in grads.items()}
    norm = float(squares) ** 0.5
    if norm > most:
        for g in grads.values():
            g *= g.dtype.type(most / norm)
    return grads


def cosine(t, total, warmup=0):
    """Learning-rate factor at step t of total: a line from 0 over the `warmup` steps, then half a cosine to 0."""
    if t < warmup:
        return (t + 1) / warmup
    return 0.5 * (1 + np.cos(np.pi * (t - warmup) / max(1, total - warmup)))


def linear(t, total):
    """Learning-rate factor at step t of total: a straight line from 1 to 0."""
    return 1 - t / total


def half(t, total):
    """Learning-rate factor at step t of total: 1 for half of the steps, then a line to 0 (Hinton's program)."""
    return min(1.0, 2 * (1 - t / total))


def constant(t, total):
    """Learning-rate factor at step t of total: 1."""
    return 1.0


SCHEDULES = {"linear": linear, "half": half, "cosine": cosine, "constant": constant}
