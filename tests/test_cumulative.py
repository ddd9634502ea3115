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
from common.labels import wrong_labels

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


@pytest.mark.parametrize("remedy", ["none", "gated", "scaled"])
def test_every_remedy_changes_what_is_learnt(monkeypatch, remedy):
    """At the default scale of goodness too: a gate that is always shut would be gamma 0."""
    monkeypatch.setitem(cumulative.train.BACKBONES, "tiny", ([128, 256, 256], [0]))
    own = replace(cumulative.Config(width=3 / 128, backbone="tiny", dropout=0.0), remedy=remedy)
    alone = weights_after(replace(own, remedy="none", gamma=0.0))
    found = weights_after(own)
    assert np.array_equal(found[0], alone[0]) == (remedy != "scaled")  # nothing is collected before the first block
    assert not np.allclose(found[1], alone[1], rtol=1e-3)


def test_a_gate_by_hand():
    cfg = replace(CFG, remedy="gated", gamma=0.5)
    m, before = np.array([0.2, -0.1]), np.array([[1.0, -0.5], [0.3, 2.0]])
    gate = 0.5 / (1 + np.exp(before))
    loss, _ = cumulative.criterion(m, before, m, 1, 3, cfg)
    expected = np.log1p(np.exp(-4 * (m + gate[0] * before[0] - gate[1] * before[1]))).mean()
    assert np.isclose(loss, expected) and not np.isclose(loss, softplus(-4 * m).mean())


def test_with_gamma_0_each_block_is_alone(monkeypatch):
    """Also where goodness chooses the wrong labels: what is collected below does not matter."""
    seen = []
    monkeypatch.setattr(cumulative, "pick", lambda g, labels, cfg, rng: seen.append(g) or wrong_labels(labels, K, rng))
    monkeypatch.setitem(cumulative.train.BACKBONES, "tiny", ([128, 256, 256], [0]))
    cfg = replace(CFG, backbone="tiny", gamma=0.0)
    net, x = cumulative.Net(cfg, (8, 8, 3), K, np.random.default_rng(1)), rng.standard_normal((6, 8, 8, 3), np.float32)
    own = cumulative.goodness_of_labels(net, x, cfg)
    cumulative.step(net, x, LABELS, cfg, np.random.default_rng(0))
    assert np.allclose(seen[2], own[2], rtol=1e-4)


def test_the_gradient_is_measured(monkeypatch):
    """The norm of one image's own loss's gradient with respect to a block's activity, against finite differences."""
    monkeypatch.setitem(cumulative.train.BACKBONES, "tiny", ([128, 256, 256], [0]))
    monkeypatch.setattr(cumulative, "pick", lambda g, labels, cfg, rng: (labels + 1) % K)
    cfg = replace(CFG, backbone="tiny")
    net, x = cumulative.Net(cfg, (8, 8, 3), K, np.random.default_rng(1)), rng.standard_normal((6, 8, 8, 3), np.float32)
    before, norm, left = cumulative.free_riding(net, x, LABELS, cfg, rng)
    g, wrong, i = cumulative.goodness_of_labels(net, x, cfg), (LABELS + 1) % K, np.arange(6)
    m = g[:, i, LABELS] - g[:, i, wrong]
    assert np.allclose(before[2], m[:2].sum(axis=0), atol=1e-4) and np.allclose(left[0], 1)
    h = x
    for layer, on in zip(net.layers[:2], net.hand_on[:2], strict=True):
        a, _ = layer.image_part(h, train=False)
        h, _ = on.forward(np.maximum(a, 0), train=False)
    layer = net.layers[2]
    a, _ = layer.image_part(h, train=False)
    direction, _ = layer.error(-np.eye(K, dtype=np.float32)[LABELS] + np.eye(K, dtype=np.float32)[wrong], a)
    direction = np.float64(direction) / np.sqrt((direction**2).sum(axis=(1, 2, 3), keepdims=True))

    def loss(a):
        g = np.stack([(np.maximum(a + np.float64(u), 0) ** 2).mean(axis=(1, 2, 3)) for u in layer.params["U"]], axis=1)
        own = cfg.scale * (g[i, LABELS] - g[i, wrong])
        return softplus(-cfg.beta * (own + cfg.gamma * before[2]))

    slope = (loss(a + 1e-5 * direction) - loss(a - 1e-5 * direction)) / 2e-5
    assert np.allclose(slope, norm[2], rtol=1e-2)


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
    assert len(lines[-1]["final"]["test"]["separation"]) == 7 and 0 <= lines[-1]["final"]["test"]["sum_acc"] <= 1


def test_a_killed_run_resumes_to_the_same_bits(tmp_path):
    words = "--dataset shapes --train-subset 150 --validation 50 --eval-subset 40 --n-epochs 3 --batch-size 50"
    environment = os.environ | {"FF_CACHE": str(tmp_path / "cache")}
    script = [sys.executable, str(scripts.ROOT / "ff_cnn" / "cumulative.py"), "--no-figures"]
    words += " --width 0.03"
    keywords = {"cwd": tmp_path, "env": environment, "text": True}
    done = subprocess.run([*script, *words.split(), "--out", "whole", "--save", "whole.npz"], timeout=300,
                          capture_output=True, **keywords)  # fmt: skip
    assert done.returncode == 0, done.stderr
    process = subprocess.Popen([*script, *words.split(), "--out", "cut"], stdout=subprocess.PIPE, **keywords)
    for line in process.stdout:
        if line.startswith("epoch   1"):
            process.kill()
    process.wait()
    process.stdout.close()
    (folder,) = (tmp_path / "cut").iterdir()
    assert '"final"' not in (folder / "record.jsonl").read_text()
    done = subprocess.run([*script, "--resume", str(folder), "--save", "again.npz"], timeout=300, capture_output=True,
                          **keywords)  # fmt: skip
    assert done.returncode == 0 and "epoch   3" in done.stdout, done.stderr
    whole, again = (np.load(tmp_path / name) for name in ("whole.npz", "again.npz"))
    assert set(whole) == set(again) and all(np.array_equal(whole[k], again[k]) for k in whole if k != "__meta__")
