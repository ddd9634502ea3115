"""Convolution on the CPU: the register-blocked tile of kernels_cpu.py on images as they are, without im2col.

    forward       for each output pixel and panel of output channels: rows of the tile are images, lanes are output
                  channels, and the sum runs over the pixels and channels that the kernel sees, which for one row of the
                  kernel lie side by side in (B, H, W, C)
    weight grad   for each row of the kernel and panel: rows of the tile are the pixels and channels of that row of the
                  kernel, lanes output channels, and the sum runs over output pixels, about PIXELS at a time, for which
                  images, with zeros around them, and gradients are copied into the cache

Panels are as wide as the layer needs, up to SPANS[-1] channels; narrow ones have tiles of more rows. In the forward
pass, pixels beyond the image's edge are left out of the sums, not multiplied as zeros: with 3 x 3 kernels that saves
16 % of the work on maps of 8 x 8 and 56 % on 2 x 2. Every number is summed by one thread in a fixed order, or in PARTS
of the batch that are added in a fixed order: same bits for any number of threads.
"""

from numba import njit, prange

from common.kernels_cpu import LANES, _make_tile, aligned
from common.kernels_image import copy, gradient, plus, plus_relu

# Rows and vectors of the tiles: of 32 vector registers up to 24 become accumulators, of 16 up to 12.
_SHAPES = [(12, 1), (6, 2), (6, 2)] if LANES == 8 else [(16, 1), (8, 2), (6, 4)]
ROWS, SPANS = tuple(rows for rows, _ in _SHAPES), tuple(vectors * LANES for _, vectors in _SHAPES)
MOST = max(rows * span for rows, span in zip(ROWS, SPANS, strict=True))
R0, R1, R2 = ROWS
PIXELS, PARTS, LARGE = 128, 24, 400_000  # LARGE: bytes of sums that stay in the second-level cache

_tile0, _tile1, _tile2 = (_make_tile(rows, vectors, False) for rows, vectors in _SHAPES)
_pair0, _pair1, _pair2 = (_make_tile(2, vectors, False) for _, vectors in _SHAPES)
_one0, _one1, _one2 = (_make_tile(1, vectors, False) for _, vectors in _SHAPES)
_sum0, _sum1, _sum2 = (_make_tile(rows, vectors, True) for rows, vectors in _SHAPES)


def size_for(O):
    """Which of SPANS fits O output channels: the narrowest that holds them, or the widest."""
    return next((i for i, span in enumerate(SPANS) if O <= span), len(SPANS) - 1)


@njit(parallel=True, cache=True)
def pack_weights(w, panels):
    """w (K, O) -> panels (P, K, span): its columns in panels, zero beyond the last one."""
    K, O = w.shape
    span = panels.shape[2]
    for p in prange(len(panels)):
        n = min(span, O - p * span)
        for k in range(K):
            for lane in range(n):
                panels[p, k, lane] = w[k, p * span + lane]
            for lane in range(n, span):
                panels[p, k, lane] = 0


@njit(inline="always")
def _some_rows(size, left, out, x, at, row, image, panels, w0, wrow, R, N):
    """out (rows, span) = sums of as many images as a tile takes, at most `left`; returns how many."""
    if size == 0:
        if left >= R0:
            _tile0(out, 0, SPANS[0], x, at, row, 1, image, panels, w0, wrow, SPANS[0], R, N)
            return R0
        if left >= 2:
            _pair0(out, 0, SPANS[0], x, at, row, 1, image, panels, w0, wrow, SPANS[0], R, N)
            return 2
        _one0(out, 0, SPANS[0], x, at, row, 1, image, panels, w0, wrow, SPANS[0], R, N)
    elif size == 1:
        if left >= R1:
            _tile1(out, 0, SPANS[1], x, at, row, 1, image, panels, w0, wrow, SPANS[1], R, N)
            return R1
        if left >= 2:
            _pair1(out, 0, SPANS[1], x, at, row, 1, image, panels, w0, wrow, SPANS[1], R, N)
            return 2
        _one1(out, 0, SPANS[1], x, at, row, 1, image, panels, w0, wrow, SPANS[1], R, N)
    else:
        if left >= R2:
            _tile2(out, 0, SPANS[2], x, at, row, 1, image, panels, w0, wrow, SPANS[2], R, N)
            return R2
        if left >= 2:
            _pair2(out, 0, SPANS[2], x, at, row, 1, image, panels, w0, wrow, SPANS[2], R, N)
            return 2
        _one2(out, 0, SPANS[2], x, at, row, 1, image, panels, w0, wrow, SPANS[2], R, N)
    return 1


@njit(parallel=True, cache=True)
def forward(x, panels, size, b, y, KH, KW, stride, pad, relu):
    """y = convolution of x with the packed weights, plus b, then ReLU if asked.

    x (B, H, W, C) contiguous; panels (P, KH*KW*C, SPANS[size]) from `pack_weights`; b (O,); y (B, OH, OW, O).
    """
    B, H, W, C = x.shape
    _, OH, OW, O = y.shape
    span = panels.shape[2]
    for part in prange(len(panels) * OH):
        p, oy = part // OH, part % OH
        out, n, c0 = aligned(MOST), min(span, O - p * span), p * span
        ky0, ky1 = max(0, pad - oy * stride), min(KH, H + pad - oy * stride)  # the kernel's rows inside the image
        for ox in range(OW):
            kx0, kx1 = max(0, pad - ox * stride), min(KW, W + pad - ox * stride)
            w0, R, N = ((p * KH + ky0) * KW + kx0) * C * span, ky1 - ky0, (kx1 - kx0) * C
            image, row, wrow = H * W * C, W * C, KW * C * span
            first = 0
            while first < B:
                at = ((first * H + oy * stride - pad + ky0) * W + ox * stride - pad + kx0) * C
                m = _some_rows(size, B - first, out, x, at, row, image, panels, w0, wrow, R, N)
                for r in range(m):
                    at = (((first + r) * OH + oy) * OW + ox) * O + c0
                    if relu:
                        plus_relu(y, at, out, r * span, b, c0, n)
                    else:
                        plus(y, at, out, r * span, b, c0, n)
                first += m


def plan(B, OH, KH, KW, C, O):
    """How a weight gradient is cut up, by shapes alone -> size (of SPANS), rows of the kernel that a job has, whether
    it gathers the pixels of all of them (few channels), and parts of the batch."""
    size = size_for(O)
    P, columns = -(-O // SPANS[size]), KW * C < 2 * ROWS[size]
    together = KH if columns or KH * KW * C * SPANS[size] * 4 <= LARGE else 1
    return size, together, columns, max(1, min(PARTS * together // (P * KH), B * OH // 8))


@njit(inline="always")
def _sums(size, acc, acc0, K, seen, at, row, pixel, d, drow, span, R, N):
    """acc[acc0 + k, :] += sum over R x N pixels of seen[at + k] d, for k < K, and some more rows of no meaning."""
    m = 0
    while m < K:
        if size == 0:
            _sum0(acc, (acc0 + m) * span, span, seen, at + m, row, pixel, 1, d, 0, drow, span, R, N)
            m += R0
        elif size == 1:
            _sum1(acc, (acc0 + m) * span, span, seen, at + m, row, pixel, 1, d, 0, drow, span, R, N)
            m += R1
        else:
            _sum2(acc, (acc0 + m) * span, span, seen, at + m, row, pixel, 1, d, 0, drow, span, R, N)
            m += R2


@njit(parallel=True, cache=True)
def weight_grad(x, g, y, mode, dw, size, span, together, columns, stride, pad):
    """dw[part, u, v, c, o] = sum of x dz over a part of the images and output rows; x and y contiguous, for `plan`.

    x (B, H, W, C), y (B, OH, OW, O). dz is made on the way, from g (B, h, w, O), one value for each of h x w parts
    of y (h = OH, w = OW: for each place), and from y as `mode` says (kernels_image.py).
    """
    B, H, W, C = x.shape
    _, OH, OW, O = y.shape
    parts, KH, KW = dw.shape[:3]
    h, w = g.shape[1:3]
    across = OH * OW < 64  # small maps: a block is one row of many images; else some rows of one image
    K, line = KW * C, ((OW - 1) * stride + KW) * C
    P, groups, long, others = (O + span - 1) // span, KH // together, B if across else OH, OH if across else B
    rows = max(1, min(long, PIXELS // OW))
    blocks = (long + rows - 1) // rows
    lines = rows * together if across else (rows - 1) * stride + together
    for job in prange(P * groups * parts):
        p, ky0, part = job // (groups * parts), job // parts % groups * together, job % parts
        n, c0 = min(span, O - p * span), p * span
        room = (KH * K if columns else K) + R0  # a tile's unused rows fall behind
        acc, d = aligned(together * room * span), aligned(rows * OW * span)
        seen = aligned((rows * OW * KH * K if columns else lines * line) + R0)
        acc[:] = 0
        d[:] = 0  # beside the last channel it stays so
        seen[:] = 0  # and beside the image
        for block in range(part, others * blocks, parts):
            k, first = block // blocks, block % blocks * rows
            R = min(rows, long - first)
            for r in range(R):  # gradients
                image, oy = (first + r, k) if across else (k, first + r)
                for ox in range(OW):
                    of_part = (image * h + ((oy + 1) * h - 1) // OH) * w + ((ox + 1) * w - 1) // OW
                    place = (image * OH + oy) * OW + ox
                    gradient(mode, d, (r * OW + ox) * span, g, of_part * O + c0, y, place * O + c0, n)
            if columns:  # for each output pixel, all that the kernel sees
                for r in range(R):
                    image, oy = (first + r, k) if across else (k, first + r)
                    for ky in range(KH):
                        iy = oy * stride - pad + ky
                        inside = 0 <= iy < H
                        pixels = (image * H + iy) * W * C
                        for ox in range(OW):
                            at, left = ((r * OW + ox) * KH + ky) * K, (ox * stride - pad) * C
                            low, past = max(0, -left), min(K, W * C - left)
                            if not inside or low > 0 or past < K:
                                for i in range(K):
                                    seen[at + i] = 0
                            if inside:
                                copy(seen, at + low, x, pixels + left + low, x, 0, past - low)
                _sums(size, acc, 0, KH * K, seen, 0, OW * KH * K, KH * K, d, OW * span, span, R, OW)
                continue
            for i in range(R * together if across else (R - 1) * stride + together):  # rows of images
                image, below = (first + i // together, k) if across else (k, first)
                iy, at = below * stride - pad + ky0 + (i % together if across else i), i * line + pad * C
                length = min(W * C, line - pad * C)
                if 0 <= iy < H:
                    copy(seen, at, x, (image * H + iy) * W * C, x, 0, length)
                else:
                    seen[at : at + length] = 0
            row = together * line if across else stride * line
            for ky in range(together):
                if not across or 0 <= k * stride - pad + ky0 + ky < H:
                    _sums(size, acc, ky * room, K, seen, ky * line, row, stride * C, d, OW * span, span, R, OW)
        for ky in range(together):
            for i in range(K):
                at = (ky * K if columns else ky * room) * span + i * span
                dw[part, ky0 + ky, i // C, i % C, c0 : c0 + n] = acc[at : at + n]
