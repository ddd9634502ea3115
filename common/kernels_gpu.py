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
        blas, handle, _ = _blas(cp.cuda.get_current_stream().ptr)
        _ok(blas.cublasSgemm_v2(handle, *sizes, _at(one), W_at, W_width, x_at, x_width, _at(zero), out_at, N))
    else:
        out.fill(0)
    return out


_at = ctypes.byref


def _as_stored(x):
    """x, whether its rows are columns in memory (0 or 1), and how long what lies together in memory is."""
    if x.flags.c_contiguous:
        return x, 0, x.shape[1]
    if x.flags.f_contiguous:
        return x, 1, x.shape[0]
    return cp.ascontiguousarray(x), 0, x.shape[1]


@functools.cache
def _blas(stream):
    """The cuBLAS library that CuPy has loaded, a handle for this stream, and its workspace.

    Without a workspace of its own it would allocate one, also in a graph.
    """
    cp.ones((2, 2), np.float32) @ cp.ones((2, 2), np.float32)  # CuPy loads it: its name is enough from now on
    version = cp.cuda.runtime.runtimeGetVersion() // 1000
    blas = ctypes.CDLL(f"cublas64_{version}.dll" if sys.platform == "win32" else f"libcublas.so.{version}")
    handle, size = ctypes.c_void_p(), 32 << 20
    workspace = cp.cuda.alloc(size)
    _ok(blas.cublasCreate_v2(_at(handle)))
    _ok(blas.cublasSetStream_v2(handle, ctypes.c_void_p(stream)))
    _ok(blas.cublasSetWorkspace_v2(handle, ctypes.c_void_p(workspace.ptr), ctypes.c_size_t(size)))
    return blas, handle, workspace


def _ok(status):
    if status:
        raise RuntimeError(f"cuBLAS failed with status {status}")


def take(rows, i):
    """Row i of rows (n, ...), contiguous, by a number on the GPU: i (1,) int64 -> a new array (...)."""
    return _take(rows, i, cp.empty(rows.shape[1:], rows.dtype))


def put(rows, i, row):
    """rows[i] = row, for rows (n, ...), contiguous, by a number on the GPU: i (1,) int64."""
    _put(row, i, rows)
