"""Kernels are compiled before the first epoch: afterwards, no step of a script compiles anything."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import sys
sys.path[:0] = [{root!r}, {root!r} + "/ff_mnist", {root!r} + "/ff_cifar_lc"]
from common import cli, compilation, data, kernels_cpu
import numpy as np
compilation.announce(*{kinds!r})
dispatchers = [d for d in vars(kernels_cpu).values() if hasattr(d, "signatures")]
before = {{d: len(d.signatures) for d in dispatchers}}
{steps}
late = [d.__name__ for d in dispatchers if len(d.signatures) > before[d]]
print("late:", *late)
"""
DENSE = """
import train
for flags in ({}, {"optimiser": "adam", "negatives": "all", "loss": "softmax"}, {"goodness": "mean", "norm": "none"}):
    cfg = train.Config(sizes="200,80,90", **flags)
    net, rng = train.Net(cfg, 784, 10, np.random.default_rng(0)), np.random.default_rng(1)
    x, y = np.maximum(rng.standard_normal((40, 774), np.float32), 0), rng.integers(0, 10, 40)
    train.ff_step(net, x, y, cfg, rng, 10)
    train.goodness_of_labels(net, x, cfg, 10)
"""
LOCAL = """
import unsupervised
cfg = unsupervised.Config(local=True, lr=0.001, blurs=2)
net, rng = unsupervised.Net(cfg, (28, 28, 1), 10, np.random.default_rng(0)), np.random.default_rng(1)
images, y = rng.integers(0, 256, (20, 28, 28, 1), dtype=np.uint8), rng.integers(0, 10, 20)
unsupervised.ff_step(net, images, y, cfg, rng)
unsupervised.predict(net, images, cfg)
"""


@pytest.mark.parametrize("kinds, steps", [(["dense"], DENSE), (["dense", "local"], LOCAL)])
def test_nothing_is_compiled_late(kinds, steps):
    program = SCRIPT.format(root=str(ROOT), kinds=kinds, steps=steps)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "late:", done.stdout
