"""Passes over images (B, H, W, C) on the CPU, each of them once through memory: parts, pooling, norm, dropout.

Every number is summed by one thread in a fixed order, lanes of a vector side by side: same bits for any number of
threads. All is float32; the readable twins are in pool.py.
"""

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

from common.kernels_cpu import LANES, _lane_sum, aligned

AVERAGE, RMS, MAX = 0, 1, 2  # pooling
PLAIN, MASKED, TIMES = 0, 1, 2  # a gradient as it is, where the ReLU is on, or times what the ReLU lets through


def _lanewise(body):
    """A loop run(D, d0, A, a0, B, b0, n): D[d0 + i] = body of D[d0 + i], A[a0 + i] and B[b0 + i], for i < n.

    Offsets count floats from the array's beginning, whatever its shape. (A slice for every pixel would be written more
    nicely, and costs more than the pixel: numba counts references to its array, with all threads on the same counter.)
    """
    index = types.intp

    def make(width):
        vector = ir.VectorType(ir.FloatType(), width)

        @intrinsic
        def step(typingctx, D, d0, A, a0, B, b0):
            signature = types.void(D, index, A, index, B, index)

            def codegen(context, builder, signature, args):
                places = []
                for k in (0, 2, 4):
                    data = context.make_array(signature.args[k])(context, builder, args[k]).data
                    places.append(builder.bitcast(builder.gep(data, [args[k + 1]]), vector.as_pointer()))
                values = [builder.load(place, align=4) for place in places]  # LLVM drops those that body leaves unused
                builder.store(body(builder, ir.Constant(vector, [0.0] * width), *values), places[0], align=4)
                return context.get_dummy_value()

            return signature, codegen

        return step

    wide, one = make(LANES), make(1)

    @njit(inline="always")
    def run(D, d0, A, a0, B, b0, n):
        whole = n // LANES * LANES
        for i in range(0, whole, LANES):
            wide(D, d0 + i, A, a0 + i, B, b0 + i)
        for i in range(whole, n):
            one(D, d0 + i, A, a0 + i, B, b0 + i)

    return run


def _positive(f, zero, x, value):
    """value where x > 0, else 0."""
    return f.select(f.fcmp_ordered(">", x, zero), value, zero)


copy = _lanewise(lambda f, zero, d, a, b: a)
masked = _lanewise(lambda f, zero, d, a, b: _positive(f, zero, b, a))
times = _lanewise(lambda f, zero, d, a, b: f.fmul(a, b))
plus = _lanewise(lambda f, zero, d, a, b: f.fadd(a, b))
plus_relu = _lanewise(lambda f, zero, d, a, b: _positive(f, zero, f.fadd(a, b), f.fadd(a, b)))
add = _lanewise(lambda f, zero, d, a, b: f.fadd(d, a))
most = _lanewise(lambda f, zero, d, a, b: f.select(f.fcmp_ordered(">", a, d), a, d))
routed = _lanewise(lambda f, zero, d, a, b: f.select(f.fcmp_ordered("==", a, d), b, zero))
add_masked = _lanewise(lambda f, zero, d, a, b: f.fadd(d, _positive(f, zero, b, a)))
add_times = _lanewise(lambda f, zero, d, a, b: f.fadd(d, f.fmul(a, b)))


@njit(inline="always")
def gradient(mode, D, d0, G, g0, Y, y0, n):
    """D[d0 : d0 + n] = dL/dz from the gradient G and activities Y there, as `mode` says."""
    if mode == TIMES:
        times(D, d0, G, g0, Y, y0, n)
    elif mode == MASKED:
        masked(D, d0, G, g0, Y, y0, n)
    else:
        copy(D, d0, G, g0, G, g0, n)


def _excess(f, zero, a, b):
    """ReLU(a + b)."""
    total = f.fadd(a, b)
    return _positive(f, zero, total, total)


add_excess = _lanewise(lambda f, zero, d, a, b: f.fadd(d, _excess(f, zero, a, b)))
add_excess_square = _lanewise(
    lambda f, zero, d, a, b: f.fadd(d, f.fmul(_excess(f, zero, a, b), _excess(f, zero, a, b)))
)


@njit(parallel=True, cache=True)
def label_goodness(a, U, g):
    """g[b, k] = mean of ReLU(a[b] + U[k])^2 over all locations and channels: a (B, H, W, C), U (K, C), g (B, K)."""
    B, H, W, C = a.shape
    K = len(U)
    for b in prange(B):
        sums, lanes = aligned(K * C), aligned(LANES)
        sums[:] = 0
        for i in range(H * W):
            for k in range(K):
                add_excess_square(sums, k * C, a, (b * H * W + i) * C, U, k * C, C)
        for k in range(K):
            g[b, k] = _sum(sums[k * C : (k + 1) * C], C, lanes) / np.float32(H * W * C)


@njit(parallel=True, cache=True)
def label_error(a, U, f, da, dU):
    """da = sum over k of f[b, k] ReLU(a + U[k]), dU[b, k] = f[b, k] times its sum over locations.

    a and da (B, H, W, C), U (K, C), f (B, K), dU (B, K, C).
    """
    B, H, W, C = a.shape
    K = len(U)
    for b in prange(B):
        sums, one = aligned(K * C), aligned(C)
        sums[:] = 0
        for i in range(H * W):
            at = (b * H * W + i) * C
            for c in range(C):
                one[c] = 0
            copy(da, at, one, 0, one, 0, C)
            for k in range(K):
                if f[b, k] != 0:
                    one[:] = 0
                    add_excess(one, 0, a, at, U, k * C, C)
                    add(sums, k * C, one, 0, one, 0, C)
                    for c in range(C):
                        one[c] *= f[b, k]
                    add(da, at, one, 0, one, 0, C)
        for k in range(K):
            for c in range(C):
                dU[b, k, c] = f[b, k] * sums[k * C + c]


@njit(parallel=True, cache=True)
def part_moments(z, squares, means):
    """Mean of z^2 and mean of z over each of h x w parts: z (B, H, W, C) -> squares and means (B, h, w, C)."""
    B, H, W, C = z.shape
    h, w = squares.shape[1:3]
    for part in prange(B * h):
        b, i = part // h, part % h
        s, m = aligned(C), aligned(C)
        for j in range(w):
            s[:] = 0
            m[:] = 0
            y0, y1, x0, x1 = i * H // h, (i + 1) * H // h, j * W // w, (j + 1) * W // w
            share = np.float32(1 / ((y1 - y0) * (x1 - x0)))
            for y in range(y0, y1):
                for x in range(x0, x1):
                    at = ((b * H + y) * W + x) * C
                    add_times(s, 0, z, at, z, at, C)
                    add(m, 0, z, at, z, at, C)
            for c in range(C):
                squares[b, i, j, c] = s[c] * share
                means[b, i, j, c] = m[c] * share


@njit(parallel=True, cache=True)
def spread(d, y, mode, dz):
    """dz = a gradient d (B, h, w, C), given for h x w parts of y's rows and columns, in full (B, H, W, C)."""
    B, H, W, C = dz.shape
    h, w = d.shape[1:3]
    for part in prange(B * H):
        b, i = part // H, part % H
        for j in range(W):
            at = (part * W + j) * C
            gradient(mode, dz, at, d, ((b * h + ((i + 1) * h - 1) // H) * w + ((j + 1) * w - 1) // W) * C, y, at, C)


@njit(parallel=True, cache=True)
def bias_grad(d, y, mode, sums):
    """Of the same gradient, the sum over each image's locations: sums (B, C)."""
    B, H, W, C = y.shape
    h, w = d.shape[1:3]
    for b in prange(B):
        total = aligned(C)
        total[:] = 0
        for i in range(H):
            for j in range(W):
                at, of_part = (
                    ((b * H + i) * W + j) * C,
                    ((b * h + ((i + 1) * h - 1) // H) * w + ((j + 1) * w - 1) // W) * C,
                )
                if mode == TIMES:
                    add_times(total, 0, d, of_part, y, at, C)
                elif mode == MASKED:
                    add_masked(total, 0, d, of_part, y, at, C)
                else:
                    add(total, 0, d, of_part, d, of_part, C)
        for c in range(C):
            sums[b, c] = total[c]


def _make_drop(width):
    """D[d0 + i] = D[d0 + i] grow if the coin of place `first + i` is at least `least`, else 0, for i < width.

    The coin is a hash of the place's number and the step's key, 32 bits (MurmurHash3's last steps; layers.coins).
    """
    floats, ints = ir.VectorType(ir.FloatType(), width), ir.VectorType(ir.IntType(32), width)

    @intrinsic
    def step(typingctx, D, d0, first, key, least, grow):
        signature = types.void(D, types.intp, types.intp, types.uint32, types.uint32, types.float32)

        def codegen(context, f, signature, args):
            def everywhere(scalar):
                one = f.insert_element(ir.Constant(ir.VectorType(scalar.type, width), ir.Undefined), scalar, zero)
                return f.shuffle_vector(one, ir.Constant(one.type, ir.Undefined), ir.Constant(ints, [0] * width))

            def constant(number):
                return ir.Constant(ints, [number] * width)

            zero = ir.Constant(ir.IntType(32), 0)
            data = context.make_array(signature.args[0])(context, f, args[0]).data
            place = f.bitcast(f.gep(data, [args[1]]), floats.as_pointer())
            x = f.add(everywhere(f.trunc(args[2], ir.IntType(32))), ir.Constant(ints, list(range(width))))
            x = f.xor(f.mul(x, constant(0x9E3779B9)), everywhere(args[3]))
            x = f.mul(f.xor(x, f.lshr(x, constant(16))), constant(0x85EBCA6B))
            x = f.mul(f.xor(x, f.lshr(x, constant(13))), constant(0xC2B2AE35))
            x = f.xor(x, f.lshr(x, constant(16)))
            kept = f.fmul(f.load(place, align=4), everywhere(args[5]))
            kept = f.select(f.icmp_unsigned(">=", x, everywhere(args[4])), kept, ir.Constant(floats, [0.0] * width))
            f.store(kept, place, align=4)
            return context.get_dummy_value()

        return signature, codegen

    return step


_drop, _drop_one = _make_drop(LANES), _make_drop(1)


@njit(inline="always")
def _dropped(row, first, key, least, grow, n):
    """Dropout of row[:n], the values at places first, first + 1, ..."""
    whole = n // LANES * LANES
    for i in range(0, whole, LANES):
        _drop(row, i, first + i, key, least, grow)
    for i in range(whole, n):
        _drop_one(row, i, first + i, key, least, grow)


@njit(inline="always")
def _pooled(z, b, i, j, side, kind, row):
    """row (C,) = mean, root of the mean square, or maximum of z over the side x side window (i, j) of image b."""
    _, H, W, C = z.shape
    at = ((b * H + i * side) * W + j * side) * C
    if side == 1:
        copy(row, 0, z, at, z, at, C)
        return
    row[:] = 0 if kind != MAX else -np.inf
    for y in range(side):
        for x in range(side):
            place = at + (y * W + x) * C
            if kind == AVERAGE:
                add(row, 0, z, place, z, place, C)
            elif kind == RMS:
                add_times(row, 0, z, place, z, place, C)
            else:
                most(row, 0, z, place, z, place, C)
    share = np.float32(1 / (side * side))
    if kind == AVERAGE:
        for c in range(C):
            row[c] *= share
    elif kind == RMS:
        for c in range(C):
            row[c] = np.sqrt(row[c] * share + np.float32(1e-8))


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
def hand_on(z, side, kind, norm, centre, eps, key, least, grow, h):
    """Pool, norm over channels (or none), dropout: z (B, H, W, C) -> h (B, H / side, W / side, C).

    A value is kept, and multiplied by `grow`, if its coin is at least `least` (0: all are kept).
    """
    B, OH, OW, C = h.shape
    for part in prange(B * OH):
        b, i = part // OH, part % OH
        sums, row = aligned(LANES), aligned(C)
        for j in range(OW):
            first = (part * OW + j) * C
            _pooled(z, b, i, j, side, kind, row)
            if norm:
                _normed(row, C, centre, eps, sums)
            if least > 0:
                _dropped(row, first, key, least, grow, C)
            copy(h, first, row, 0, row, 0, C)


@njit(parallel=True, cache=True)
def hand_back(dh, z, side, kind, norm, centre, eps, key, least, grow, dz):
    """The gradient of `hand_on`: dh of h's shape -> dz of z's. The norm is computed again, nothing of it was kept."""
    B, OH, OW, C = dh.shape
    n, share = np.float32(C), np.float32(1 / (side * side))
    for part in prange(B * OH):
        b, i = part // OH, part % OH
        sums, row, pooled, d = aligned(LANES), aligned(C), aligned(C), aligned(C)
        for j in range(OW):
            first = (part * OW + j) * C
            copy(d, 0, dh, first, dh, first, C)
            if least > 0:
                _dropped(d, first, key, least, grow, C)
            if norm or (kind != AVERAGE and side > 1):
                _pooled(z, b, i, j, side, kind, row)
                copy(pooled, 0, row, 0, row, 0, C)
            if norm:
                factor = _normed(row, C, centre, eps, sums)
                along = _product_sum(row, d, C, sums) / n
                mean = _sum(d, C, sums) / n if centre else np.float32(0)
                for c in range(C):
                    d[c] = (d[c] - mean - row[c] * along) * factor
            if side > 1 and kind == RMS:
                for c in range(C):
                    d[c] *= share / pooled[c]
            elif kind == AVERAGE:
                for c in range(C):
                    d[c] *= share
            for y in range(i * side, (i + 1) * side):
                for x in range(j * side, (j + 1) * side):
                    place = ((b * dz.shape[1] + y) * dz.shape[2] + x) * C
                    if side == 1 or kind == AVERAGE:
                        copy(dz, place, d, 0, d, 0, C)
                    elif kind == RMS:
                        times(dz, place, d, 0, z, place, C)
                    else:
                        copy(dz, place, pooled, 0, pooled, 0, C)
                        routed(dz, place, z, place, d, 0, C)
