"""Convolution on the CPU: the register-blocked tile of kernels_cpu.py on images as they are, without im2col.

    forward       for each output pixel and panel of SPAN output channels: rows of the tile are images, lanes are output
                  channels, and the sum runs over the pixels and channels that the kernel sees, which for one row of the
                  kernel lie side by side in (B, H, W, C)
    weight grad   for each row of the kernel and panel: rows of the tile are input channels, lanes output channels, and
                  the sum runs over output pixels, a block of about PIXELS at a time

Pixels beyond the image's edge are left out of the sums, not multiplied as zeros: with 3 x 3 kernels that saves 8 % of
the work on maps of 8 x 8 and 56 % on 2 x 2. Every number is summed by one thread in a fixed order: same bits for any
number of threads.
"""

import numpy as np
from numba import njit, prange

from common.kernels_cpu import LANES, _make_tile, aligned
from common.kernels_image import MASKED, TIMES

ROWS, VECTORS = (6, 2) if LANES == 8 else (6, 4)  # accumulators: of 16 registers 12, of 32 registers 24
SPAN, PIXELS = VECTORS * LANES, 128

_tile6, _tile2, _tile1 = (_make_tile(rows, VECTORS, False) for rows in (ROWS, 2, 1))
_sum6, _sum2, _sum1 = (_make_tile(rows, VECTORS, True) for rows in (ROWS, 2, 1))


@njit(parallel=True, cache=True)
def pack_weights(w, panels):
    """w (K, O) -> panels (P, K, SPAN): its columns in panels, zero beyond the last one."""
    K, O = w.shape
    for p in prange(len(panels)):
        n = min(SPAN, O - p * SPAN)
        for k in range(K):
            for lane in range(n):
                panels[p, k, lane] = w[k, p * SPAN + lane]
            for lane in range(n, SPAN):
                panels[p, k, lane] = 0


@njit(parallel=True, cache=True)
def forward(x, panels, b, y, KH, KW, stride, pad, relu):
    """y = convolution of x with the packed weights, plus b, then ReLU if asked.

    x (B, H, W, C) contiguous; panels (P, KH*KW*C, SPAN) from `pack_weights`; b (O,); y (B, OH, OW, O).
    """
    B, H, W, C = x.shape
    _, OH, OW, O = y.shape
    for part in prange(len(panels) * OH):
        p, oy = part // OH, part % OH
        out, n = aligned(ROWS * SPAN), min(SPAN, O - p * SPAN)
        ky0, ky1 = max(0, pad - oy * stride), min(KH, H + pad - oy * stride)  # the kernel's rows inside the image
        for ox in range(OW):
            kx0, kx1 = max(0, pad - ox * stride), min(KW, W + pad - ox * stride)
            w0, R, N = ((p * KH + ky0) * KW + kx0) * C * SPAN, ky1 - ky0, (kx1 - kx0) * C
            image, row, wrow = H * W * C, W * C, KW * C * SPAN
            first = 0
            while first < B:
                at = ((first * H + oy * stride - pad + ky0) * W + ox * stride - pad + kx0) * C
                if B - first >= ROWS:
                    m = ROWS
                    _tile6(out, 0, SPAN, x, at, row, 1, image, panels, w0, wrow, SPAN, R, N)
                elif B - first >= 2:
                    m = 2
                    _tile2(out, 0, SPAN, x, at, row, 1, image, panels, w0, wrow, SPAN, R, N)
                else:
                    m = 1
                    _tile1(out, 0, SPAN, x, at, row, 1, image, panels, w0, wrow, SPAN, R, N)
                for r in range(m):
                    for lane in range(n):
                        value = out[r * SPAN + lane] + b[p * SPAN + lane]
                        y[first + r, oy, ox, p * SPAN + lane] = max(value, np.float32(0)) if relu else value
                first += m


@njit(inline="always")
def _channels(acc, kx, x, base, xr, xj, d, d0, dr, R, N, C):
    """acc[kx, c, :] += sum over R rows of N pixels of x[.., c] d[.., :], for all channels c."""
    c = 0
    while c + ROWS <= C:
        _sum6(acc, (kx * C + c) * SPAN, SPAN, x, base + c, xr, xj, 1, d, d0, dr, SPAN, R, N)
        c += ROWS
    while c + 2 <= C:
        _sum2(acc, (kx * C + c) * SPAN, SPAN, x, base + c, xr, xj, 1, d, d0, dr, SPAN, R, N)
        c += 2
    if c < C:
        _sum1(acc, (kx * C + c) * SPAN, SPAN, x, base + c, xr, xj, 1, d, d0, dr, SPAN, R, N)


@njit(parallel=True, cache=True)
def weight_grad(x, g, y, mode, dw, stride, pad):
    """dw[u, v, c, o] = sum of x dz over images and output pixels. x (B, H, W, C), y (B, OH, OW, O) contiguous.

    dz is made on the way, from g (B, h, w, O), one value for each of h x w equal parts of y (h = OH, w = OW: for each
    place), and from y as `mode` says (kernels_image.py).
    """
    B, H, W, C = x.shape
    _, OH, OW, O = y.shape
    high, wide, zero = OH // g.shape[1], OW // g.shape[2], np.float32(0)
    KH, KW = dw.shape[:2]
    across = OH * OW < 64  # small maps: a block is one row of many images; else some rows of one image
    for part in prange((O + SPAN - 1) // SPAN * KH):
        p, ky = part // KH, part % KH
        n, acc = min(SPAN, O - p * SPAN), aligned(KW * C * SPAN)
        acc[:] = 0
        oy0 = max(0, (pad - ky + stride - 1) // stride)  # output rows for which this row of the kernel is in the image
        oy1 = min(OH, (H - 1 + pad - ky) // stride + 1)
        long = B if across else oy1 - oy0
        rows = max(1, min(long, PIXELS // OW))
        d, blocks = aligned(rows * OW * SPAN), (long + rows - 1) // rows
        for block in range((oy1 - oy0 if across else B) * blocks):
            k, first = block // blocks, block % blocks * rows
            R = min(rows, long - first)
            for r in range(R):
                image, oy = (first + r, oy0 + k) if across else (k, oy0 + first + r)
                for ox in range(OW):
                    at = (r * OW + ox) * SPAN
                    for lane in range(n):
                        value = g[image, oy // high, ox // wide, p * SPAN + lane]
                        if mode == TIMES:
                            value *= y[image, oy, ox, p * SPAN + lane]
                        elif mode == MASKED:
                            value = value if y[image, oy, ox, p * SPAN + lane] > zero else zero
                        d[at + lane] = value
                    for lane in range(n, SPAN):
                        d[at + lane] = 0
            image, oy = (first, oy0 + k) if across else (k, oy0 + first)
            step = H * W * C if across else stride * W * C
            for kx in range(KW):
                ox0, ox1 = max(0, (pad - kx + stride - 1) // stride), min(OW, (W - 1 + pad - kx) // stride + 1)
                base = ((image * H + oy * stride - pad + ky) * W + ox0 * stride - pad + kx) * C
                _channels(acc, kx, x, base, step, stride * C, d, ox0 * SPAN, OW * SPAN, R, ox1 - ox0, C)
        for k in range(KW * C):
            for lane in range(n):
                dw[ky, k // C, k % C, p * SPAN + lane] = acc[k * SPAN + lane]
