"""The CUDA kernels of images without a GPU: compiled as C++, a thread for each of a block's threads, against formulas.

It cannot tell how fast they are, or whether a GPU likes them; it can tell whether they compute the right thing. Needs
a C++20 compiler.
"""

import ctypes
import re
import shutil
import subprocess

import numpy as np
import pytest
import scripts

from common import pool
from common.conv import Conv2d

rng = np.random.default_rng(0)
BLOCKS = r"""
#include <barrier>
#include <cmath>
#include <thread>
#include <vector>
#define __global__
#define __device__
struct Number { int x; };
static thread_local Number threadIdx, blockIdx;
static Number blockDim;
static float dynamic[1 << 14], lanes[256];
static std::barrier<>* all;
static void __syncthreads() { all->arrive_and_wait(); }
static float __shfl_xor_sync(unsigned, float value, int lane) {
    lanes[threadIdx.x] = value;
    all->arrive_and_wait();
    value = lanes[threadIdx.x ^ lane];
    all->arrive_and_wait();
    return value;
}
template <class Body> void launch(int blocks, int threads, Body body) {
    std::barrier<> barrier(threads);
    std::vector<std::thread> running;
    blockDim.x = threads, all = &barrier;
    for (int i = 0; i < threads; ++i)
        running.emplace_back([&, i] {
            for (threadIdx.x = i, blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) body(), barrier.arrive_and_wait();
        });
    for (auto& thread : running) thread.join();
}
"""


@pytest.fixture(scope="module")
def cuda(tmp_path_factory):
    """name, blocks, threads, arguments -> runs that kernel."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        pytest.skip("there is no C++ compiler")
    text = (scripts.ROOT / "common" / "kernels_gpu.py").read_text(encoding="utf-8")
    source = re.search(r'_IMAGES = r"""\s*extern "C" \{(.*)\}\s*"""\n_im2col', text, re.DOTALL)[1]
    launchers = ""
    for name, parameters in re.findall(r"__global__ void (\w+)\(([^)]*)\)", source):
        names = ", ".join(re.split(r"[ *]+", part.strip())[-1] for part in parameters.split(","))
        launchers += f'extern "C" void run_{name}(int blocks, int threads, {parameters}) '
        launchers += f"{{ launch(blocks, threads, [&] {{ {name}({names}); }}); }}\n"
    source = source.replace("extern __shared__ float row[];", "float* row = dynamic;").replace("__shared__", "static")
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "kernels.cpp").write_text(BLOCKS + source + launchers, encoding="utf-8")
    command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", "-o", "kernels.so", "kernels.cpp"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if "unrecognized" in done.stderr or "barrier" in done.stderr.partition("\n")[0]:
        pytest.skip("the C++ compiler knows no C++20")
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(folder / "kernels.so"))

    def run(name, blocks, threads, *arguments):
        given = [a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else a for a in arguments]
        given = [ctypes.c_float(a) if isinstance(a, np.float32) else a for a in given]
        given = [ctypes.c_uint(int(a)) if isinstance(a, np.uint32) else a for a in given]
        getattr(library, f"run_ff_{name}")(blocks, threads, *(int(a) if isinstance(a, bool) else a for a in given))

    return run


def near(a, b):
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


@pytest.mark.parametrize("norm, kind", [("layer", "average"), ("rms", "rms"), ("none", "max"), ("layer", "max")])
@pytest.mark.parametrize("shape, side", [((2, 4, 6, 3), 2), ((1, 2, 2, 300), 1)], ids=str)
def test_what_is_handed_on_and_back(cuda, shape, side, norm, kind):
    B, H, W, C = shape
    z, layer, key = rng.standard_normal(shape), pool.HandOn(side, norm, dropout=0.3, kind=kind), np.uint32(99)
    h, cache = layer.forward(z, key=key)
    pool_side, pooling, normed, centre, eps, key, least, grow = layer._numbers(key, 0.3)
    numbers = H, W, C, *h.shape[1:3], pool_side, pooling, normed, centre, eps, np.array([key], np.uint32), least, grow
    ours, z32 = np.zeros(h.shape, np.float32), z.astype(np.float32)
    cuda("hand_on", h.size // C, 256, z32, *numbers, ours)
    near(ours, h)
    dh, dz = rng.standard_normal(h.shape), np.zeros(shape, np.float32)
    cuda("hand_back", h.size // C, 256, dh.astype(np.float32), z32, *numbers, dz)
    near(dz, layer.backward(dh, cache))


@pytest.mark.parametrize("k, stride, padding", [(3, 1, 1), (3, 2, 1), (1, 1, 0)])
def test_columns(cuda, k, stride, padding):
    x = rng.standard_normal((2, 6, 5, 3))
    layer = Conv2d(3, 4, np.random.default_rng(0), k, stride, padding, relu=False, dtype=np.float64)
    y, cache = layer.forward(x)
    W, (_, OH, OW, _) = layer.params["W"].reshape(-1, 4), y.shape
    numbers = 6, 5, 3, OH, OW, k, stride, padding
    columns, dx = np.zeros((2 * OH * OW, len(W)), np.float32), np.zeros(x.shape, np.float32)
    cuda("im2col", len(columns), 32, x.astype(np.float32), *numbers, columns)
    near(columns @ W, y.reshape(-1, 4))
    dy = rng.standard_normal(y.shape)
    cuda("col2im", 2 * 6 * 5, 32, (dy.reshape(-1, 4) @ W.T).astype(np.float32), *numbers, dx)
    near(dx, layer.backward(dy, cache, need_dx=True)[0])


@pytest.mark.parametrize("H, W, h, w", [(8, 8, 2, 2), (7, 5, 3, 2)])
def test_parts(cuda, H, W, h, w):
    z = rng.standard_normal((3, H, W, 9))
    (u, m), _ = pool.Parts(h, w).forward(z)
    squares, means, z32 = np.zeros(u.shape, np.float32), np.zeros(u.shape, np.float32), z.astype(np.float32)
    cuda("part_moments", 3 * h * w, 32, z32, H, W, 9, h, w, squares, means)
    near(squares, u), near(means, m)
    d, dz = rng.standard_normal(u.shape), np.zeros(z.shape, np.float32)
    for mode in (0, 1, 2):
        cuda("spread", 3 * H * W, 32, d.astype(np.float32), z32, H, W, 9, h, w, mode, dz)
        near(dz, pool.Grad(d, z, squares=mode == 2).full(relu=mode == 1))
