"""Goodness and the Forward-Forward losses, each defined once: what a layer is trained on is what it predicts with.

Goodness is a layer without parameters: forward(y) gives one number per row and a cache, backward(dg, cache) gives dy.

    sum of squares    g_b = sum_j y_bj^2          dg/dy = 2 y        (Hinton 2022, section 2)
    mean of squares   g_b = (1/D) sum_j y_bj^2    dg/dy = (2/D) y    (the same, independent of the width D)

Losses, with a sharpness beta by which goodness is multiplied first. In Hinton's formula it is 1, and goodness is a sum:
on a mean of D squares that is beta = D.

    threshold   L = mean_b softplus(-t_b beta (g_b - theta))            t_b = +1 for positive, -1 for negative rows
                dL/dg_b = -t_b beta sigmoid(-t_b beta (g_b - theta)) / B
                (Hinton 2022, section 2, eq. 1: p(positive) = sigmoid(g - theta); a pair of a positive and a negative
                image is two rows, so L is half of the per-pair sum that papers print)
    margin      L = mean_b softplus(-beta (g+_b - g-_b))                goodness of a right and of a wrong label
                dL/dg-_b = -dL/dg+_b = beta sigmoid(-beta (g+_b - g-_b)) / B
                (SymBa: Lee & Song 2023, arXiv 2303.08418, where beta is alpha)
    softmax     L = mean_b -log softmax(beta g_b)[label_b]              g_bk: goodness of every label k
                dL/dg_bk = beta (softmax(beta g_b)[k] - [k = label_b]) / B
                (every wrong label is a negative, weighted by how well it competes)
"""

import math

import numpy as np

from common.arrays import aligned, gpu_kernels, kernels, namespace
from common.functions import sigmoid, softplus


class SumSquare:
    """g (B,) = sum of squares of y (B, ...) over all units of the layer."""

    def forward(self, y):
        k = kernels(y) or gpu_kernels(y)
        if k and y.ndim == 2 and y.flags.c_contiguous:
            g = namespace(y).empty(len(y), np.float32)
            k.row_squares(y, g)
            return g, y
        axes = "bijkl"[: y.ndim]
        return namespace(y).einsum(f"{axes},{axes}->b", y, y), y

    def backward(self, dg, cache):
        return scale_rows(cache, 2 * dg)


class MeanSquare:
    """g (B,) = mean of squares of y (B, ...) over all units of the layer."""

    def forward(self, y):
        g, _ = SumSquare().forward(y)
        return g / units(y), y

    def backward(self, dg, cache):
        return SumSquare().backward(dg / units(cache), cache)


def units(y):
    """D, the number of units of one row of y (B, ...)."""
    return math.prod(y.shape[1:])


def scale_rows(y, factor):
    """Row b of y (B, ...) times factor[b]."""
    k, rows = kernels(y), kernels(y) or gpu_kernels(y)
    if rows and y.ndim == 2 and y.flags.c_contiguous:
        out = namespace(y).empty_like(y)
        rows.scale_each_row(y, factor.astype(np.float32, copy=False), out)
        return out
    inner = y.transpose(*range(1, y.ndim), 0)  # (..., B)
    if k is None or not inner.flags.c_contiguous:
        return y * factor.reshape(-1, *[1] * (y.ndim - 1))
    out = aligned(inner.shape)
    k.scale_rows(inner.reshape(-1, len(y)), factor, out.reshape(-1, len(y)))
    return out.transpose(-1, *range(y.ndim - 1))


def threshold_loss(g, t, theta, beta=1.0):
    """L = mean_b softplus(-t_b beta (g_b - theta)): goodness g (B,), t (B,) of +1/-1 -> L (a number), dL/dg (B,)."""
    if gpu_kernels(g):
        return gpu_kernels(g).threshold_loss(g, t, theta, beta)
    margin = -t * (beta * (g - theta))
    return softplus(margin).mean(), -t * (beta * sigmoid(margin)) / len(g)


def margin_loss(g_pos, g_neg, beta=1.0):
    """L = mean_b softplus(-beta (g+_b - g-_b)): goodness (B,) of right and wrong -> L (a number), dL/dg+, dL/dg-."""
    margin = beta * (g_neg - g_pos)
    d = beta * sigmoid(margin) / len(g_pos)
    return softplus(margin).mean(), -d, d


def unsettled(dg):
    """Rows that have something left to learn, from a mean loss's dL/dg (B,) -> their numbers (M,).

    On a GPU all of them, as slice(None): it would have to wait for their number before it could go on.

    Softplus is flat where a row is safely on its side of theta, and goodness as a sum over 2000 units soon is, by
    hundreds. What such a row would add to a gradient, less than 1e-10 of what a wrong one adds, rounding swallows.
    """
    if namespace(dg) is not np:
        return slice(None)
    return np.flatnonzero(~(abs(dg) <= 1e-10 / len(dg)))  # what is not a number stays


def ff_loss(y, t, theta, goodness=MeanSquare):
    """One layer's whole objective: y (B, ...), t (B,) -> loss, goodness g (B,), dL/dy of y's shape."""
    g, cache = goodness().forward(y)
    loss, dg = threshold_loss(g, t, theta)
    return loss, g, goodness().backward(dg, cache)


def normalise(y, g=None, eps=1e-8):
    """y / sqrt(mean y^2 + eps) per row, so that the next layer cannot read this layer's goodness (Hinton 2022, sec. 2).

    g: the rows' mean squares, if they are known already.
    """
    if g is None:
        k = kernels(y) or gpu_kernels(y)
        if k and y.ndim == 2 and y.flags.c_contiguous:
            out = namespace(y).empty_like(y)
            k.normalise_rows(y, np.float32(eps), out)
            return out
        g, _ = MeanSquare().forward(y)
    return scale_rows(y, rms_inverse(g, eps))


def scaled(y, norm):
    """What the next layer sees of y (B, n): "rms" (mean square 1), "length" (sum of squares 1), or y itself, "none"."""
    if norm == "none":
        return y
    return normalise(y) if norm == "rms" else normalise(y) * y.dtype.type(y.shape[1] ** -0.5)


def rms_inverse(g, eps=1e-8):
    """1 / sqrt(g + eps) for mean squares g: the factor by which `normalise` scales a row."""
    return 1 / namespace(g).sqrt(g + eps)


def peer_pull(means, strength):
    """Peer normalisation: strength (m - mean of m) for the mean activities m (...) of a layer's units.

    Added to the loss's gradient with respect to what enters the ReLUs, also where a ReLU is off, it pulls every unit's
    mean activity towards the layer's mean: no unit can stay silent for ever, and none can be on for everything. (Hinton
    2022, section 3.2; in his program m is a running mean over batches, and goodness's gradient has no factor 2.)
    """
    return strength * (means - means.mean())


def peers(mean, y, strength, rows):
    """The pull of peer normalisation in a stack that learns from `rows` rows a step -> (...), for each of them.

    mean (...): running means of the units' activities, moved here by those of y (B, ...), the rows with right labels.
    However many rows there are, all of them together pull with `strength`. (0.9 old + 0.1 new, in Hinton's program)
    """
    mean += 0.1 * (y.mean(axis=0) - mean)
    return peer_pull(mean, strength / rows)


def label_loss(g, labels, beta):
    """Softmax cross-entropy over goodness: g (B, K) of every label, labels (B,) -> L (a number), dL/dg (B, K)."""
    loss, d = softmax_cross_entropy(beta * g, labels)
    return loss, beta * d


def softmax_cross_entropy(logits, labels, smoothing=0.0):
    """logits (B, K), labels (B,) -> mean loss, dL/dlogits (B, K).

    smoothing: the share of each target that is spread over all classes alike (label smoothing, Szegedy et al. 2016).
    """
    if gpu_kernels(logits) and not smoothing:
        return gpu_kernels(logits).softmax_cross_entropy(logits, labels)
    xp = namespace(logits)
    rows = xp.arange(len(labels))
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - xp.log(xp.exp(shifted).sum(axis=1, keepdims=True))
    d = xp.exp(log_p)
    d[rows, labels] -= 1 - smoothing
    loss = -log_p[rows, labels].mean()
    if smoothing:
        d -= d.dtype.type(smoothing / d.shape[1])
        loss = (1 - smoothing) * loss - smoothing * log_p.mean()
    return loss, d / len(labels)
