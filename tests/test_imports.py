"""Imports go one way: common <- ff_* <- benchmarks; common.record <- viz; everything <- tests."""

import ast
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"common", "ff_mnist", "ff_cifar_lc", "ff_cnn", "ff_synthetic", "viz", "benchmarks", "tests"}
RUNTIME = {"numpy", "numba", "llvmlite", "matplotlib", "imageio", "PIL", "requests", "urllib3", "tqdm", "threadpoolctl"}
FILES = [p for folder in sorted(OURS - {"tests"}) for p in sorted((ROOT / folder).rglob("*.py"))]


def imported(path):
    """Top-level module names that a file imports, and the dotted names behind them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            raise AssertionError(f"{path}: relative import")


def allowed(folder, path, name):
    top = name.partition(".")[0]
    inside = {p.stem for p in path.parent.glob("*.py")}  # siblings: the script's own folder is on sys.path
    if top in OURS:
        return top in {"common": ("common",), "viz": ("common", "viz")}.get(folder, ("common", folder))
    if top in sys.stdlib_module_names or top in inside and folder != "common":
        return True
    if top == "matplotlib":
        return folder == "viz" or path.name == "builtin.py"
    if top == "cupy":
        return path.name in ("arrays.py", "kernels_gpu.py")
    if top == "sklearn":
        return path.name == "information.py"
    if top == "torch":
        return folder == "benchmarks"
    if top in ("numba", "llvmlite"):
        return (
            path.name
            in ("kernels_cpu.py", "kernels_conv.py", "kernels_image.py", "reuse.py", "cli.py", "record.py", "arrays.py")
            or folder == "benchmarks"
        )
    if top == "train":
        return folder in ("benchmarks", "ff_cifar_lc", "ff_mnist", "ff_cnn", "ff_synthetic")
    return top in RUNTIME


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_directions(path):
    folder = path.relative_to(ROOT).parts[0]
    wrong = [name for name in imported(path) if not allowed(folder, path, name)]
    assert not wrong, f"{path.relative_to(ROOT)} may not import {', '.join(wrong)}"


SCRIPTS = [p for p in FILES if p.relative_to(ROOT).parts[0].startswith("ff_") or p.parent.name == "benchmarks"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_scripts_import_common_before_numpy(path):
    """Otherwise BLAS has chosen how its threads wait before common/__init__.py can say it."""
    order = [name.partition(".")[0] for name in imported(path)]
    first = [order.index(name) for name in ("common", "timing") if name in order]  # timing.py imports common first
    assert "numpy" not in order or min(first) < order.index("numpy")


def test_the_rule_can_fail():
    path = ROOT / "common" / "layers.py"
    assert not allowed("common", path, "train") and not allowed("common", path, "matplotlib.pyplot")
    assert not allowed("viz", ROOT / "viz" / "style.py", "ff_cifar_lc.train") and not allowed("common", path, "torch")


def test_common_starts_without_matplotlib_or_torch():
    code = "import sys, common.local2d, common.label_sharing, common.cli, common.data\n"
    code += "print([m for m in ('matplotlib', 'torch', 'cupy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


FAULTS = """
import common, resource, numpy as np
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for round in range(6):
    begin = faults()
    arrays = [np.ones(5_000_000, np.float32) for _ in range(4)]  # 80 MB
    del arrays
print(faults() - begin)
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc's allocator only")
@pytest.mark.parametrize("own", [False, True])
def test_freed_memory_is_used_again(own):
    """Without a word of the user's own about malloc, no page is asked for a second time."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    env |= {"PYTHONPATH": str(ROOT)} | ({"MALLOC_TRIM_THRESHOLD_": "1000000"} if own else {})
    done = subprocess.run([sys.executable, "-c", FAULTS], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (int(done.stdout) > 100) == own
