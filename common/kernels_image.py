"""Passes over images (B, H, W, C) on the CPU, each of them once through memory: parts, pooling, norm, dropout.

Every number is summed by one thread in a fixed order, lanes of a vector side by side: same bits for any number of
threads. All is float32; the readable twins are in pool.py.
"""

import numpy as np
from numba import njit, prange

from common.kernels_cpu import LANES, _lane_sum, aligned

PLAIN, MASKED, TIMES = 0, 1, 2  # a gradient as it is, where the ReLU is on, or times what the ReLU lets through


@njit(parallel=True, cache=True)
def part_moments(z, squares, means):
    """Mean of z^2 and mean of z over each of h x w parts: z (B, H, W, C) -> squares and means (B, h, w, C)."""
    B, H, W, C = z.shape
    h, w = squares.shape[1:3]
    high, wide = H // h, W // w
    share = np.float32(1 / (high * wide))
    for part in prange(B * h):
        b, i = part // h, part % h
        for j in range(w):
            s, m = squares[b, i, j], means[b, i, j]
            s[:] = 0
            m[:] = 0
            for y in range(i * high, (i + 1) * high):
                for x in range(j * wide, (j + 1) * wide):
                    for c in range(C):
                        value = z[b, y, x, c]
                        s[c] += value * value
                        m[c] += value
            for c in range(C):
                s[c] *= share
                m[c] *= share


@njit(parallel=True, cache=True)
def spread(d, y, mode, dz):
    """dz = a gradient d (B, h, w, C), given for h x w equal parts of y's rows and columns, in full (B, H, W, C)."""
    B, H, W, C = dz.shape
    h, w = d.shape[1:3]
    high, wide, zero = H // h, W // w, np.float32(0)
    for part in prange(B * H):
        b, i = part // H, part % H
        for j in range(W):
            for c in range(C):
                value = d[b, i // high, j // wide, c]
                if mode == TIMES:
                    value *= y[b, i, j, c]
                elif mode == MASKED:
                    value = value if y[b, i, j, c] > zero else zero
                dz[b, i, j, c] = value


@njit(parallel=True, cache=True)
def bias_grad(d, y, mode, sums):
    """Of the same gradient, the sum over each image's locations: sums (B, C)."""
    B, H, W, C = y.shape
    h, w = d.shape[1:3]
    high, wide, zero = H // h, W // w, np.float32(0)
    for b in prange(B):
        for c in range(C):
            sums[b, c] = 0
        for i in range(H):
            for j in range(W):
                for c in range(C):
                    value = d[b, i // high, j // wide, c]
                    if mode == TIMES:
                        value *= y[b, i, j, c]
                    elif mode == MASKED:
                        value = value if y[b, i, j, c] > zero else zero
                    sums[b, c] += value


@njit(inline="always")
def _keep(index, key, least):
    """Dropout's coin: a hash of a place's number and the step's key, 32 bits (MurmurHash3's last steps)."""
    x = np.uint32(np.uint32(np.uint32(index) * np.uint32(0x9E3779B9)) ^ key)
    x = np.uint32(x ^ np.uint32(x >> np.uint32(16)))
    x = np.uint32(x * np.uint32(0x85EBCA6B))
    x = np.uint32(x ^ np.uint32(x >> np.uint32(13)))
    x = np.uint32(x * np.uint32(0xC2B2AE35))
    x = np.uint32(x ^ np.uint32(x >> np.uint32(16)))
    return x >= least


@njit(inline="always")
def _pooled(z, b, i, j, side, row):
    """row (C,) = mean of z over the side x side window (i, j) of image b."""
    C = z.shape[3]
    if side == 1:
        for c in range(C):
            row[c] = z[b, i, j, c]
        return
    row[:] = 0
    for y in range(i * side, (i + 1) * side):
        for x in range(j * side, (j + 1) * side):
            for c in range(C):
                row[c] += z[b, y, x, c]
    share = np.float32(1 / (side * side))
    for c in range(C):
        row[c] *= share


@njit(inline="always")
def _sum(row, n, sums):
    """Sum of row[:n], lane by lane; sums (LANES,) is used up."""
    whole = n // LANES * LANES
    sums[:] = 0
    for j in range(0, whole, LANES):
        for lane in range(LANES):
            sums[lane] += row[j + lane]
    for j in range(whole, n):
        sums[j - whole] += row[j]
    return _lane_sum(sums, 0)


@njit(inline="always")
def _product_sum(a, b, n, sums):
    """Sum of a[:n] b[:n], lane by lane."""
    whole = n // LANES * LANES
    sums[:] = 0
    for j in range(0, whole, LANES):
        for lane in range(LANES):
            sums[lane] += a[j + lane] * b[j + lane]
    for j in range(whole, n):
        sums[j - whole] += a[j] * b[j]
    return _lane_sum(sums, 0)


@njit(inline="always")
def _normed(row, C, centre, eps, sums):
    """row (C,) -> minus its mean if `centre`, over the root of its mean square; returns 1 / that root."""
    n = np.float32(C)
    if centre:
        mean = _sum(row, C, sums) / n
        for c in range(C):
            row[c] -= mean
    factor = np.float32(1) / np.sqrt(_product_sum(row, row, C, sums) / n + eps)
    for c in range(C):
        row[c] *= factor
    return factor


@njit(parallel=True, cache=True)
def hand_on(z, side, norm, centre, eps, key, least, grow, h):
    """Average pool, norm over channels (or none), dropout: z (B, H, W, C) -> h (B, H / side, W / side, C).

    A value is kept, and multiplied by `grow`, if its coin is at least `least` (0: all are kept).
    """
    B, OH, OW, C = h.shape
    for part in prange(B * OH):
        b, i = part // OH, part % OH
        sums = aligned(LANES)
        for j in range(OW):
            row, first = h[b, i, j], (part * OW + j) * C
            _pooled(z, b, i, j, side, row)
            if norm:
                _normed(row, C, centre, eps, sums)
            if least > 0:
                for c in range(C):
                    row[c] = row[c] * grow if _keep(first + c, key, least) else np.float32(0)


@njit(parallel=True, cache=True)
def hand_back(dh, z, side, norm, centre, eps, key, least, grow, dz):
    """The gradient of `hand_on`: dh of h's shape -> dz of z's. The norm is computed again, nothing of it was kept."""
    B, OH, OW, C = dh.shape
    n, share = np.float32(C), np.float32(1 / (side * side))
    for part in prange(B * OH):
        b, i = part // OH, part % OH
        sums, row, d = aligned(LANES), aligned(C), aligned(C)
        for j in range(OW):
            first = (part * OW + j) * C
            for c in range(C):
                d[c] = dh[b, i, j, c]
            if least > 0:
                for c in range(C):
                    d[c] = d[c] * grow if _keep(first + c, key, least) else np.float32(0)
            if norm:
                _pooled(z, b, i, j, side, row)
                factor = _normed(row, C, centre, eps, sums)
                along = _product_sum(row, d, C, sums) / n
                mean = _sum(d, C, sums) / n if centre else np.float32(0)
                for c in range(C):
                    d[c] = (d[c] - mean - row[c] * along) * factor
            for c in range(C):
                d[c] *= share
            for y in range(i * side, (i + 1) * side):
                for x in range(j * side, (j + 1) * side):
                    for c in range(C):
                        dz[b, y, x, c] = d[c]
