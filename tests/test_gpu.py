"""ff_mnist and ff_cnn on another array module: the stand-in everywhere, CuPy where there is a GPU. The CPU's numbers.

The fused kernels of common/kernels_gpu.py are compared with the formulas in float64, norm by norm.
"""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import scripts
import standin

from common import arrays, cli, goodness, layers, optim, pool, product, runs
from common.augment import shift
from common.conv import Conv2d
from common.split import Split

cnn = scripts.load("ff_cnn/train.py")
lc, unsupervised = scripts.load("ff_cifar_lc/train.py"), scripts.load("ff_mnist/unsupervised.py")
amsga, hff, dtg_mlp = (scripts.load(f"ff_mnist/{name}.py") for name in ("amsga", "hff", "dtg_mlp"))
train, recurrent, backprop = (scripts.load(f"ff_mnist/{name}.py") for name in ("train", "recurrent", "backprop"))


def gpu():
    """CuPy, or skip."""
    try:
        return arrays.module("cuda")
    except cli.UsageError as error:
        pytest.skip(str(error))


def other_module(name):
    return standin if name == "stand-in" else gpu()


def two_epochs(xp, script, settings):
    """Weights, and what is logged and predicted, after two epochs on noise: images with their label's column lit."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 60).astype(np.uint8)
    x = rng.integers(0, 60, (60, 12, 12, 1)).astype(np.uint8)
    x[np.arange(60), 3:, y] = 255
    ds = SimpleNamespace(x_train=x, y_train=y, x_test=x, y_test=y, class_names=list("0123456789"), name="noise")
    cfg = script.Config(**{"sizes": "48,40,32", "batch_size": 10, "validation": 20, "n_epochs": 2} | settings)
    data, net = Split(ds, cfg), script.Net(cfg, 144, 10, np.random.default_rng(1))
    if xp is not np:
        data.to(xp)
        runs.move(xp, net.parts)
    rng = np.random.default_rng(2)
    logs = [script.train_epoch(net, data, rng, cfg, epoch) for epoch in (1, 2)]
    scores, g = script.evaluate(net, *data.val, cfg, 10)
    weights = [arrays.host(p) for layer in [*net.layers, net.head] for p in layer.params.values()]
    return weights, [log[key] for log in logs for key in ("loss", "g_pos", "g_neg")], scores, g


SETTINGS = {
    "default": (train, {}),
    "jitter, Adam": (train, {"jitter": 2, "optimiser": "adam"}),
    "a smaller last batch": (train, {"train_subset": 36}),
    "margin": (train, {"loss": "margin", "negatives": "uniform", "beta": 0.1}),
    "softmax": (train, {"loss": "softmax", "negatives": "all", "collaborate": 0.3}),
    "all, mean, length": (train, {"negatives": "all", "goodness": "mean", "norm": "length"}),
    "recurrent": (recurrent, {"sizes": "48,40", "train_subset": 36}),
    "recurrent, blind, Adam": (recurrent, {"blind": True, "optimiser": "adam"}),
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", ["stand-in", "CuPy"])
def test_training_is_the_same_on_every_device(name, settings):
    xp = other_module(name)
    ours, theirs = (two_epochs(module, *SETTINGS[settings]) for module in (np, xp))
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert np.linalg.norm(a - b) <= 1e-4 * np.linalg.norm(a)
    assert np.allclose(ours[1], theirs[1], rtol=1e-3, atol=1e-3)
    assert np.allclose(ours[3], theirs[3], rtol=1e-3)
    assert all(ours[2][key] == theirs[2][key] for key in ours[2] if key != "seconds")


DESCENDANTS = {
    "amsga": (amsga, {"lr": 0.003}),
    "amsga, readings": (amsga, {"local_mean": "batch", "negatives": "shuffle", "norm": "length", "sizes": "47,85"}),
    "amsga, off": (amsga, amsga.BASELINE | {"batch_size": 0}),
    "hff": (hff, {"per_class": 2, "margin": 0.1, "dropout": 0.2, "jitter": 1, "flip": True}),
    "dtg": (dtg_mlp, {"jitter": 1, "flip": True}),
    "dtg, last": (dtg_mlp, {"head": "last", "head_norm": "layer", "norm": "none"}),
    "dtg, batch": (dtg_mlp, {"head": "none", "norm": "batch-halves"}),
    "dtg, fixed": (dtg_mlp, {"head": "none", "dynamic": False}),
}


@pytest.mark.parametrize("settings", DESCENDANTS)
@pytest.mark.parametrize("name", ["stand-in", "CuPy"])
def test_descendants_are_the_same_on_every_device(name, settings):
    script, changes = DESCENDANTS[settings]
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, 9, 9, 1)).astype(np.uint8), rng.integers(0, 10, 60).astype(np.uint8)
    ds = SimpleNamespace(x_train=x, y_train=y, x_test=x, y_test=y, class_names=list("0123456789"), name="noise")
    cfg = script.Config(**{"sizes": "48,40", "batch_size": 12, "validation": 10, "n_epochs": 2} | changes)
    found = []
    for xp in (np, other_module(name)):
        data, net = Split(ds, cfg), script.Net(cfg, 81, 10, np.random.default_rng(1))
        if xp is not np:
            data.to(xp)
            runs.move(xp, net.parts)
        rng = np.random.default_rng(2)
        logs = [script.train_epoch(net, data, rng, cfg, epoch) for epoch in (1, 2)]
        more = [] if script is amsga else [data.mean_sd]
        more += [10] if script is not hff else []
        scores = script.evaluate(net, *data.val, cfg, *more)
        scores = scores if isinstance(scores, dict) else scores[0]
        layers = [layer for part, _ in net.parts.values() for layer in part]
        weights = np.concatenate([arrays.host(p).ravel() for layer in layers for p in layer.params.values()])
        found.append((weights, [log["loss"] for log in logs], scores["acc"]))
    assert far(found[1][0], found[0][0]) < 2e-3  # Adam's first steps are signs, also of gradients next to 0
    assert np.allclose(found[1][1], found[0][1], rtol=2e-3) and abs(found[1][2] - found[0][2]) <= 0.1


@pytest.mark.parametrize("name", ["stand-in", "CuPy"])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_backpropagation_is_the_same_on_every_device(name, optimiser):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, 8, 8, 1)).astype(np.uint8), rng.integers(0, 10, 60).astype(np.uint8)
    ds = SimpleNamespace(x_train=x, y_train=y, x_test=x, y_test=y, class_names=list("0123456789"), name="noise")
    lr = {"sgd": 0.01, "adam": 0.0003}[optimiser]
    cfg = backprop.Config(sizes="40,30", batch_size=10, validation=10, n_epochs=2, optimiser=optimiser, lr=lr)
    found = []
    for xp in (np, other_module(name)):
        data, net = Split(ds, cfg), backprop.Net(cfg, 64, 10, np.random.default_rng(1))
        if xp is not np:
            data.to(xp)
            runs.move(xp, net.parts)
        rng = np.random.default_rng(2)
        losses = [backprop.train_epoch(net, data, rng, cfg, epoch)["loss"] for epoch in (1, 2)]
        found.append((losses, [arrays.host(layer.params["W"]) for layer in net.layers]))
    assert np.allclose(*(losses for losses, _ in found), rtol=1e-4)
    differences = [far(a, b) for a, b in zip(found[1][1], found[0][1], strict=True)]
    # Adam divides by the gradient's size, so what rounding adds to one near zero counts in full, and the last layer's
    # weights are nothing but such steps (they start at 0): on an H200, 5e-7, 2e-7 and 1.1e-4.
    assert max(differences[:-1]) < 1e-4 and differences[-1] < (1e-3 if optimiser == "adam" else 1e-4), differences


@pytest.mark.parametrize("name", ["stand-in", "CuPy"])
@pytest.mark.parametrize("settings", [{"sizes": "40,30,20"}, {"local": True}])
def test_hybrid_negatives_are_the_same_on_every_device(name, settings):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (44, 28, 28, 1)).astype(np.uint8), rng.integers(0, 10, 44).astype(np.uint8)
    ds = SimpleNamespace(x_train=x, y_train=y, x_test=x, y_test=y, class_names=list("0123456789"), name="noise")
    cfg = unsupervised.Config(batch_size=8, validation=10, n_epochs=2, lr=0.0005, blurs=3, **settings)
    found = []
    for xp in (np, other_module(name)):
        data, net = Split(ds, cfg), unsupervised.Net(cfg, (28, 28, 1), 10, np.random.default_rng(1))
        if xp is not np:
            data.to(xp)
            runs.move(xp, net.parts)
        rng = np.random.default_rng(2)
        logs = [unsupervised.train_epoch(net, data, rng, cfg, epoch) for epoch in (1, 2)]
        predicted = arrays.host(unsupervised.predict(net, data.val[0], cfg))
        weights = [arrays.host(p).ravel() for layer in [*net.layers, net.head] for p in layer.params.values()]
        found.append((np.concatenate(weights), [log[k] for log in logs for k in ("loss", "g_pos", "g_neg")], predicted))
    assert far(found[1][0], found[0][0]) < 1e-4
    assert np.allclose(found[1][1], found[0][1], rtol=1e-3) and (found[1][2] == found[0][2]).mean() >= 0.9


LC = {
    "all labels": {},
    "pairs": {"negatives": "sampled", "loss": "threshold", "beta": 8.0},
    "hardest": {"negatives": "hard"},
    "rows": {"negatives": "uniform", "neutral": False},
    "write-up": lc.PRESETS["write-up"] | {"rf": "5,3", "lr": 0.003, "bp_lr": 0.001},
}


@pytest.mark.parametrize("name", ["stand-in", "CuPy"])
@pytest.mark.parametrize("settings", LC)
def test_locally_connected_networks_are_the_same_on_every_device(name, settings):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (70, 12, 12, 3)).astype(np.uint8), rng.integers(0, 10, 70).astype(np.uint8)
    x[np.arange(70), 4:8, y] = 255
    ds = SimpleNamespace(x_train=x, y_train=y, x_test=x[:30], y_test=y[:30], class_names=list("0123456789"), name="n")
    small = {"n_epochs": 2, "channels": 4, "batch_size": 10, "validation": 20, "eval_subset": 20, "train_subset": 0}
    cfg = lc.Config(**{"rf": "5,3", "beta": 64.0} | LC[settings] | small)
    lc.check(cfg, ds)
    found = []
    for xp in (np, other_module(name)):
        split, (ff, bp, rngs) = lc.Split(ds, cfg), lc.networks(cfg, (12, 12, 3), 10)
        if xp is not np:
            split.to(xp)
            runs.move(xp, {"ff": ff, "bp": bp})
        logs = [lc.train_epoch(ff, bp, split, rngs, cfg, 10, epoch) for epoch in (1, 2)]
        scores, g, _ = lc.evaluate(ff, bp, split, cfg, 10)
        weights = [arrays.host(p).ravel() for net in (ff, bp) for layer in net[0] for p in layer.params.values()]
        found.append((np.concatenate(weights), [log["loss"] for both in logs for log in both], g, scores))
    assert far(found[1][0], found[0][0]) < 2e-3  # Adam's first steps are signs, also of gradients next to 0
    for ours, theirs in zip(found[1][1], found[0][1], strict=True):
        assert np.allclose(ours, theirs, rtol=2e-3)
    assert far(found[1][2], found[0][2]) < 2e-3
    assert all(abs(found[1][3][net]["val_acc"] - found[0][3][net]["val_acc"]) <= 0.1 for net in ("ff", "bp"))


CNN = {
    "dtg": {},
    "linear, deepsup": {"rule": "linear", "credit": "deepsup", "clip_by": "network", "norm": "rms"},
    "bp": {"credit": "bp", "accumulate": 2, "head": "last"},
    "resnet": {"backbone": "resnet-small", "pipelined": False, "projection": "unit"},
    "batch": {"goodness_norm": "batch", "projection": "learned", "dropout": 0.0, "head_dropout": 0.0},
}


@pytest.mark.parametrize("settings", CNN)
@pytest.mark.parametrize("name", ["stand-in", "CuPy"])
def test_convolutional_networks_are_the_same_on_every_device(name, settings, monkeypatch):
    """Two epochs with all changes of images and dropout: losses, accuracies and weights."""
    monkeypatch.setitem(cnn.BACKBONES, "small", ([128, 256, 512], [0, 1]))
    monkeypatch.setitem(cnn.BACKBONES, "resnet-small", ([128, 128, 256], [0]))
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (70, 32, 32, 3)).astype(np.uint8), rng.integers(0, 10, 70).astype(np.uint8)
    ds = SimpleNamespace(x_train=x, y_train=y, x_test=x, y_test=y, class_names=list("0123456789"), name="noise")
    changes = {"backbone": "small", "width": 0.05, "batch_size": 12, "validation": 10, "n_epochs": 2}
    cfg = cnn.Config(**changes | CNN[settings])
    found = []
    for xp in (np, other_module(name)):
        data, net = cnn.Split(ds, cfg), cnn.Net(cfg, (32, 32, 3), 10, np.random.default_rng(1))
        if xp is not np:
            data.to(xp)
            runs.move(xp, {"net": net.layers})
        rng = np.random.default_rng(2)
        logs = [cnn.train_epoch(net, data, rng, cfg, epoch) for epoch in (1, 2)]
        scores, _ = cnn.evaluate(net, *data.val, cfg, data)
        weights = np.concatenate([arrays.host(p).ravel() for layer in net.layers[0] for p in layer.params.values()])
        found.append((weights, [[*log.get("loss", []), log["head_loss"]] for log in logs], scores["head_acc"]))
    assert far(found[1][0], found[0][0]) < 2e-3  # Adam's first steps are signs, also of gradients next to 0
    assert np.allclose(found[1][1], found[0][1], rtol=2e-3) and abs(found[1][2] - found[0][2]) <= 0.1


def far(a, b):
    """Norm of the difference as a share of b's."""
    return np.linalg.norm(arrays.host(a) - b) / np.linalg.norm(b)


@pytest.mark.parametrize("n", [1, 31, 256, 2000])
def test_kernels_of_rows(n):
    xp, rng = gpu(), np.random.default_rng(n)
    z, dy = rng.standard_normal((2, 50, n))
    b, factor = rng.standard_normal(n), rng.random(50)
    on = {key: xp.asarray(v.astype(np.float32)) for key, v in (("z", z), ("b", b), ("factor", factor), ("dy", dy))}
    y = np.maximum(z + b, 0)
    ours = layers.activate(on["z"].copy(), on["b"])
    assert far(ours, y) < 1e-6
    assert far(layers.relu_grad(on["dy"], ours), dy * (y > 0)) < 1e-6
    assert far(goodness.SumSquare().forward(on["z"])[0], (z * z).sum(axis=1)) < 1e-6
    assert far(goodness.scale_rows(on["z"], on["factor"]), z * factor[:, None]) < 1e-6
    assert far(goodness.normalise(on["z"]), goodness.normalise(z)) < 1e-6
    bad = on["z"].copy()
    bad[3, 0] = xp.nan
    assert np.isnan(arrays.host(layers.activate(bad, on["b"]))[3, 0])


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 3), (200, 784, 2000), (3, 0, 4)])
def test_products_in_every_layout(shape):
    xp, rng = gpu(), np.random.default_rng(0)
    B, K, N = shape
    a, b = rng.standard_normal((B, K)), rng.standard_normal((K, N))

    def layouts(x):
        ours = xp.asarray(x.astype(np.float32))
        wide = xp.zeros((x.shape[0], x.shape[1] + 2), np.float32)
        wide[:, 2:] = ours
        return ours, xp.ascontiguousarray(ours.T).T, wide[:, 2:]

    for x in layouts(a):
        for W in layouts(b):
            got = arrays.host(product.matmul(x, W))
            assert np.linalg.norm(got - a @ b) <= 1e-6 * np.linalg.norm(a @ b)


@pytest.mark.parametrize(
    "shape", [(5, 9, 10, 3, 7, 3, 1, 1), (4, 8, 8, 40, 300, 3, 2, 1), (3, 6, 6, 5, 4, 1, 1, 0)], ids=str
)
def test_kernels_of_images(shape):
    """Convolution, its gradients, parts and what is handed on, against the formulas in float64."""
    xp, rng = gpu(), np.random.default_rng(0)
    B, H, W, C, O, k, stride, padding = shape
    ours, exact = (
        Conv2d(C, O, np.random.default_rng(0), k, stride, padding, dtype=t) for t in (np.float32, np.float64)
    )
    exact.params = {key: p.astype(np.float64) for key, p in ours.params.items()}
    arrays.move(xp, ours.params)
    x = rng.standard_normal((B, H, W, C))
    y64, cache64 = exact.forward(x)
    y, cache = ours.forward(xp.asarray(x.astype(np.float32)))
    assert far(y, y64) < 1e-5
    dy = rng.standard_normal(y64.shape) * (abs(y64) > 1e-4)
    dx, grads = ours.backward(xp.asarray(dy.astype(np.float32)), cache, need_dx=True)
    dx64, grads64 = exact.backward(dy, cache64, need_dx=True)
    assert far(dx, dx64) < 1e-5 and all(far(grads[key], grads64[key]) < 1e-5 for key in grads64)
    z = rng.standard_normal((B, 8, 8, C))
    z32 = xp.asarray(z.astype(np.float32))
    for a, b in zip(pool.Parts(2).forward(z32)[0], pool.Parts(2).forward(z)[0], strict=True):
        assert far(a, b) < 1e-5
    d = rng.standard_normal((B, 2, 2, C))
    for squares in (False, True):
        grad, grad64 = pool.Grad(xp.asarray(d.astype(np.float32)), z32, squares), pool.Grad(d, z, squares)
        assert far(grad.full(), grad64.full()) < 1e-5
    for norm, kind in (("layer", "average"), ("rms", "rms"), ("none", "max"), ("none", "rms"), ("layer", "max")):
        layer, key = pool.HandOn(2, norm, dropout=0.3, kind=kind), np.uint32(12345)
        h, cache = layer.forward(z32, key=key)
        h64, cache64 = layer.forward(z, key=key)
        dh = rng.standard_normal(h64.shape)
        assert far(h, h64) < 1e-5
        assert far(layer.backward(xp.asarray(dh.astype(np.float32)), cache), layer.backward(dh, cache64)) < 1e-5


def test_kernels_of_losses():
    xp, rng = gpu(), np.random.default_rng(0)
    g, t = rng.normal(50, 40, 200), np.repeat([1.0, -1.0], 100)
    ours = goodness.threshold_loss(*(xp.asarray(v.astype(np.float32)) for v in (g, t)), 50.0, 0.3)
    loss, dg = goodness.threshold_loss(g, t, 50.0, 0.3)
    assert abs(float(ours[0]) - loss) < 1e-6 * loss and far(ours[1], dg) < 1e-5
    logits, labels = rng.normal(0, 5, (64, 10)), rng.integers(0, 10, 64)
    ours = goodness.softmax_cross_entropy(xp.asarray(logits.astype(np.float32)), xp.asarray(labels))
    loss, d = goodness.softmax_cross_entropy(logits, labels)
    assert abs(float(ours[0]) - loss) < 1e-6 * loss and far(ours[1], d) < 1e-5


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam])
def test_optimisers(make):
    xp, rng = gpu(), np.random.default_rng(0)
    start, grads = rng.standard_normal((30, 70)), rng.standard_normal((5, 30, 70))
    ours, exact = {"W": xp.asarray(start.astype(np.float32))}, {"W": start.copy()}
    mine, reference = make(ours, 0.01, decay=0.1), make(exact, 0.01, decay=0.1)
    for g in grads:
        mine.step({"W": xp.asarray(g.astype(np.float32))})
        reference.step({"W": g})
    assert far(ours["W"], exact["W"]) < 1e-6


def test_shifts_are_the_same():
    xp = gpu()
    images = np.random.default_rng(0).integers(0, 256, (40, 9, 7, 3)).astype(np.uint8)
    ours = shift(xp.asarray(images), 2, np.random.default_rng(1))
    assert np.array_equal(arrays.host(ours), shift(images, 2, np.random.default_rng(1)))


def test_without_a_gpu_one_line_says_so():
    try:
        arrays.module("cuda")
        pytest.skip("there is a GPU")
    except cli.UsageError:
        pass
    words = [sys.executable, "ff_mnist/train.py", "--device", "cuda", "--dataset", "glyphs"]
    done = subprocess.run(words, cwd=arrays.__file__.rsplit("/", 2)[0], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: --device cuda") and done.stderr.count("\n") == 1


def test_a_run_moves_between_devices(tmp_path):
    """Started on the CPU, killed after an epoch, ended on the GPU; and the record says where each part was."""
    gpu()
    script = [sys.executable, str(scripts.ROOT / "ff_mnist/train.py")]
    words = "--dataset glyphs --sizes 30,20 --n-epochs 3 --train-subset 100 --validation 100 --no-figures".split()
    subprocess.run([*script, *words, "--out", str(tmp_path)], check=True)
    folder = next(tmp_path.iterdir())
    lines = (folder / "record.jsonl").read_text().splitlines()
    (folder / "record.jsonl").write_text("\n".join(lines[:-1]) + "\n")  # as if killed before its last line
    subprocess.run([*script, "--resume", str(folder), "--device", "cuda", "--no-figures"], check=True)
    lines = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
    assert "gpu" not in lines[0]["machine"] and "final" in lines[-1]
    assert [line["machine"]["gpu"] for line in lines if "resumed_after_epoch" in line]
