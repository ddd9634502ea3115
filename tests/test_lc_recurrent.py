"""ff_cifar_lc/recurrent.py: gradients, locality in depth and in time, and a run that resumes to the same bits."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gradcheck
import numpy as np
import pytest
import scripts

from common.two_way import unroll

ROOT = Path(__file__).resolve().parent.parent
recurrent = scripts.load("ff_cifar_lc/recurrent.py")
F64, K = np.float64, 3
rng = np.random.default_rng(0)
LABELS = np.array([0, 2, 1, 1])
BOTH = np.concatenate([LABELS, (LABELS + 1) % K])
SMALL = recurrent.Config(rf=3, channels=2, steps=4, first=2, last=3, peer=0.0, n_layers=2)


def stack(cfg, dtype=F64, seed=0):
    r, hidden, layers = np.random.default_rng(seed), (5, 5, cfg.channels), []
    for i in range(cfg.n_layers):
        top = i == cfg.n_layers - 1
        above, told = (hidden, 0) if cfg.top_down and not top else (None, K)
        below = hidden if i else (5, 5, 2)
        layers.append(recurrent.TwoWay(below, cfg.channels, cfg.rf, above, told, r, dtype=dtype))
        layers[-1].params["b"] += (0.1 * r.standard_normal(layers[-1].params["b"].shape)).astype(dtype)
    return layers


def beginning(layers, x):
    return recurrent.bottom_up(layers, x)


@pytest.mark.parametrize("settings", [{}, {"objective": "max"}, {"n_layers": 3}, {"top_down": False}])
def test_gradient_is_that_of_every_step_alone(settings):
    """With what the neighbours send and the old state held as they were, the mean of L over the steps has these."""
    cfg = replace(SMALL, **settings)
    layers, x = stack(cfg), rng.standard_normal((4, 5, 5, 2))
    start, drive = beginning(layers, x)
    grads, _ = recurrent.ff_grads(layers, x, BOTH, start, drive, cfg)
    trace = list(unroll(layers, drive, [layer.lead(BOTH) for layer in layers], start, cfg.steps, cfg.damping))
    t = np.repeat([1.0, -1.0], 4) * (1 if cfg.objective == "max" else -1)
    for i, layer in enumerate(layers):

        def objective(i=i, layer=layer):
            total, old = 0.0, np.concatenate([start[i]] * 2)
            n = cfg.steps - (len(layers) - 1 - i if cfg.top_down else 0)
            for step, (h, _, now) in enumerate(trace):
                z = layer.from_below(np.concatenate([x, x]) if i == 0 else h[i - 1]) + layer.params["b"]
                z = z + (layer.from_above(h[i + 1]) if layer.above else 0)
                z = z + (layer.lead(BOTH) if "U" in layer.params else 0)
                y = cfg.damping * old + (1 - cfg.damping) * np.maximum(z, 0)
                if step >= cfg.steps - n:  # the label has reached this layer
                    g = (y**2).mean(axis=(1, 2, 3))
                    total += np.log1p(np.exp(-t * y[0].size * (g - cfg.theta))).mean()
                old = now[i]
            return total / n

        gradcheck.check(objective, layer.params, grads[i], tolerance=1e-5)


def test_no_gradient_goes_back_in_time():
    """The gradient over four steps is the mean of those of single steps, each started where the last one ended."""
    cfg = replace(SMALL, top_down=False)  # the label reaches all layers at once
    layers, x = stack(cfg), rng.standard_normal((4, 5, 5, 2))
    state, drive = beginning(layers, x)
    whole, _ = recurrent.ff_grads(layers, x, BOTH, state, drive, cfg)
    leads, alone = [layer.lead(BOTH) for layer in layers], []
    for _ in range(cfg.steps):
        alone.append(recurrent.ff_grads(layers, x, BOTH, state, drive, replace(cfg, steps=1))[0])
        _, _, state = next(unroll(layers, drive, leads, state, 1, cfg.damping))
    for i, grads in enumerate(whole):
        for k in grads:
            assert np.allclose(grads[k], np.mean([step[i][k] for step in alone], axis=0), rtol=1e-10, atol=1e-14)


def test_no_gradient_goes_down_through_layers():
    """What an upper layer does with what it is sent changes no gradient below it in a step: its weights reach a lower
    layer only as what it sends down, a number. Backpropagation through time is the counter-example: the derivative of
    the same losses, unrolled, is another one."""
    layers, x = stack(SMALL), rng.standard_normal((4, 5, 5, 2))
    start, drive = beginning(layers, x)
    cfg = replace(SMALL, steps=2)  # the upper layer's new activity is sent down in step 2: after that nobody asks
    one, _ = recurrent.ff_grads(layers, x, BOTH, start, drive, replace(SMALL, steps=1, top_down=False))
    layers[1].params["W"] *= 1.5
    other, _ = recurrent.ff_grads(layers, x, BOTH, start, drive, replace(SMALL, steps=1, top_down=False))
    assert all(np.array_equal(one[0][k], other[0][k]) for k in one[0])
    assert not np.allclose(one[1]["W"], other[1]["W"])
    layers[1].params["W"] /= 1.5
    t = np.repeat([-1.0, 1.0], 4)

    def unrolled():
        """The same losses, of both layers in both steps, where everything may change with the lower layer's weights."""
        drive, total = layers[0].from_below(x), 0.0
        for step, (_, _, now) in enumerate(
            unroll(layers, drive, [layer.lead(BOTH) for layer in layers], start, cfg.steps, cfg.damping)
        ):
            for i, y in enumerate(now):
                if step >= 1 - i:
                    loss = np.log1p(np.exp(-t * y[0].size * ((y**2).mean(axis=(1, 2, 3)) - cfg.theta))).mean()
                    total += loss / (1 if i == 0 else 2)
        return total

    ours, _ = recurrent.ff_grads(layers, x, BOTH, start, drive, cfg)
    W, place = layers[0].params["W"], np.unravel_index(np.argmax(abs(ours[0]["W"])), ours[0]["W"].shape)
    W[place] += 1e-5
    up = unrolled()
    W[place] -= 2e-5
    down = unrolled()
    W[place] += 1e-5
    assert not np.isclose((up - down) / 2e-5, ours[0]["W"][place], rtol=1e-2)


def test_the_label_comes_down_a_layer_a_step():
    """In step 1 the lower layer is alike under both labels, in step 2 it has heard of them from above."""
    layers, x = stack(SMALL), rng.standard_normal((4, 5, 5, 2))
    start, drive = beginning(layers, x)
    frames = list(unroll(layers, drive, [layer.lead(BOTH) for layer in layers], start, 2, SMALL.damping))
    assert np.array_equal(frames[0][2][0][:4], frames[0][2][0][4:])
    assert not np.allclose(frames[0][2][1][:4], frames[0][2][1][4:])
    assert not np.allclose(frames[1][2][0][:4], frames[1][2][0][4:])


def test_peer_normalisation_pulls_silent_units_up_and_loud_ones_down():
    """Added to every row's dL/dz: its sum over rows and steps, in b's gradient, is the strength times the distance from
    the mean of the running means, which move towards what the right rows do."""
    found = []
    for peer in (0.0, 0.5):
        layers, x = stack(SMALL), np.random.default_rng(3).standard_normal((4, 5, 5, 2))
        start, drive = beginning(layers, x)
        grads, _ = recurrent.ff_grads(layers, x, BOTH, start, drive, replace(SMALL, peer=peer, steps=2))
        found.append((grads, [layer.state["mean"] for layer in layers]))
    (plain, means), (pulled, same) = found
    assert all(np.array_equal(a, b) for a, b in zip(means, same, strict=True))
    for i, mean in ((0, means[0]), (1, None)):
        difference = pulled[i]["b"] - plain[i]["b"]
        assert abs(difference.mean()) < 1e-12  # towards the layer's mean: none of it is for all units alike
        if mean is not None:  # one step counts for the lower layer
            assert np.allclose(difference, 0.5 * (mean - mean.mean()))


@pytest.mark.parametrize("settings", [{}, {"n_layers": 3, "channels": 3}, {"top_down": False}])
def test_kernels_and_formulas_agree(settings):
    cfg = replace(SMALL, **settings)
    x = rng.standard_normal((4, 5, 5, 2))
    found = []
    for dtype in (F64, np.float32):
        layers = stack(cfg, dtype)
        start, drive = beginning(layers, x.astype(dtype))
        found.append(recurrent.ff_grads(layers, x.astype(dtype), BOTH, start, drive, cfg))
    for exact, ours in zip(found[0][0], found[1][0], strict=True):
        for k in exact:
            assert np.linalg.norm(ours[k] - exact[k]) < 1e-5 * np.linalg.norm(exact[k])


def test_votes_follow_the_objective():
    g = np.zeros((4, 2, 1, 3))
    g[1:3, :, 0, 2], g[0, :, 0, 0] = 1.0, 9.0  # steps 2 and 3 count
    assert recurrent.vote(g, SMALL)[0] in (0, 1) and recurrent.vote(g, replace(SMALL, objective="max"))[0] == 2


def test_an_answer_does_not_depend_on_its_neighbours():
    cfg = replace(SMALL, rf=3)
    net = recurrent.Net(cfg, (6, 6, 3), 10, np.random.default_rng(1))
    x = rng.standard_normal((5, 6, 6, 3)).astype(np.float32)
    every, one = (recurrent.goodness_of_labels(net, some, cfg, 10) for some in (x, x[:1]))
    assert every.shape == (4, 2, 5, 10) and np.allclose(every[:, :, :1], one, rtol=1e-5)


FLAGS = "--dataset shapes --train-subset 60 --validation 40 --eval-subset 20 --no-full-test --rf 3 --batch-size 20"


def call(cwd, *flags):
    command = [sys.executable, str(ROOT / "ff_cifar_lc/recurrent.py"), *map(str, flags)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("more", ["", "--objective max --n-layers 3", "--no-top-down --schedule half"])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, more):
    words = [*FLAGS.split(), *more.split(), "--n-epochs", "3", "--no-figures"]
    done = call(tmp_path, *words, "--out", "whole", "--save", "whole.npz")
    assert done.returncode == 0 and "test errors" in done.stdout, done.stderr
    (folder,) = (tmp_path / "whole").iterdir()
    whole = np.load(tmp_path / "whole.npz")
    lines = (folder / "record.jsonl").read_text().splitlines()
    final = json.loads(lines[-1])["final"]
    assert {"acc", "softmax_acc", "bp_acc", "step_acc"} <= final["test"].keys() and final["parameters"] > 0
    process = subprocess.Popen([sys.executable, str(ROOT / "ff_cifar_lc/recurrent.py"), *words, "--out", "cut"],
                               cwd=tmp_path, stdout=subprocess.PIPE, text=True)  # fmt: skip
    for line in process.stdout:
        if line.startswith("epoch   1"):
            process.kill()  # two epochs are missing: generators, moments, means and schedule have to go on
    process.wait()
    process.stdout.close()
    (folder,) = (tmp_path / "cut").iterdir()
    assert '"final"' not in (folder / "record.jsonl").read_text()
    done = call(tmp_path, "--resume", folder, "--no-figures", "--save", "again.npz")
    assert done.returncode == 0 and "epoch   3" in done.stdout, done.stderr
    again = np.load(tmp_path / "again.npz")
    assert set(whole) == set(again) and all(np.array_equal(whole[k], again[k]) for k in whole if k != "__meta__")


@pytest.mark.parametrize(
    "flags, said",
    [
        ("--rf 4", "--rf 4: an odd number"),
        ("--first 5 --last 3", "--first 5 --last 3"),
        ("--n-layers 11", "--n-layers 11"),
        ("--damping 1", "--damping"),
        ("--theta 0", "--theta"),
    ],
)
def test_mistakes_are_one_line(tmp_path, flags, said):
    done = call(tmp_path, *FLAGS.split(), *flags.split())
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_figures(tmp_path):
    done = call(tmp_path, *FLAGS.split(), "--n-epochs", 2, "--snapshot-every", 1, "--out", "out")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "out").iterdir()
    drawn = {path.name: path.stat().st_size for path in (folder / "figures").iterdir()}
    assert drawn.keys() == {"curves.png", "steps.png"} and max(drawn.values()) < 200_000
