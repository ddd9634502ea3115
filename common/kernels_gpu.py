"""The small loops of dense layers, losses and optimisers on CuPy float32 arrays: one kernel where formulas are many.

At these sizes Python takes longer to start an operation than a GPU to do it, so what counts is how many there are.
Functions that common/kernels_cpu.py has too do the same, in the same place. Nothing here waits for the GPU.
"""

import ctypes
import functools
import sys

import cupy as cp
import numpy as np

_bias_relu = cp.ElementwiseKernel(
    "T z, T b", "T y", "T s = z + b; y = s <= T(0) ? T(0) : s", "ff_bias_relu"
)  # what is not a number stays one
_relu_grad = cp.ElementwiseKernel("T dy, T y", "T dz", "dz = y > T(0) ? dy : T(0)", "ff_relu_grad")
_scale = cp.ElementwiseKernel("T y, T factor", "T out", "out = factor * y", "ff_scale")
_squares = cp.ReductionKernel("T y", "T g", "y * y", "a + b", "g = a", "0", "ff_squares")
_momentum = cp.ElementwiseKernel(
    "T g, T lr, T beta, T decay", "T w, T m", "m = beta * m + g + decay * w; w -= lr * m", "ff_momentum"
)
_adam = cp.ElementwiseKernel(
    "T g, T step_size, T beta1, T beta2, T root, T eps, T decay",
    "T w, T m, T v",
    """m = beta1 * m + (T(1) - beta1) * g;
       v = beta2 * v + (T(1) - beta2) * g * g;
       w = (T(1) - decay) * w - step_size * m / (sqrt(v) * root + eps);""",
    "ff_adam",
)
_threshold = cp.ElementwiseKernel(
    "T g, T t, T theta, T beta, T share",
    "T loss, T dg",
    """T margin = -t * (beta * (g - theta));
       T e = exp(-abs(margin));
       loss = max(margin, T(0)) + log1p(e);
       dg = -t * (beta * ((margin >= T(0) ? T(1) : e) / (T(1) + e))) * share;""",
    "ff_threshold",
)
_cross_entropy = cp.ElementwiseKernel(
    "raw T logits, int64 label, int64 K, T share",
    "T loss, raw T d",
    """const long long first = i * K;
       T most = logits[first], sum = T(0);
       for (int k = 1; k < K; ++k) most = max(most, logits[first + k]);
       for (int k = 0; k < K; ++k) sum += exp(logits[first + k] - most);
       const T log_sum = log(sum);
       for (int k = 0; k < K; ++k)
           d[first + k] = (exp(logits[first + k] - most - log_sum) - (k == label ? T(1) : T(0))) * share;
       loss = log_sum - (logits[first + label] - most);""",
    "ff_cross_entropy",
)
_shift = cp.ElementwiseKernel(
    "raw T images, raw int64 moved, int64 B, int64 H, int64 W, int64 C, int64 most",
    "T out",
    """const long long c = i % C, w = i / C % W, h = i / (C * W) % H, b = i / (C * W * H);
       const long long row = h + moved[b] - most, column = w + moved[B + b] - most;
       const bool inside = row >= 0 && row < H && column >= 0 && column < W;
       out = inside ? images[((b * H + row) * W + column) * C + c] : T(0);""",
    "ff_shift",
)
_take = cp.ElementwiseKernel(
    "raw T rows, raw int64 i_row", "T row", "row = rows[i_row[0] * _ind.size() + i]", "ff_take"
)
_put = cp.ElementwiseKernel("T row, raw int64 i_row", "raw T rows", "rows[i_row[0] * _ind.size() + i] = row", "ff_put")
_normalise = cp.RawKernel(
    r"""extern "C" __global__ void ff_normalise(const float* y, const int n, const float eps, float* out) {
        // One block of 256 threads for each row.
        __shared__ float parts[8];
        y += (size_t)n * blockIdx.x;
        out += (size_t)n * blockIdx.x;
        float sum = 0;
        for (int j = threadIdx.x; j < n; j += 256) sum += y[j] * y[j];
        for (int lane = 16; lane; lane /= 2) sum += __shfl_xor_sync(0xffffffff, sum, lane);
        if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
        __syncthreads();
        sum = 0;
        for (int p = 0; p < 8; ++p) sum += parts[p];
        const float factor = 1 / sqrtf(sum / n + eps);
        for (int j = threadIdx.x; j < n; j += 256) out[j] = factor * y[j];
    }""",
    "ff_normalise",
)


_IMAGES = r"""
extern "C" {
// One block for each output pixel.
__global__ void ff_im2col(const float* x, const int H, const int W, const int C, const int OH, const int OW,
                          const int k, const int stride, const int pad, float* out) {
    const int ox = blockIdx.x % OW, oy = blockIdx.x / OW % OH, b = blockIdx.x / (OW * OH), K = k * k * C;
    out += (size_t)blockIdx.x * K;
    for (int j = threadIdx.x; j < K; j += blockDim.x) {
        const int c = j % C, v = j / C % k, u = j / (C * k), iy = oy * stride + u - pad, ix = ox * stride + v - pad;
        const bool inside = iy >= 0 && iy < H && ix >= 0 && ix < W;
        out[j] = inside ? x[(((size_t)b * H + iy) * W + ix) * C + c] : 0.0f;
    }
}
// One block for each input pixel.
__global__ void ff_col2im(const float* columns, const int H, const int W, const int C, const int OH, const int OW,
                          const int k, const int stride, const int pad, float* out) {
    const int ix = blockIdx.x % W, iy = blockIdx.x / W % H, b = blockIdx.x / (W * H), K = k * k * C;
    out += (size_t)blockIdx.x * C;
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        float sum = 0;
        for (int u = 0; u < k; ++u)
            for (int v = 0; v < k; ++v) {
                const int sy = iy + pad - u, sx = ix + pad - v;
                if (sy < 0 || sx < 0 || sy % stride || sx % stride || sy / stride >= OH || sx / stride >= OW) continue;
                sum += columns[(((size_t)b * OH + sy / stride) * OW + sx / stride) * K + (u * k + v) * C + c];
            }
        out[c] = sum;
    }
}
// One block for each part of an image.
__global__ void ff_part_moments(const float* z, const int H, const int W, const int C, const int h, const int w,
                                float* squares, float* means) {
    const int j = blockIdx.x % w, i = blockIdx.x / w % h, b = blockIdx.x / (w * h);
    const int y0 = i * H / h, y1 = (i + 1) * H / h, x0 = j * W / w, x1 = (j + 1) * W / w;
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        float square = 0, sum = 0;
        for (int y = y0; y < y1; ++y)
            for (int x = x0; x < x1; ++x) {
                const float value = z[(((size_t)b * H + y) * W + x) * C + c];
                square += value * value;
                sum += value;
            }
        squares[(size_t)blockIdx.x * C + c] = square / ((y1 - y0) * (x1 - x0));
        means[(size_t)blockIdx.x * C + c] = sum / ((y1 - y0) * (x1 - x0));
    }
}
// One block for each pixel.
__global__ void ff_spread(const float* d, const float* y, const int H, const int W, const int C, const int h,
                          const int w, const int mode, float* dz) {
    const int j = blockIdx.x % W, i = blockIdx.x / W % H, b = blockIdx.x / (W * H);
    d += (((size_t)b * h + ((i + 1) * h - 1) / H) * w + ((j + 1) * w - 1) / W) * C;
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        const size_t at = (size_t)blockIdx.x * C + c;
        dz[at] = mode == 2 ? d[c] * y[at] : mode == 0 || y[at] > 0 ? d[c] : 0.0f;
    }
}

// The sum of one number of each of 256 threads, in all of them.
__device__ float ff_sum(float value) {
    __shared__ float parts[8];
    for (int lane = 16; lane; lane /= 2) value += __shfl_xor_sync(0xffffffff, value, lane);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    value = 0;
    for (int p = 0; p < 8; ++p) value += parts[p];
    return value;
}
// layers.coins
__device__ bool ff_keep(const unsigned place, const unsigned key, const unsigned least) {
    unsigned x = place * 0x9E3779B9u ^ key;
    x = (x ^ x >> 16) * 0x85EBCA6Bu;
    x = (x ^ x >> 13) * 0xC2B2AE35u;
    return (x ^ x >> 16) >= least;
}
// row = the mean over a window, or the root of the mean square (kind 1), or the maximum (2), less its mean over
// channels if centre, over the root of its mean square: that root.
__device__ float ff_row(const float* z, const int H, const int W, const int C, const int OH, const int OW,
                        const int side, const int kind, const int norm, const int centre, const float eps, float* row,
                        float* pooled) {
    const int ox = blockIdx.x % OW, oy = blockIdx.x / OW % OH, b = blockIdx.x / (OW * OH);
    float sum = 0;
    for (int c = threadIdx.x; c < C; c += 256) {
        float value = kind == 2 ? z[(((size_t)b * H + oy * side) * W + ox * side) * C + c] : 0;
        for (int y = oy * side; y < (oy + 1) * side; ++y)
            for (int x = ox * side; x < (ox + 1) * side; ++x) {
                const float each = z[(((size_t)b * H + y) * W + x) * C + c];
                value = kind == 2 ? fmaxf(value, each) : value + (kind == 1 && side > 1 ? each * each : each);
            }
        if (kind == 0) value /= side * side;
        if (kind == 1 && side > 1) value = sqrtf(value / (side * side) + 1e-8f);
        row[c] = value;
        if (pooled) pooled[c] = value;
        sum += value;
    }
    if (!norm) return 1;
    const float mean = centre ? ff_sum(sum) / C : 0;
    float square = 0;
    for (int c = threadIdx.x; c < C; c += 256) {
        row[c] -= mean;
        square += row[c] * row[c];
    }
    const float factor = 1 / sqrtf(ff_sum(square) / C + eps);
    for (int c = threadIdx.x; c < C; c += 256) row[c] *= factor;
    return factor;
}
// One block of 256 threads for each output pixel; every thread uses only those of row's numbers that it wrote.
__global__ void ff_hand_on(const float* z, const int H, const int W, const int C, const int OH, const int OW,
                           const int side, const int kind, const int norm, const int centre, const float eps,
                           const unsigned* key, const unsigned least, const float grow, float* h) {
    extern __shared__ float row[];
    ff_row(z, H, W, C, OH, OW, side, kind, norm, centre, eps, row, 0);
    for (int c = threadIdx.x; c < C; c += 256) {
        const size_t at = (size_t)blockIdx.x * C + c;
        h[at] = !least ? row[c] : ff_keep((unsigned)at, *key, least) ? row[c] * grow : 0.0f;
    }
}
__global__ void ff_hand_back(const float* dh, const float* z, const int H, const int W, const int C, const int OH,
                             const int OW, const int side, const int kind, const int norm, const int centre,
                             const float eps, const unsigned* key, const unsigned least, const float grow, float* dz) {
    extern __shared__ float row[];
    float *d = row + C, *pooled = row + 2 * C;
    const float factor = ff_row(z, H, W, C, OH, OW, side, kind, norm, centre, eps, row, pooled);
    float along = 0, sum = 0;
    for (int c = threadIdx.x; c < C; c += 256) {
        const size_t at = (size_t)blockIdx.x * C + c;
        d[c] = !least ? dh[at] : ff_keep((unsigned)at, *key, least) ? dh[at] * grow : 0.0f;
        along += d[c] * row[c];
        sum += d[c];
    }
    if (norm) {
        along = ff_sum(along) / C;
        sum = centre ? ff_sum(sum) / C : 0;
    }
    const int ox = blockIdx.x % OW, oy = blockIdx.x / OW % OH, b = blockIdx.x / (OW * OH);
    for (int c = threadIdx.x; c < C; c += 256) {
        const float value = norm ? (d[c] - sum - row[c] * along) * factor : d[c], share = value / (side * side);
        for (int y = oy * side; y < (oy + 1) * side; ++y)
            for (int x = ox * side; x < (ox + 1) * side; ++x) {
                const size_t at = (((size_t)b * H + y) * W + x) * C + c;
                dz[at] = side == 1 ? value : kind == 0 ? share : kind == 1 ? share / pooled[c] * z[at]
                         : z[at] == pooled[c] ? value : 0.0f;
            }
    }
}
}
"""
_im2col, _col2im, _part_moments, _spread, _hand_on, _hand_back = (
    cp.RawKernel(_IMAGES, f"ff_{name}") for name in "im2col col2im part_moments spread hand_on hand_back".split()
)


def bias_relu(z, b):
    """z <- ReLU(z + b), in place: z (B, n), b (n,)."""
    _bias_relu(z, b, z)


def row_squares(y, out):
    """out[i] = sum over j of y[i, j]^2: y (B, n)."""
    _squares(y, out, axis=1)


def scale_each_row(y, factor, out):
    """out[i] = factor[i] y[i]: y and out (B, n), factor (B,)."""
    _scale(y, factor[:, None], out)


def relu_grad_rows(dy, y, dz):
    """dz = dy where y > 0, else 0: dy, y, dz (B, n)."""
    _relu_grad(dy, y, dz)


def momentum(w, g, m, lr, beta, decay):
    """One pass over memory: m <- beta m + g + decay w; w <- w - lr m. Flat float32 arrays, in place.

    lr: a number, or an array () on the GPU.
    """
    _momentum(g, lr, beta, decay, w, m)


def adam(w, g, m, v, step_size, beta1, beta2, root, eps, decay):
    """One pass over memory: m, v <- averages of g, g^2; w <- (1 - decay) w - step_size m / (sqrt(v) root + eps)."""
    _adam(g, step_size, beta1, beta2, root, eps, decay, w, m, v)


def normalise_rows(y, eps, out):
    """out[i] = y[i] / sqrt(mean of y[i]^2 + eps): y and out (B, n), contiguous."""
    _normalise((len(y),), (256,), (y, np.int32(y.shape[1]), eps, out))


def threshold_loss(g, t, theta, beta):
    """`goodness.threshold_loss`."""
    loss, dg = _threshold(g, t, np.float32(theta), np.float32(beta), np.float32(1 / len(g)))
    return loss.mean(), dg


def softmax_cross_entropy(logits, labels):
    """`goodness.softmax_cross_entropy`: logits (B, K), contiguous."""
    d = cp.empty_like(logits)
    loss = cp.empty(len(labels), np.float32)
    _cross_entropy(logits, labels, logits.shape[1], np.float32(1 / len(labels)), loss, d)
    return loss.mean(), d


def shift(images, moved, most):
    """`augment.shift` by moved (2, B) less `most`: images (B, H, W, C), contiguous."""
    out = cp.empty_like(images)
    return _shift(images, moved, *images.shape, most, out)


def matmul(x, W):
    """x W by cuBLAS in float32: x (B, K), W (K, N), each contiguous or the transpose of what is -> (B, N).

    The same as x @ W, but CuPy lets no cuBLAS call into a CUDA graph.
    """
    (x, x_turned, x_width), (W, W_turned, W_width) = _as_stored(x), _as_stored(W)
    (B, K), N = x.shape, W.shape[1]
    out = cp.empty((B, N), np.float32)
    if out.size and K:  # cuBLAS counts columns first: what it sees is out^T = W^T x^T
        one, zero = ctypes.c_float(1), ctypes.c_float(0)
        W_at, x_at, out_at = (ctypes.c_void_p(a.data.ptr) for a in (W, x, out))
        sizes = W_turned, x_turned, N, B, K
        blas, handle, _ = _blas(cp.cuda.get_current_stream().ptr, _math["mode"])
        _ok(blas.cublasSgemm_v2(handle, *sizes, _at(one), W_at, W_width, x_at, x_width, _at(zero), out_at, N))
    else:
        out.fill(0)
    return out


_at, _math = ctypes.byref, {"mode": 0}


def _as_stored(x):
    """x, whether its rows are columns in memory (0 or 1), and how long what lies together in memory is."""
    if x.flags.c_contiguous:
        return x, 0, x.shape[1]
    if x.flags.f_contiguous:
        return x, 1, x.shape[0]
    return cp.ascontiguousarray(x), 0, x.shape[1]


@functools.cache
def _blas(stream, mode):
    """The cuBLAS library that CuPy has loaded, a handle for this stream and way to multiply, and its workspace.

    Without a workspace of its own it would allocate one, also in a graph.
    """
    cp.ones((2, 2), np.float32) @ cp.ones((2, 2), np.float32)  # CuPy loads it: its name is enough from now on
    version = cp.cuda.runtime.runtimeGetVersion() // 1000
    blas = ctypes.CDLL(f"cublas64_{version}.dll" if sys.platform == "win32" else f"libcublas.so.{version}")
    handle, size = ctypes.c_void_p(), 32 << 20
    workspace = cp.cuda.alloc(size)
    _ok(blas.cublasCreate_v2(_at(handle)))
    _ok(blas.cublasSetStream_v2(handle, ctypes.c_void_p(stream)))
    _ok(blas.cublasSetMathMode(handle, mode))
    _ok(blas.cublasSetWorkspace_v2(handle, ctypes.c_void_p(workspace.ptr), ctypes.c_size_t(size)))
    return blas, handle, workspace


def _ok(status):
    if status:
        raise RuntimeError(f"cuBLAS failed with status {status}")


def im2col(x, k, stride, pad, OH, OW):
    """All that a k x k kernel sees at each place: x (B, H, W, C) -> (B OH OW, k k C), zeros around the images."""
    B, H, W, C = x.shape
    out = cp.empty((B * OH * OW, k * k * C), np.float32)
    numbers = [np.int32(v) for v in (H, W, C, OH, OW, k, stride, pad)]
    _im2col((len(out),), (min(256, -(-out.shape[1] // 32) * 32),), (x, *numbers, out))
    return out


def col2im(columns, shape, k, stride, pad, OH, OW):
    """The gradient of `im2col`: columns (B OH OW, k k C) -> (B, H, W, C), each place's sum over all that saw it."""
    B, H, W, C = shape
    out = cp.empty(shape, np.float32)
    numbers = [np.int32(v) for v in (H, W, C, OH, OW, k, stride, pad)]
    _col2im((B * H * W,), (min(256, -(-C // 32) * 32),), (columns, *numbers, out))
    return out


def part_moments(z, squares, means):
    """Mean of z^2 and of z over h x w parts: z (B, H, W, C) -> squares and means (B, h, w, C)."""
    B, H, W, C = z.shape
    h, w = squares.shape[1:3]
    numbers = [np.int32(v) for v in (H, W, C, h, w)]
    _part_moments((B * h * w,), (min(256, -(-C // 32) * 32),), (z, *numbers, squares, means))


def spread(d, y, mode, dz):
    """dz (B, H, W, C) = d (B, h, w, C) at all places of its part; mode 1: where y > 0, 2: times y."""
    B, H, W, C = y.shape
    h, w = d.shape[1:3]
    numbers = [np.int32(v) for v in (H, W, C, h, w, mode)]
    _spread((B * H * W,), (min(256, -(-C // 32) * 32),), (cp.ascontiguousarray(d), y, *numbers, dz))


def hand_on(z, side, kind, norm, centre, eps, key, least, grow, h):
    """`pool.HandOn`: pool, norm over channels, dropout; z (B, H, W, C) -> h (B, H / side, W / side, C)."""
    B, OH, OW, C = h.shape
    numbers = [np.int32(v) for v in (*z.shape[1:], OH, OW, side, kind, norm, centre)]
    numbers += [np.float32(eps), cp.asarray(key, dtype=np.uint32), np.uint32(least), np.float32(grow)]
    _hand_on((B * OH * OW,), (256,), (z, *numbers, h), shared_mem=4 * C)


def hand_back(dh, z, side, kind, norm, centre, eps, key, least, grow, dz):
    """The gradient of `hand_on`: dh of h's shape -> dz of z's."""
    B, OH, OW, C = dh.shape
    numbers = [np.int32(v) for v in (*z.shape[1:], OH, OW, side, kind, norm, centre)]
    numbers += [np.float32(eps), cp.asarray(key, dtype=np.uint32), np.uint32(least), np.float32(grow)]
    _hand_back((B * OH * OW,), (256,), (dh, z, *numbers, dz), shared_mem=12 * C)


def tf32(on):
    """Whether products round their factors to TF32, 10 bits of mantissa, which tensor cores multiply much faster."""
    _math["mode"] = 3 if on else 0  # CUBLAS_TF32_TENSOR_OP_MATH, CUBLAS_DEFAULT_MATH


def take(rows, i):
    """Row i of rows (n, ...), contiguous, by a number on the GPU: i (1,) int64 -> a new array (...)."""
    return _take(rows, i, cp.empty(rows.shape[1:], rows.dtype))


def put(rows, i, row):
    """rows[i] = row, for rows (n, ...), contiguous, by a number on the GPU: i (1,) int64."""
    _put(row, i, rows)
