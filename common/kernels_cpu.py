"""The hot loops on the CPU: one register-blocked tile, compiled by numba, under every locally connected kernel.

A locally connected layer is one small matrix product per location, (B, K) x (K, O), and no two locations share
weights, so BLAS cannot batch it well. The loops below put a block of `BLOCK` images side by side in SIMD lanes:

    packed images   xp[q, iy, ix, c, lane]        image b = q * BLOCK + lane; zero beyond the last image
    tile            C[m, lane] += sum_j A[j, m] * X[j, lane]      m < MR rows, NV vectors of LANES floats

`tile` keeps its MR x NV accumulators in vector registers for the whole sum, which no loop that LLVM vectorises by
itself does; it is written in LLVM's own vocabulary (fmul, fadd and shuffles on vector types), so the same text becomes
AVX-512, AVX2 or NEON code. Forward, weight gradient and input gradient are that one tile under different strides.

Everything is float32. Work is split over output rows (or input rows, for the input gradient); every number is summed
by one thread in one fixed order, so the result has the same bits for any thread count. The float64 reference that these
kernels are checked against is `LocallyConnected2d` in local2d.py.

Threads: `numba.set_num_threads` (common/cli.py does it). The compiled code is cached beside this file.
"""

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic


def _vector_width():
    """(floats per vector register, rows of a tile, vectors of a tile): half of the registers become accumulators."""
    features = numba.config.CPU_FEATURES
    if features is None:
        features = llvm.get_host_cpu_features().flatten()
    if "+avx512f" in features:
        return 16, 8, 2
    if "+avx" in features:
        return 8, 4, 2  # 16 registers: 8 accumulators, 2 inputs, the rest broadcasts
    return 4, 8, 2  # NEON; also what any other machine runs


LANES, ROWS, VECTORS = _vector_width()
BLOCK = LANES * VECTORS  # images that one tile works on side by side
GRAD_ROWS = 8 if LANES == 8 else 12  # accumulators of the weight gradient's tile
DENSE_ROWS = 6 if LANES == 8 else 12  # of a dense layer's: the tile of its gradient, 2 vectors wide,
FORWARD_ROWS = 5 if LANES == 8 else 10  # and of its forward pass: divides a batch of 100
PANEL, NEAR = 2 * LANES, 1 << 18  # its columns; floats of such panels, times the batch, that the caches keep near
TURN = 8  # summands of a dense layer's tile between two turns of asking for memory ahead
SPAN, DEPTH, TALL = 8 * LANES, 48, 256  # columns, rows of W and rows of x that `sparse_product` works on at a time
SLACK = GRAD_ROWS * BLOCK  # floats behind packed images, so that a tile's unused rows may read past the end

_INT = types.intp


def _broadcast(builder, scalar):
    """A vector of LANES times the same number."""
    undefined = ir.Constant(ir.VectorType(ir.FloatType(), LANES), ir.Undefined)
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    first = builder.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, zeros)


def _make_tile(rows, vectors, accumulate, ahead=False):
    """The tile as a numba intrinsic: C (+)= A^T X; all offsets and strides count floats.

    tile(C, c0, cm,  A, a0, ar, aj, am,  X, x0, xr, xj,  R, N):
        C[c0 + m*cm + lane] (+)= sum_{r<R} sum_{j<N} A[a0 + r*ar + j*aj + m*am] * X[x0 + r*xr + j*xj + lane]
    for m < rows and lane < vectors * LANES. Without `accumulate`, C is overwritten.

    With `ahead` two more arguments, F and f: turn r of R first asks for the cache lines at the addresses F[r, :] + f.
    """
    vector = ir.VectorType(ir.FloatType(), LANES)

    def build(C, A, X, *more):
        signature = types.void(C, *[_INT] * 2, A, *[_INT] * 4, X, *[_INT] * 5, *more)

        def codegen(context, builder, signature, args):
            (C, c0, cm, A, a0, ar, aj, am, X, x0, xr, xj, R, N) = args[:14]
            c_ptr, a_ptr, x_ptr = (
                context.make_array(signature.args[k])(context, builder, array).data
                for k, array in ((0, C), (3, A), (8, X))
            )

            def at(pointer, base, stride, index, offset=0):  # &pointer[base + stride*index + offset]
                step = builder.mul(stride, ir.Constant(stride.type, index))
                place = builder.add(builder.add(base, step), ir.Constant(stride.type, offset))
                return builder.gep(pointer, [place])

            def as_vector(pointer):
                return builder.bitcast(pointer, vector.as_pointer())

            places = [(m, v) for m in range(rows) for v in range(vectors)]
            target = {(m, v): as_vector(at(c_ptr, c0, cm, m, v * LANES)) for m, v in places}
            acc = {}
            for place in places:  # LLVM turns these stack slots into registers
                start = builder.load(target[place], align=4) if accumulate else ir.Constant(vector, [0.0] * LANES)
                acc[place] = cgutils.alloca_once(builder, vector)
                builder.store(start, acc[place])
            with cgutils.for_range(builder, R) as outer:
                a_row = builder.add(a0, builder.mul(outer.index, ar))
                x_row = builder.add(x0, builder.mul(outer.index, xr))

                def add_product(j, a_row=a_row, x_row=x_row):  # acc[m, :] += A[j, m] X[j, :] for all m
                    a_j = builder.add(a_row, builder.mul(j, aj))
                    x_j = builder.add(x_row, builder.mul(j, xj))
                    x = [builder.load(as_vector(at(x_ptr, x_j, xj, 0, v * LANES)), align=4) for v in range(vectors)]
                    for m in range(rows):
                        a = _broadcast(builder, builder.load(at(a_ptr, a_j, am, m)))
                        for v in range(vectors):
                            product = builder.fmul(a, x[v], flags=("contract",))  # contract: fuse to multiply-add
                            total = builder.fadd(builder.load(acc[m, v]), product, flags=("contract",))
                            builder.store(total, acc[m, v])

                if ahead:
                    lines = context.make_array(signature.args[14])(context, builder, args[14])
                    each = builder.extract_value(lines.shape, 1)
                    with cgutils.for_range(builder, each) as line:
                        place = builder.add(builder.mul(outer.index, each), line.index)
                        address = builder.add(builder.load(builder.gep(lines.data, [place])), args[15])
                        _ask_for(builder, builder.inttoptr(address, ir.IntType(8).as_pointer()))
                two = ir.Constant(N.type, 2)  # two steps per turn: one is half as fast on some processors
                with cgutils.for_range(builder, builder.sdiv(N, two)) as inner:
                    j = builder.mul(inner.index, two)
                    add_product(j)
                    add_product(builder.add(j, ir.Constant(N.type, 1)))
                with cgutils.for_range(builder, builder.srem(N, two)):
                    add_product(builder.sub(N, ir.Constant(N.type, 1)))
            for place in places:
                builder.store(builder.load(acc[place]), target[place], align=4)
            return context.get_dummy_value()

        return signature, codegen

    if ahead:

        @intrinsic
        def tile(typingctx, C, c0, cm, A, a0, ar, aj, am, X, x0, xr, xj, R, N, F, f):
            return build(C, A, X, F, _INT)

    else:

        @intrinsic
        def tile(typingctx, C, c0, cm, A, a0, ar, aj, am, X, x0, xr, xj, R, N):
            return build(C, A, X)

    return tile


@intrinsic
def _add_rows(typingctx, C, c0, V, P, first, N, X):
    """C[c0 + lane] += sum_{i<N} V[first + i] X[P[first + i] * SPAN + lane], lane < SPAN; C and X on cache lines."""
    signature = types.void(C, _INT, V, P, _INT, _INT, X)
    vector = ir.VectorType(ir.FloatType(), LANES)

    def codegen(context, builder, signature, args):
        C, c0, V, P, first, N, X = args
        c_ptr, v_ptr, p_ptr, x_ptr = (
            context.make_array(signature.args[k])(context, builder, array).data
            for k, array in ((0, C), (2, V), (3, P), (6, X))
        )

        def lanes(pointer, place, v):
            place = builder.add(place, ir.Constant(place.type, v * LANES))
            return builder.bitcast(builder.gep(pointer, [place]), vector.as_pointer())

        acc = [cgutils.alloca_once(builder, vector) for _ in range(SPAN // LANES)]
        for v, total in enumerate(acc):
            builder.store(builder.load(lanes(c_ptr, c0, v), align=4), total)

        def add_row(i):
            i = builder.add(first, i)
            a = _broadcast(builder, builder.load(builder.gep(v_ptr, [i])))
            row = builder.zext(builder.load(builder.gep(p_ptr, [i])), first.type)
            row = builder.mul(row, ir.Constant(row.type, SPAN))
            for v, total in enumerate(acc):
                product = builder.fmul(a, builder.load(lanes(x_ptr, row, v), align=4), flags=("contract",))
                builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)

        two = ir.Constant(N.type, 2)
        with cgutils.for_range(builder, builder.sdiv(N, two)) as loop:
            i = builder.mul(loop.index, two)
            add_row(i)
            add_row(builder.add(i, ir.Constant(N.type, 1)))
        with cgutils.for_range(builder, builder.srem(N, two)):
            add_row(builder.sub(N, ir.Constant(N.type, 1)))
        for v, total in enumerate(acc):
            builder.store(builder.load(total), lanes(c_ptr, c0, v), align=4)
        return context.get_dummy_value()

    return signature, codegen


def _make_transpose():
    """A LANES x LANES transpose in registers: D[d0 + i*ds + k] = S[s0 + k*ss + i], log2(LANES) rounds of shuffles."""
    vector = ir.VectorType(ir.FloatType(), LANES)
    picks = ir.VectorType(ir.IntType(32), LANES)

    @intrinsic
    def transpose(typingctx, D, d0, ds, S, s0, ss):
        signature = types.void(D, _INT, _INT, S, _INT, _INT)

        def codegen(context, builder, signature, args):
            D, d0, ds, S, s0, ss = args

            def row(k, array, base, stride, m):
                pointer = context.make_array(signature.args[k])(context, builder, array).data
                place = builder.add(base, builder.mul(stride, ir.Constant(stride.type, m)))
                return builder.bitcast(builder.gep(pointer, [place]), vector.as_pointer())

            r = [builder.load(row(3, S, s0, ss, m), align=4) for m in range(LANES)]
            half = LANES // 2
            while half:  # swap the off-diagonal half x half corners of every 2*half x 2*half square
                low = ir.Constant(picks, [k if not k & half else LANES + k - half for k in range(LANES)])
                high = ir.Constant(picks, [k + half if not k & half else LANES + k for k in range(LANES)])
                for m in range(LANES):
                    if not m & half:
                        a, b = r[m], r[m + half]
                        r[m], r[m + half] = builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high)
                half //= 2
            for m in range(LANES):
                builder.store(r[m], row(0, D, d0, ds, m), align=4)
            return context.get_dummy_value()

        return signature, codegen

    return transpose


def _make_move(n):
    """D[d0 : d0 + n] = S[s0 : s0 + n] in one register."""
    vector = ir.VectorType(ir.FloatType(), n)

    @intrinsic
    def move(typingctx, D, d0, S, s0):
        signature = types.void(D, _INT, S, _INT)

        def codegen(context, builder, signature, args):
            D, d0, S, s0 = args
            target = context.make_array(signature.args[0])(context, builder, D).data
            source = context.make_array(signature.args[2])(context, builder, S).data
            value = builder.load(builder.bitcast(builder.gep(source, [s0]), vector.as_pointer()), align=4)
            builder.store(value, builder.bitcast(builder.gep(target, [d0]), vector.as_pointer()), align=4)
            return context.get_dummy_value()

        return signature, codegen

    return move


def _make_label_lanes():
    """LANES images under every label, for `label_error`: with d_k = C[c0 + k*cs] max(A[a0] + U[u0 + k*us], 0),

    T[t0] = P[p0] + sum_k d_k,    S[k*LANES] += d_k            for k < N; U and P hold numbers, the others vectors
    """
    vector = ir.VectorType(ir.FloatType(), LANES)

    @intrinsic
    def label_lanes(typingctx, A, a0, U, u0, us, C, c0, cs, P, p0, T, t0, S, N):
        signature = types.void(A, _INT, U, *[_INT] * 2, C, *[_INT] * 2, P, _INT, T, _INT, S, _INT)

        def codegen(context, builder, signature, args):
            A, a0, U, u0, us, C, c0, cs, P, p0, T, t0, S, N = args

            def pointer(k, array, place):
                return builder.gep(context.make_array(signature.args[k])(context, builder, array).data, [place])

            def lanes(k, array, place):
                return builder.bitcast(pointer(k, array, place), vector.as_pointer())

            def number(k, array, place):
                return _broadcast(builder, builder.load(pointer(k, array, place)))

            a, none = builder.load(lanes(0, A, a0), align=4), ir.Constant(vector, [0.0] * LANES)
            total = cgutils.alloca_once(builder, vector)
            builder.store(number(8, P, p0), total)
            with cgutils.for_range(builder, N) as loop:
                z = builder.fadd(a, number(2, U, builder.add(u0, builder.mul(loop.index, us))))
                z = builder.select(builder.fcmp_ordered(">", z, none), z, none)
                c = builder.load(lanes(5, C, builder.add(c0, builder.mul(loop.index, cs))), align=4)
                d = builder.fmul(c, z)
                builder.store(builder.fadd(builder.load(total), d), total)
                own = lanes(12, S, builder.mul(loop.index, ir.Constant(N.type, LANES)))
                builder.store(builder.fadd(builder.load(own, align=4), d), own, align=4)
            builder.store(builder.load(total), lanes(10, T, t0), align=4)
            return context.get_dummy_value()

        return signature, codegen

    return label_lanes


@intrinsic
def _square_lanes(typingctx, S, s0, n, T):
    """T[lane] += S[s0 + lane]^2 + S[s0 + lane + LANES]^2 + ... up to n, a multiple of LANES; two sums take turns."""
    signature = types.void(S, *[_INT] * 2, T)

    def codegen(context, builder, signature, args):
        vector = ir.VectorType(ir.FloatType(), LANES)
        S, s0, n, T = args

        def at(k, array, place):
            pointer = builder.gep(context.make_array(signature.args[k])(context, builder, array).data, [place])
            return builder.bitcast(pointer, vector.as_pointer())

        def add_square(total, place):
            x = builder.load(at(0, S, place), align=4)
            builder.store(builder.fadd(builder.load(total), builder.fmul(x, x)), total)

        even, odd = cgutils.alloca_once(builder, vector), cgutils.alloca_once(builder, vector)
        target = at(3, T, ir.Constant(n.type, 0))
        builder.store(builder.load(target, align=4), even)
        builder.store(ir.Constant(vector, [0.0] * LANES), odd)
        steps, two, size = (
            builder.sdiv(n, ir.Constant(n.type, LANES)),
            ir.Constant(n.type, 2),
            ir.Constant(n.type, LANES),
        )
        with cgutils.for_range(builder, builder.sdiv(steps, two)) as loop:
            place = builder.add(s0, builder.mul(builder.mul(loop.index, two), size))
            add_square(even, place)
            add_square(odd, builder.add(place, size))
        with cgutils.for_range(builder, builder.srem(steps, two)):
            add_square(even, builder.add(s0, builder.mul(builder.sub(steps, ir.Constant(n.type, 1)), size)))
        builder.store(builder.fadd(builder.load(even), builder.load(odd)), target, align=4)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _lane_sum(typingctx, S, s0):
    """S[s0] + ... + S[s0 + LANES - 1]: halves are added to halves, always in this order."""
    signature = types.float32(S, _INT)

    def codegen(context, builder, signature, args):
        vector = ir.VectorType(ir.FloatType(), LANES)
        pointer = builder.gep(context.make_array(signature.args[0])(context, builder, args[0]).data, [args[1]])
        x = builder.load(builder.bitcast(pointer, vector.as_pointer()), align=4)
        half = LANES // 2
        while half:
            picks = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [(k + half) % LANES for k in range(LANES)])
            x = builder.fadd(x, builder.shuffle_vector(x, ir.Constant(vector, ir.Undefined), picks))
            half //= 2
        return builder.extract_element(x, ir.Constant(ir.IntType(32), 0))

    return signature, codegen


@intrinsic
def _momentum_lanes(typingctx, W, M, at, G, g0, lr, beta, decay):
    """`momentum` on LANES neighbours: W[at...] and M[at...], with the gradient in G[g0...]."""
    number = types.float32
    signature = types.void(W, M, _INT, G, _INT, number, number, number)

    def codegen(context, builder, signature, args):
        W, M, at, G, g0, lr, beta, decay = args
        w_at, m_at, g_at = _vectors_at(context, builder, signature, args, (0, at), (1, at), (3, g0))
        w, g = builder.load(w_at, align=4), builder.load(g_at, align=4)
        m = builder.fmul(_broadcast(builder, beta), builder.load(m_at, align=4))
        m = builder.fadd(builder.fadd(m, g), builder.fmul(_broadcast(builder, decay), w))
        m = _flush(builder, m)
        builder.store(m, m_at, align=4)
        builder.store(builder.fsub(w, builder.fmul(_broadcast(builder, lr), m)), w_at, align=4)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def _adam_lanes(typingctx, W, M, V, at, G, g0, step_size, beta1, beta2, root, eps, decay):
    """`adam` on LANES neighbours: W, M and V from `at` on, with the gradient in G[g0...]."""
    signature = types.void(W, M, V, _INT, G, _INT, *[types.float32] * 6)

    def codegen(context, builder, signature, args):
        at, g0 = args[3], args[5]
        step_size, beta1, beta2, root, eps, decay = (_broadcast(builder, number) for number in args[6:])
        one = ir.Constant(_VECTOR, [1.0] * LANES)
        w_at, m_at, v_at, g_at = _vectors_at(context, builder, signature, args, (0, at), (1, at), (2, at), (4, g0))
        w, g = builder.load(w_at, align=4), builder.load(g_at, align=4)
        m = builder.fmul(beta1, builder.load(m_at, align=4))
        m = _flush(builder, builder.fadd(m, builder.fmul(builder.fsub(one, beta1), g)))
        v = builder.fmul(beta2, builder.load(v_at, align=4))
        v = _flush(builder, builder.fadd(v, builder.fmul(builder.fmul(builder.fsub(one, beta2), g), g)))
        builder.store(m, m_at, align=4)
        builder.store(v, v_at, align=4)
        square_root = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR]), f"llvm.sqrt.v{LANES}f32"
        )
        below = builder.fadd(builder.fmul(builder.call(square_root, [v]), root), eps)
        w = builder.fmul(builder.fsub(one, decay), w)
        builder.store(builder.fsub(w, builder.fdiv(builder.fmul(step_size, m), below)), w_at, align=4)
        return context.get_dummy_value()

    return signature, codegen


_VECTOR = ir.VectorType(ir.FloatType(), LANES)


def _vectors_at(context, builder, signature, args, *places):
    """Pointers to LANES floats, at each (number of the array among the arguments, offset)."""
    found = []
    for k, offset in places:
        pointer = context.make_array(signature.args[k])(context, builder, args[k]).data
        found.append(builder.bitcast(builder.gep(pointer, [offset]), _VECTOR.as_pointer()))
    return found


def _flush(builder, x):
    """x, or 0 where it is below 1e-30: see `adam`."""
    high, low = (ir.Constant(_VECTOR, [sign * float(np.float32(1e-30))] * LANES) for sign in (1, -1))
    large = builder.or_(builder.fcmp_unordered(">", x, high), builder.fcmp_unordered("<", x, low))  # NaN stays NaN
    return builder.select(large, x, ir.Constant(_VECTOR, [0.0] * LANES))


@intrinsic
def _prefetch(typingctx, D, d0):
    """Ask for the cache line of D[d0], to be written soon."""
    signature = types.void(D, _INT)

    def codegen(context, builder, signature, args):
        D, d0 = args
        pointer = builder.gep(context.make_array(signature.args[0])(context, builder, D).data, [d0])
        _ask_for(builder, builder.bitcast(pointer, ir.IntType(8).as_pointer()))
        return context.get_dummy_value()

    return signature, codegen


def _ask_for(builder, pointer):
    """Prefetch the cache line at the pointer (to bytes), to be written."""
    i32 = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, i32, i32, i32])
    f = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(f, [pointer, i32(1), i32(3), i32(1)])


_tile = _make_tile(ROWS, VECTORS, accumulate=True)
_tile2 = _make_tile(2, VECTORS, accumulate=True)
_tile1 = _make_tile(1, VECTORS, accumulate=True)
_grad_tile = _make_tile(GRAD_ROWS, 1, accumulate=False)
_forward_tile = _make_tile(FORWARD_ROWS, 2, accumulate=False, ahead=True)
_product_tile = _make_tile(DENSE_ROWS, 2, accumulate=False, ahead=True)
_transpose, _label_lanes = _make_transpose(), _make_label_lanes()
_move, _move_half, _move_one = _make_move(LANES), _make_move(LANES // 2), _make_move(1)


@njit(inline="always")
def _copy(D, d0, S, s0, n):
    """D[d0 : d0 + n] = S[s0 : s0 + n] for any n <= LANES, whole and half registers first."""
    if n == LANES:
        _move(D, d0, S, s0)
    else:
        done = 0
        if n >= LANES // 2:
            _move_half(D, d0, S, s0)
            done = LANES // 2
        for i in range(done, n):
            _move_one(D, d0 + i, S, s0 + i)


@njit
def aligned(n):
    """n floats that start on a cache line (64 bytes): a vector that straddles two lines costs two loads."""
    room = np.empty(n + 16, np.float32)
    skip = -(room.ctypes.data // 4) % 16
    return room[skip : skip + n]


@njit(inline="always")
def _tiles(M, C, c0, cm, A, a0, ar, aj, am, X, x0, xr, xj, R, N):
    """C[m] += A^T X for any number M of rows: as many full tiles as fit, then twos and a one."""
    m = 0
    while m + ROWS <= M:
        _tile(C, c0 + m * cm, cm, A, a0 + m * am, ar, aj, am, X, x0, xr, xj, R, N)
        m += ROWS
    while m + 2 <= M:
        _tile2(C, c0 + m * cm, cm, A, a0 + m * am, ar, aj, am, X, x0, xr, xj, R, N)
        m += 2
    if m < M:
        _tile1(C, c0 + m * cm, cm, A, a0 + m * am, ar, aj, am, X, x0, xr, xj, R, N)


@njit(parallel=True, cache=True)
def pack(x, xp, images_first):
    """Copy images into blocks xp (Q, H, W*C, BLOCK), zero beyond the last image.

    x is (B, H, W*C) if `images_first` (the usual memory order), else (H, W*C, B) (how `forward` leaves its output).
    """
    Q, H, N, _ = xp.shape
    B = x.shape[0] if images_first else x.shape[2]
    for part in prange(H * Q):
        i, q = part // Q, part % Q  # row by row, as in `forward`: a thread finds in its own cache what it has packed
        b0 = q * BLOCK
        lanes = min(BLOCK, B - b0)
        n = 0
        if lanes == BLOCK:  # whole registers, as far as they go
            row = (q * H + i) * N
            while images_first and n + LANES <= N:
                for lane in range(0, BLOCK, LANES):
                    _transpose(xp, (row + n) * BLOCK + lane, BLOCK, x, ((b0 + lane) * H + i) * N + n, H * N)
                n += LANES
            while not images_first and n < N:
                for lane in range(0, BLOCK, LANES):
                    _move(xp, (row + n) * BLOCK + lane, x, (i * N + n) * B + b0 + lane)
                n += 1
        for k in range(n, N):
            if images_first:
                for lane in range(lanes):
                    xp[q, i, k, lane] = x[b0 + lane, i, k]
            else:
                for lane in range(lanes):
                    xp[q, i, k, lane] = x[i, k, b0 + lane]
            for lane in range(lanes, BLOCK):
                xp[q, i, k, lane] = 0


@njit(parallel=True, cache=True)
def forward(xp, w, b, y, first, again, B, W, stride, relu, oy0, oy1, ox0, ox1):
    """y[oy, ox, o, first + i] = sum_k w[oy, ox, k, o] x[i, k] + b[oy, ox, o] for i < B, then ReLU if asked.

    The same numbers are written a second time from column `again` on (again = first: only once).

    xp (Q, H, W*C, BLOCK) packed images; w (OH, OW, KH, KW, C, O); b (OH, OW, O); y (OH, OW, O, at least first + B).
    Only the output window [oy0, oy1) x [ox0, ox1) is written.
    """
    Q, H, WC, _ = xp.shape
    _, OW, KH, KW, C, O = w.shape
    for part in prange((oy1 - oy0) * Q):
        oy, q = oy0 + part // Q, part % Q  # block by block: neighbours in a row share most of what they see
        lanes = min(BLOCK, B - q * BLOCK)
        out = aligned(O * BLOCK).reshape(O, BLOCK)
        for ox in range(ox0, ox1):
            for o in range(O):
                for lane in range(BLOCK):
                    out[o, lane] = b[oy, ox, o]
            w0 = (oy * OW + ox) * KH * KW * C * O
            x0 = ((q * H + oy * stride) * W + ox * stride) * C * BLOCK
            _tiles(O, out, 0, BLOCK, w, w0, KW * C * O, O, 1, xp, x0, WC * BLOCK, BLOCK, KH, KW * C)
            if relu:
                for o in range(O):
                    for lane in range(BLOCK):
                        out[o, lane] = max(out[o, lane], np.float32(0))
            for column in range(first, again + 1, max(1, again - first)):
                for o in range(O):
                    if lanes == BLOCK:
                        for lane in range(BLOCK):
                            y[oy, ox, o, column + q * BLOCK + lane] = out[o, lane]
                    else:
                        for lane in range(lanes):
                            y[oy, ox, o, column + q * BLOCK + lane] = out[o, lane]


@njit(parallel=True, cache=True)
def weight_grad(xp, dz, dw, db, W, stride, oy0, oy1, ox0, ox1):
    """dw[oy, ox, k, o] = sum_i x[i, k] dz[oy, ox, o, i] and db = sum_i dz, for the output window.

    xp as in `forward`; dz (OH, OW, O, B). The tile's lanes are LANES neighbours of one output row, (ox, o) running
    together: with 8 channels two columns share every input they both see, and 1 - 1/(KW + 1) of the products are used.
    """
    Q, H, WC, _ = xp.shape
    _, OW, KH, KW, C, O = dw.shape
    B = dz.shape[3]
    most = (((LANES - 1) // O + 1) * stride + KW) * C  # inputs that one chunk of lanes can see in an image row
    for oy in prange(oy0, oy1):
        d = aligned(Q * BLOCK * LANES).reshape(Q * BLOCK, LANES)
        acc = aligned((most + GRAD_ROWS) * LANES)
        total = np.empty(LANES, np.float32)
        d[:] = 0
        for low in range(ox0 * O, ox1 * O, LANES):  # this chunk's lanes are the numbers low .. high-1 of OW*O
            high = min(low + LANES, ox1 * O)
            left, right = low // O, (high - 1) // O  # the columns they touch
            n = ((right - left) * stride + KW) * C  # the inputs these columns see in one image row
            done = 0
            if high - low == LANES:
                done = B // LANES * LANES
                for i in range(0, done, LANES):
                    _transpose(d, i * LANES, LANES, dz, (oy * OW * O + low) * B + i, B)
            else:
                d[:] = 0
            for lane in range(high - low):
                for i in range(done, B):
                    d[i, lane] = dz[oy, (low + lane) // O, (low + lane) % O, i]
            total[:] = 0
            for i in range(0, Q * BLOCK, 4):
                for lane in range(LANES):
                    total[lane] += (d[i, lane] + d[i + 1, lane]) + (d[i + 2, lane] + d[i + 3, lane])
            for lane in range(high - low):
                db[oy, (low + lane) // O, (low + lane) % O] = total[lane]
            for ky in range(KH):
                for ox in range(left, right + 1):  # the gradient's cache lines are fetched while the tiles compute
                    target = ((oy * OW + ox) * KH + ky) * KW * C * O
                    for k in range(0, KW * C * O, 16):
                        _prefetch(dw, target + k)
                x0 = ((oy * stride + ky) * W + left * stride) * C * BLOCK
                block, step = H * WC * BLOCK, BLOCK * LANES
                for m in range(0, n, GRAD_ROWS):  # a last tile may run past the n inputs: its spare rows are not used
                    row = x0 + m * BLOCK
                    _grad_tile(acc, m * LANES, LANES, xp, row, block, 1, BLOCK, d, 0, step, LANES, Q, BLOCK)
                for ox in range(left, right + 1):
                    lane0, lane1 = max(ox * O, low) - low, min(ox * O + O, high) - low
                    source = (ox - left) * stride * C * LANES + lane0
                    target = ((oy * OW + ox) * KH + ky) * KW * C * O + low + lane0 - ox * O
                    for k in range(KW * C):
                        _copy(dw, target + k * O, acc, source + k * LANES, lane1 - lane0)


@njit(parallel=True, cache=True)
def input_grad(dzp, w, dx, OW, stride):
    """dx[iy, ix, c, i] = sum over locations that see (iy, ix) of w[oy, ox, iy - oy*stride, ix - ox*stride, c, o] dz.

    dzp (Q, OH, OW*O, BLOCK) packed; w (OH, OW, KH, KW, C, O); dx (H, W, C, B). Only backpropagation asks for it.
    """
    Q, OH, _, _ = dzp.shape
    _, _, KH, KW, C, O = w.shape
    H, W, _, B = dx.shape
    for part in prange(H * W):
        iy, ix = part // W, part % W
        top, bottom = max(0, (iy - KH + stride) // stride), min(OH - 1, iy // stride)
        left, right = max(0, (ix - KW + stride) // stride), min(OW - 1, ix // stride)
        out = aligned(C * BLOCK).reshape(C, BLOCK)
        for q in range(Q):
            out[:] = 0
            for oy in range(top, bottom + 1):
                w0 = (((oy * OW + left) * KH + iy - oy * stride) * KW + ix - left * stride) * C * O
                z0 = ((q * OH + oy) * OW + left) * O * BLOCK
                _tiles(
                    C,
                    out,
                    0,
                    BLOCK,
                    w,
                    w0,
                    (KH * KW - stride) * C * O,
                    1,
                    O,
                    dzp,
                    z0,
                    O * BLOCK,
                    BLOCK,
                    right - left + 1,
                    O,
                )
            lanes = min(BLOCK, B - q * BLOCK)
            for c in range(C):
                for lane in range(lanes):
                    dx[iy, ix, c, q * BLOCK + lane] = out[c, lane]


@njit(parallel=True, cache=True)
def scaled_square_sums(a, b, scale, out, h, w):
    """out[k, i] = sum over units of ReLU(a[unit, i] scale[k, i] + b[unit])^2, leaving out the h x w top-left locations.

    a (OH, OW, O, B), b (OH, OW, O), scale and out (K, B).
    """
    OH, OW, O, B = a.shape
    for k in prange(len(scale)):
        total = np.zeros(B, np.float32)
        for oy in range(OH):
            for ox in range(w if oy < h else 0, OW):
                for o in range(O):
                    for i in range(B):
                        z = max(a[oy, ox, o, i] * scale[k, i] + b[oy, ox, o], np.float32(0))
                        total[i] += z * z
        out[k] = total


@njit(parallel=True, cache=True)
def relu_grad(dy, y, dz):
    """dz = dy where y > 0, else 0. Flat float32 arrays."""
    for i in prange(y.size):
        dz[i] = dy[i] if y[i] > 0 else np.float32(0)


@njit(parallel=True, cache=True)
def relu_grad_pairs(dy, y, dz):
    """dz[:, i] = relu_grad of rows i and B + i, added: dy and y (units, 2B), dz (units, B)."""
    zero = np.float32(0)
    B = dz.shape[1]
    for unit in prange(len(dz)):
        for i in range(B):
            first = dy[unit, i] if y[unit, i] > 0 else zero
            second = dy[unit, B + i] if y[unit, B + i] > 0 else zero
            dz[unit, i] = first + second


@njit(parallel=True, cache=True)
def scale_rows(y, factor, out):
    """out[:, i] = factor[i] y[:, i]: y and out (units, B) with the batch innermost, factor (B,)."""
    for unit in prange(len(y)):
        for i in range(len(factor)):
            out[unit, i] = factor[i] * y[unit, i]


@njit(parallel=True, cache=True)
def bias_relu(z, b):
    """z <- ReLU(z + b), in place: z (B, n), b (n,)."""
    zero = np.float32(0)
    for i in prange(len(z)):
        for j in range(z.shape[1]):
            z[i, j] = max(z[i, j] + b[j], zero)


@njit(parallel=True, cache=True)
def row_squares(y, out):
    """out[i] = sum over j of y[i, j]^2: y (B, n)."""
    n = y.shape[1]
    whole = n // LANES * LANES
    for i in prange(len(y)):
        sums = aligned(LANES)
        sums[:] = 0
        _square_lanes(y, i * n, whole, sums)
        for j in range(whole, n):
            sums[j - whole] += y[i, j] * y[i, j]
        out[i] = _lane_sum(sums, 0)


@njit(parallel=True, cache=True)
def normalise_rows(y, eps, out):
    """out[i] = y[i] / sqrt(mean of y[i]^2 + eps), while the row is in the cache: y and out (B, n)."""
    n = y.shape[1]
    whole = n // LANES * LANES
    for i in prange(len(y)):
        sums = aligned(LANES)
        sums[:] = 0
        _square_lanes(y, i * n, whole, sums)
        for j in range(whole, n):
            sums[j - whole] += y[i, j] * y[i, j]
        factor = np.float32(1) / np.sqrt(_lane_sum(sums, 0) / np.float32(n) + eps)
        for j in range(n):
            out[i, j] = factor * y[i, j]


@njit(parallel=True, cache=True)
def scale_each_row(y, factor, out):
    """out[i] = factor[i] y[i]: y and out (B, n), factor (B,)."""
    for i in prange(len(y)):
        for j in range(y.shape[1]):
            out[i, j] = factor[i] * y[i, j]


@njit(parallel=True, cache=True)
def relu_grad_rows(dy, y, dz):
    """dz = dy where y > 0, else 0: dy, y, dz (B, n)."""
    zero = np.float32(0)
    for i in prange(len(y)):
        for j in range(y.shape[1]):
            dz[i, j] = dy[i, j] if y[i, j] > zero else zero


@njit(inline="always")
def _adam_one(w, m, v, i, g, step_size, beta1, beta2, root, eps, decay):
    one, tiny = np.float32(1), np.float32(1e-30)
    m_i = beta1 * m[i] + (one - beta1) * g
    v_i = beta2 * v[i] + (one - beta2) * g * g
    # The averages of a unit that has died shrink for ever; below 1e-38 every operation on them takes a hundred
    # cycles. Next to eps, 1e-30 is nothing: no weight changes by a bit.
    m_i = np.float32(0) if abs(m_i) <= tiny else m_i  # NaN stays NaN
    v_i = np.float32(0) if v_i <= tiny else v_i
    m[i], v[i] = m_i, v_i
    w[i] = (one - decay) * w[i] - step_size * m_i / (np.sqrt(v_i) * root + eps)


@njit(parallel=True, cache=True)
def adam(w, g, m, v, step_size, beta1, beta2, root, eps, decay):
    """One pass over memory: m, v <- averages of g, g^2; w <- (1 - decay) w - step_size m / (sqrt(v) root + eps).

    All arrays flat float32, updated in place; step_size = lr / (1 - beta1^t), root = 1 / sqrt(1 - beta2^t).
    """
    for i in prange(w.size):
        _adam_one(w, m, v, i, g[i], step_size, beta1, beta2, root, eps, decay)


@njit(inline="always")
def _momentum_one(w, m, i, g, lr, beta, decay):
    m_i = beta * m[i] + g + decay * w[i]
    m_i = np.float32(0) if abs(m_i) <= np.float32(1e-30) else m_i  # see `_adam_one`
    m[i] = m_i
    w[i] -= lr * m_i


@njit(parallel=True, cache=True)
def momentum(w, g, m, lr, beta, decay):
    """One pass over memory: m <- beta m + g + decay w; w <- w - lr m. Flat float32 arrays, in place."""
    for i in prange(w.size):
        _momentum_one(w, m, i, g[i], lr, beta, decay)


@njit(parallel=True, cache=True)
def _panels(dz, rows):
    """dz (B, N) -> (panels, rows, PANEL), its columns in panels, zero beyond the last one: each is read in one go."""
    B, N = dz.shape
    out = np.empty(((N + PANEL - 1) // PANEL, rows, PANEL), np.float32)
    for p in prange(len(out)):
        lanes = min(PANEL, N - p * PANEL)
        for i in range(B):
            for lane in range(lanes):
                out[p, i, lane] = dz[i, p * PANEL + lane]
            for lane in range(lanes, PANEL):
                out[p, i, lane] = 0
        out[p, B:] = 0
    return out


@njit(parallel=True, cache=True)
def _strips(x, rows):
    """x (B, K) -> (strips, rows, DENSE_ROWS), its columns in strips, zero beyond the last one: as `_panels`."""
    B, K = x.shape
    out = np.empty(((K + DENSE_ROWS - 1) // DENSE_ROWS, rows, DENSE_ROWS), np.float32)
    for s in prange(len(out)):
        n = min(DENSE_ROWS, K - s * DENSE_ROWS)
        for i in range(B):
            for r in range(n):
                out[s, i, r] = x[i, s * DENSE_ROWS + r]
            for r in range(n, DENSE_ROWS):
                out[s, i, r] = 0
        out[s, B:] = 0
    return out


@njit
def _lines(places, rows, n, turns):
    """The cache lines under a panel of arrays with n columns, dealt out to `turns` turns -> addresses (turns, each).

    places: addresses of the arrays' first elements. What is left over in the last turn repeats the last line.
    """
    width, count = PANEL // 16, len(places) * rows * (PANEL // 16)
    each = (count + turns - 1) // turns
    out = np.empty(turns * each, np.int64)
    for i in range(len(out)):
        row = min(i, count - 1) // width
        out[i] = places[row % len(places)] + 4 * (row // len(places) * n + min(i, count - 1) % width * 16)
    return out.reshape(turns, each)


@njit(parallel=True, cache=True)
def dense_product(x, w, out):
    """out = x w: x (B, K), w (K, N) contiguous, N >= PANEL, out (B, N) contiguous; for batches, not for thousands.

    BLAS packs all of w before it multiplies, which at a hundred rows is a third of its time. Here a panel of w is
    packed when it is needed, and has been asked for while the one before it was multiplied with.
    """
    (B, K), N = x.shape, w.shape[1]
    strips, turns = (B + FORWARD_ROWS - 1) // FORWARD_ROWS, (K + TURN - 1) // TURN
    depth, panels = turns * TURN, (N + PANEL - 1) // PANEL
    xt = np.empty((strips, depth * FORWARD_ROWS), np.float32)
    for s in prange(strips):
        if (s + 1) * FORWARD_ROWS > B or depth > K:
            xt[s] = 0
        for r in range(min(FORWARD_ROWS, B - s * FORWARD_ROWS)):
            for k in range(K):
                xt[s, k * FORWARD_ROWS + r] = x[s * FORWARD_ROWS + r, k]
    flat_x, flat_w, flat_out = xt.ravel(), w.ravel(), out.ravel()
    lines = _lines(np.array([w.ctypes.data]), K, N, strips * turns)
    for p in prange(panels):
        n0 = min(p * PANEL, N - PANEL)  # the last panel computes some columns again
        block, g = aligned(depth * PANEL), aligned(FORWARD_ROWS * PANEL)
        for k in range(K):
            for lane in range(0, PANEL, LANES):
                _move(block, k * PANEL + lane, flat_w, k * N + n0 + lane)
        block[K * PANEL :] = 0
        for s in range(strips):
            _forward_tile(
                *(g, 0, PANEL),
                *(flat_x, s * depth * FORWARD_ROWS, TURN * FORWARD_ROWS, FORWARD_ROWS, 1),
                *(block, 0, TURN * PANEL, PANEL),
                *(turns, TURN, lines[s * turns : (s + 1) * turns], 4 * min(n0 + PANEL, N - PANEL)),
            )
            for r in range(min(FORWARD_ROWS, B - s * FORWARD_ROWS)):
                for lane in range(p * PANEL - n0, PANEL, LANES):
                    at = (s * FORWARD_ROWS + r) * N + n0 + lane
                    _copy(flat_out, at, g, r * PANEL + lane, min(LANES, PANEL - lane))


@njit(parallel=True, cache=True)
def product_momentum(x, dz, w, m, lr, beta, decay):
    """`momentum` with the gradient x^T dz, used up strip by strip as it is computed: it is never stored.

    x (B, K), dz (B, N); w and m (K, N) contiguous. A strip's rows of w and m are read and written from end to end, as
    the memory likes it best, and have been asked for while the strip was multiplied.
    """
    (B, K), N = x.shape, dz.shape[1]
    turns = max(1, (B + TURN - 1) // TURN)
    panels, strips = _panels(dz, turns * TURN), _strips(x, turns * TURN)
    lines = _lines(np.array([w.ctypes.data, m.ctypes.data]), DENSE_ROWS, N, turns)
    flat_x, flat_p = strips.ravel(), panels.ravel()
    flat_w, flat_m = w.ravel(), m.ravel()
    many = max(1, NEAR // (turns * TURN * PANEL))  # panels that stay near while all strips meet them
    chunks = (len(panels) + many - 1) // many
    for part in prange(chunks * len(strips)):
        first, s = part // len(strips) * many, part % len(strips)
        last = min(len(panels), first + many)
        width = (last - first) * PANEL
        g = aligned(DENSE_ROWS * width)
        for p in range(first, last):
            _product_tile(
                *(g, (p - first) * PANEL, width),
                *(flat_x, s * turns * TURN * DENSE_ROWS, TURN * DENSE_ROWS, DENSE_ROWS, 1),
                *(flat_p, p * turns * TURN * PANEL, TURN * PANEL, PANEL),
                *(turns, TURN, lines, 4 * (s * DENSE_ROWS * N + p * PANEL)),  # the weights under this panel
            )
        columns = min(width, N - first * PANEL)
        for r in range(min(DENSE_ROWS, K - s * DENSE_ROWS)):
            at, whole = (s * DENSE_ROWS + r) * N + first * PANEL, columns // LANES * LANES
            for j in range(0, whole, LANES):
                _momentum_lanes(flat_w, flat_m, at + j, g, r * width + j, lr, beta, decay)
            for j in range(whole, columns):
                _momentum_one(flat_w, flat_m, at + j, g[r * width + j], lr, beta, decay)


@njit(parallel=True, cache=True)
def product_adam(x, dz, w, m, v, step_size, beta1, beta2, root, eps, decay):
    """`adam` with the gradient x^T dz, as `product_momentum` has it."""
    (B, K), N = x.shape, dz.shape[1]
    turns = max(1, (B + TURN - 1) // TURN)
    panels, strips = _panels(dz, turns * TURN), _strips(x, turns * TURN)
    lines = _lines(np.array([w.ctypes.data, m.ctypes.data, v.ctypes.data]), DENSE_ROWS, N, turns)
    flat_x, flat_p = strips.ravel(), panels.ravel()
    flat_w, flat_m, flat_v = w.ravel(), m.ravel(), v.ravel()
    many = max(1, NEAR // (turns * TURN * PANEL))  # panels that stay near while all strips meet them
    chunks = (len(panels) + many - 1) // many
    for part in prange(chunks * len(strips)):
        first, s = part // len(strips) * many, part % len(strips)
        last = min(len(panels), first + many)
        width = (last - first) * PANEL
        g = aligned(DENSE_ROWS * width)
        for p in range(first, last):
            _product_tile(
                *(g, (p - first) * PANEL, width),
                *(flat_x, s * turns * TURN * DENSE_ROWS, TURN * DENSE_ROWS, DENSE_ROWS, 1),
                *(flat_p, p * turns * TURN * PANEL, TURN * PANEL, PANEL),
                *(turns, TURN, lines, 4 * (s * DENSE_ROWS * N + p * PANEL)),  # the weights under this panel
            )
        columns = min(width, N - first * PANEL)
        for r in range(min(DENSE_ROWS, K - s * DENSE_ROWS)):
            at, whole = (s * DENSE_ROWS + r) * N + first * PANEL, columns // LANES * LANES
            for j in range(0, whole, LANES):
                i, k = at + j, r * width + j
                _adam_lanes(flat_w, flat_m, flat_v, i, g, k, step_size, beta1, beta2, root, eps, decay)
            for j in range(whole, columns):
                i, g_i = at + j, g[r * width + j]
                _adam_one(flat_w, flat_m, flat_v, i, g_i, step_size, beta1, beta2, root, eps, decay)


@njit(parallel=True, cache=True)
def nonzeros(x):
    """What of x (B, K) is not zero, in pieces of DEPTH columns: values, places within the piece, how many of them.

    values and places (pieces, B, DEPTH), filled from the left; counts (pieces, B).
    """
    B, K = x.shape
    pieces = (K + DEPTH - 1) // DEPTH
    values, places = np.empty((pieces, B, DEPTH), np.float32), np.empty((pieces, B, DEPTH), np.uint8)
    counts = np.empty((pieces, B), np.int64)
    for b in prange(B):
        for d in range(pieces):
            n = 0
            for k in range(min(DEPTH, K - d * DEPTH)):
                value = x[b, d * DEPTH + k]
                values[d, b, n], places[d, b, n] = value, k
                n += value != 0  # no branch: where the zeros are cannot be foreseen
            counts[d, b] = n
    return values, places, counts


@njit(parallel=True, cache=True)
def sparse_product(values, places, counts, w, out):
    """out = x w for x (B, K) from `nonzeros`, w (K, N) contiguous, N >= SPAN, out (B, N).

    A block of w, DEPTH x SPAN, is copied into the first-level cache, and every row of x adds up its rows of it.
    """
    (pieces, B), (K, N) = counts.shape, w.shape
    flat_w, flat_out, flat_v, flat_p = w.ravel(), out.ravel(), values.ravel(), places.ravel()
    lines = DEPTH * SPAN // 16
    for p in prange((N + SPAN - 1) // SPAN):
        n0 = min(p * SPAN, N - SPAN)  # the last panel computes some columns again
        acc, block = aligned(TALL * SPAN), aligned(DEPTH * SPAN)
        for b0 in range(0, B, TALL):
            rows = min(TALL, B - b0)
            acc[:] = 0
            each = (lines + rows - 1) // rows
            for d in range(pieces):
                k0 = d * DEPTH
                for r in range(min(DEPTH, K - k0)):
                    for lane in range(0, SPAN, LANES):
                        _move(block, r * SPAN + lane, flat_w, (k0 + r) * N + n0 + lane)
                for b in range(rows):
                    for line in range(b * each, min(lines, (b + 1) * each)):  # of the next block, while this one works
                        r = DEPTH + line // (SPAN // 16)
                        if k0 + r < K:
                            _prefetch(flat_w, (k0 + r) * N + n0 + line % (SPAN // 16) * 16)
                    at = d * B + b0 + b
                    _add_rows(acc, b * SPAN, flat_v, flat_p, at * DEPTH, counts[d, b0 + b], block)
            for b in range(rows):
                for lane in range(p * SPAN - n0, SPAN, LANES):
                    _copy(flat_out, (b0 + b) * N + n0 + lane, acc, b * SPAN + lane, min(LANES, SPAN - lane))


@njit(parallel=True, cache=True)
def label_goodness(a, u, g):
    """g[oy, ox, k, i] = mean over o of ReLU(a[oy, ox, o, i] + u[oy, ox, k, o])^2.

    a (OH, OW, O, B), u (OH, OW, K, O), g (OH, OW, K, B).
    """
    OH, OW, O, B = a.shape
    share = np.float32(1 / O)
    for oy in prange(OH):
        for ox in range(OW):
            for k in range(u.shape[2]):
                for i in range(B):
                    g[oy, ox, k, i] = 0
                for o in range(O):
                    for i in range(B):
                        z = max(a[oy, ox, o, i] + u[oy, ox, k, o], np.float32(0))
                        g[oy, ox, k, i] += z * z
                for i in range(B):
                    g[oy, ox, k, i] *= share


@njit(parallel=True, cache=True)
def label_error(a, u, c, pull, da, du):
    """d = c[place, k, i] ReLU(a[oy, ox, o, i] + u[oy, ox, k, o]): da = pull + its sum over k, du = its sum over i.

    a and da (OH, OW, O, B), u and du (OH, OW, K, O), c (OH*OW, K, B), or (1, K, B) for the same c everywhere,
    pull (OH, OW, O).
    """
    OH, OW, O, B = a.shape
    K = u.shape[2]
    whole = B // LANES * LANES
    for oy in prange(OH):
        sums = aligned(K * LANES)
        for ox in range(OW):
            place = (oy * OW + ox) % len(c)
            for o in range(O):
                sums[:] = 0
                unit = (oy * OW + ox) * O + o
                label = (oy * OW + ox) * K * O + o
                for i in range(0, whole, LANES):
                    at = unit * B + i
                    _label_lanes(a, at, u, label, O, c, place * K * B + i, B, pull, unit, da, at, sums, K)
                for i in range(whole, B):
                    total = pull[oy, ox, o]
                    for k in range(K):
                        d = c[place, k, i] * max(a[oy, ox, o, i] + u[oy, ox, k, o], np.float32(0))
                        total += d
                        sums[k * LANES + i - whole] += d
                    da[oy, ox, o, i] = total
                for k in range(K):
                    du[oy, ox, k, o] = _lane_sum(sums, k * LANES)


@njit(parallel=True, cache=True)
def add_labels(a, u, labels, y):
    """y[oy, ox, o, r] = ReLU(a[oy, ox, o, r mod B] + u[oy, ox, labels[r], o]): a (OH, OW, O, B), y (OH, OW, O, n*B)."""
    OH, OW, O, B = a.shape
    for oy in prange(OH):
        for ox in range(OW):
            for o in range(O):
                for first in range(0, len(labels), B):
                    for i in range(B):
                        z = a[oy, ox, o, i] + u[oy, ox, labels[first + i], o]
                        y[oy, ox, o, first + i] = max(z, np.float32(0))


@njit(parallel=True, cache=True)
def add_labels_grad(dy, y, labels, pull, da, du):
    """dz = pull + (dy where y > 0, else 0); its rows of one image are added up in da, those of one label in du.

    dy and y (OH, OW, O, n*B), pull (OH, OW, O), da (OH, OW, O, B), du (OH, OW, K, O).
    """
    OH, OW, O, B = da.shape
    for oy in prange(OH):
        for ox in range(OW):
            du[oy, ox] = 0
            for o in range(O):
                da[oy, ox, o] = 0
                for first in range(0, len(labels), B):
                    for i in range(B):
                        dz = dy[oy, ox, o, first + i] if y[oy, ox, o, first + i] > 0 else np.float32(0)
                        dz += pull[oy, ox, o]
                        da[oy, ox, o, i] += dz
                        du[oy, ox, labels[first + i], o] += dz
