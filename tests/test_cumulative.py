"""ff_cnn/cumulative.py and LabelConv: gradients, kernels, locality, and the decay that the paper's theorem states."""

import os
import subprocess
import sys
from dataclasses import replace

import gradcheck
import numpy as np
import pytest
import scripts

from common import record
from common.functions import sigmoid, softplus
from common.label_conv import LabelConv

cumulative = scripts.load("ff_cnn/cumulative.py")
rng = np.random.default_rng(2)
K = 4
LABELS = np.array([0, 3, 1, 1, 2, 0])
CFG = cumulative.Config(width=3 / 128, scale=3.0, dropout=0.0, negatives="uniform", clip=1e9, lr=0.01, weight_decay=0.0)


def test_goodness_under_labels():
    layer = LabelConv(2, 5, K, np.random.default_rng(0), dtype=np.float64)
    x = rng.standard_normal((3, 6, 6, 2))
    a, cache = layer.image_part(x)
    g = layer.goodness(a)
    assert np.isclose(g[1, 2], (np.maximum(a[1] + layer.params["U"][2], 0) ** 2).mean())
    weights = rng.standard_normal(g.shape)
    grads = layer.backward_goodness(weights, a, cache)
    gradcheck.check(lambda: (weights * layer.goodness(layer.image_part(x)[0])).sum(), layer.params, grads)
    fast = LabelConv(2, 5, K, np.random.default_rng(0))
    a32, cache32 = fast.image_part(x.astype(np.float32))
    assert np.allclose(fast.goodness(a32), g, rtol=1e-5)
    for k, mine in fast.backward_goodness(weights.astype(np.float32), a32, cache32).items():
        assert np.linalg.norm(mine - grads[k]) <= 1e-5 * np.linalg.norm(grads[k])


@pytest.mark.parametrize("remedy", ["none", "gated", "scaled"])
@pytest.mark.parametrize("d", [0, 2])
def test_criterion(remedy, d):
    cfg = replace(CFG, remedy=remedy)
    m, before, below = rng.standard_normal(6), rng.random((2, 6)), rng.standard_normal(6)
    loss, dm = cumulative.criterion(m, before, below, d, 4, cfg)
    gradcheck.check(lambda: cumulative.criterion(m, before, below, d, 4, cfg)[0], {"m": m}, {"m": dm})
    if remedy == "none":
        assert np.isclose(loss, softplus(-4 * (m + 0.7 * (before[0] - before[1]))).mean())
    if remedy == "scaled":
        alone = cumulative.criterion(m, before, below, d, 4, replace(cfg, remedy="none"))[0]
        weight = sigmoid(-4 * below) / sigmoid(-4 * below).mean() if d else 1
        assert np.isclose(loss - alone, (0.25 * (1 + d) * weight * softplus(-4 * m)).mean())  # d = 2 of 4: 0.75


def test_the_gradient_decays_with_the_margin_that_others_have_collected():
    """Theorem 3.1: like e^(-beta gamma M) for margins above 0, and not at all for gamma 0."""
    for gamma in (0.0, 0.7, 1.0):
        M = np.linspace(2, 4, 9)
        before = np.stack([M, np.zeros(9)])
        _, dm = cumulative.criterion(np.ones(9), before, np.zeros(9), 1, 4, replace(CFG, gamma=gamma))
        slope = np.polyfit(M, np.log(-dm), 1)[0]
        assert abs(slope + gamma * CFG.beta) < 0.01


def weights_after(cfg, perturbed=None):
    net = cumulative.Net(cfg, (8, 8, 3), K, np.random.default_rng(1))
    if perturbed is not None:
        net.layers[perturbed].params["W"] *= np.float32(1.5)
    r, images = np.random.default_rng(4), np.random.default_rng(5).standard_normal((6, 8, 8, 3)).astype(np.float32)
    for _ in range(2):
        cumulative.step(net, images, LABELS, cfg, r)
    return [np.concatenate([p.ravel() for p in layer.params.values()]) for layer in net.layers]


@pytest.mark.parametrize("remedy", ["none", "gated", "scaled"])
@pytest.mark.parametrize("negatives", ["uniform", "hard", "sampled"])
def test_blocks_learn_locally(monkeypatch, remedy, negatives):
    """No later block can change an earlier one's step; an earlier one's goodness reaches later ones, as a number."""
    monkeypatch.setitem(cumulative.train.BACKBONES, "tiny", ([128, 256, 256], [0]))
    cfg = replace(CFG, backbone="tiny", remedy=remedy, negatives=negatives)
    plain = weights_after(cfg)
    for perturbed in (1, 2):
        other = weights_after(cfg, perturbed)
        assert all(np.array_equal(plain[i], other[i]) for i in range(perturbed))
        assert not np.array_equal(plain[perturbed], other[perturbed])


def test_training_and_prediction_share_one_goodness(monkeypatch):
    monkeypatch.setitem(cumulative.train.BACKBONES, "tiny", ([128, 256, 256], [0]))
    cfg = replace(CFG, backbone="tiny")
    net = cumulative.Net(cfg, (8, 8, 3), K, np.random.default_rng(1))
    for opt in net.opts:
        opt.lr = 0.0
    x = rng.standard_normal((6, 8, 8, 3)).astype(np.float32)
    log = cumulative.step(net, x, LABELS, cfg, np.random.default_rng(0))
    g = cumulative.goodness_of_labels(net, x, cfg)
    assert np.allclose(log[:, 1], g[:, np.arange(6), LABELS].mean(axis=1), rtol=1e-5)


def test_a_run(tmp_path):
    words = (
        "--dataset shapes --train-subset 200 --validation 60 --eval-subset 40 --n-epochs 2 --batch-size 50 --width 0.03"
    )
    command = [sys.executable, str(scripts.ROOT / "ff_cnn" / "cumulative.py"), *words.split(), "--out", "out"]
    environment = os.environ | {"FF_CACHE": str(tmp_path / "cache")}
    for flags in (["--gamma", "1"], ["--remedy", "gated"], ["--remedy", "scaled", "--negatives", "hard"]):
        done = subprocess.run([*command, "--no-figures", *flags], cwd=tmp_path, capture_output=True, text=True,
                              timeout=300, env=environment)  # fmt: skip
        assert done.returncode == 0, done.stderr
    folders = sorted((tmp_path / "out").iterdir())
    viz = [sys.executable, str(scripts.ROOT / "viz" / "ff_cnn_cumulative.py"), *map(str, folders), "--out", "pictures"]
    done = subprocess.run(viz, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "pictures").iterdir()} == {"separation.png", "free-riding.png"}
    lines = record.read(folders[0])
    assert len(lines[-1]["final"]["test"]["separation"]) == 7 and 0 <= lines[-1]["final"]["test"]["acc"] <= 1
