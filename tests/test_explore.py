"""explore.py: a variant changes what it says and nothing else, a killed table goes on, effects are paired."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import explore
import numpy as np
import pytest
import train
from test_viz import lines

from common import data, record
from viz import ff_cifar_lc_depth, results

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = [(table, *line) for table, (_, rows) in explore.TABLES.items() for line in rows]
OURS = {"step", "goodness", "lr_factors", "label_scale"}  # what train.py has no flag for


@pytest.fixture(scope="module")
def shapes():
    return data.load("shapes", None)


@pytest.mark.parametrize("table", explore.TABLES)
def test_variants_are_settings_that_train_can_run(table, shapes):
    reference, rows = explore.TABLES[table]
    names = [name for _, name, _ in rows]
    assert len(set(names)) == len(names)
    if table != "depth":  # it has no reference line: FF and BP are compared, at every depth
        assert rows[0] == ("reference", "reference", {})
    for _, name, settings in rows:
        known = {k: v for k, v in settings.items() if k not in OURS}
        small = {"train_subset": 64, "validation": 100, "eval_subset": 100}
        train.check(replace(train.Config(), **reference | known | small), shapes)
        if name != "reference" and table != "depth":
            assert settings.items() - OURS and any(
                k in OURS or v != (reference | {"bp_baseline": True}).get(k, getattr(train.Config(), k))
                for k, v in settings.items()
            ), name


def net(cfg, shapes, seed=0):
    split = train.Split(shapes, cfg)
    (layers, opts), _, rngs = train.networks(cfg, (32, 32, 3), 10)
    x, y = split.floats(split.train[0][:16]), split.train[1][:16]
    return layers, opts, x, y, rngs["ff"]


def small(**settings):
    return replace(
        train.Config(), bp_baseline=False, train_subset=64, validation=100, eval_subset=64, rf="5,3", channels=4,
        **settings,
    )  # fmt: skip


class Descent:
    """w -= lr g, which does not blow up roundings as Adam's first step does; it remembers g."""

    def __init__(self, params):
        self.params, self.lr = params, 1.0

    def step(self, grads):
        self.grads = grads
        for name, g in grads.items():
            self.params[name] -= self.lr * g


def after(step, cfg, shapes):
    """What one step of gradient descent adds to the weights, layer by layer."""
    layers, _, x, y, rng = net(cfg, shapes)
    start = [{k: p.copy() for k, p in layer.params.items()} for layer in layers]
    step(layers, [Descent(layer.params) for layer in layers], x, y, cfg, rng, 10)
    return [{k: p - old[k] for k, p in layer.params.items()} for layer, old in zip(layers, start, strict=True)]


def difference(a, b):
    """The largest difference, relative to the largest number."""
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize("step", [explore.regions(1), explore.lr_factors((1.0, 1.0))], ids=["regions", "lr"])
def test_a_variant_that_changes_nothing_is_the_reference(step, shapes):
    """One region is the whole map: then the step is train.ff_step."""
    for ours, theirs in zip(after(step, small(), shapes), after(train.ff_step, small(), shapes), strict=True):
        for name in theirs:
            assert difference(ours[name], theirs[name]) < 1e-4, name


@pytest.mark.parametrize("step", [explore.regions(2), explore.lr_factors((1.0, 0.5))], ids=["regions", "lr"])
def test_a_variant_changes_something(step, shapes):
    ours, theirs = after(step, small(), shapes)[1]["W"], after(train.ff_step, small(), shapes)[1]["W"]
    assert difference(ours, theirs) > 0.01


def test_regions_are_losses_of_their_own(shapes):
    """The gradient of a sum over quarters, against differences of that sum, float64."""
    cfg = small(beta=20.0, peer=0.0)
    layers, _, x, y, _ = net(cfg, shapes)
    layer, rng = layers[0], np.random.default_rng(0)
    layer.params.update({k: p.astype(np.float64) for k, p in layer.params.items()})
    x = x.astype(np.float64)
    opt = Descent(layer.params)
    opt.lr = 0.0

    def loss():
        return explore.regions(2)([layer], [opt], x, y, cfg, None, 10)[0, 0]

    loss()
    for name, grad in opt.grads.items():
        direction, eps = rng.standard_normal(grad.shape), 1e-5
        start, grad = layer.params[name].copy(), grad.copy()
        layer.params[name][...] = start + eps * direction
        up = loss()
        layer.params[name][...] = start - eps * direction
        down = loss()
        layer.params[name][...] = start
        assert np.isclose((up - down) / (2 * eps), (grad * direction).sum(), rtol=1e-5, atol=1e-9), name


def test_without_renormalisation_the_first_layer_learns_and_predicts_the_same(shapes):
    """Only the second layer can notice that it gets unscaled activities."""
    cfg = small(label="slot", peer=0.0, negatives="uniform", neutral=False, loss="threshold", beta=1.0)
    raw, usual = after(explore.raw_step, cfg, shapes), after(train.ff_step_pairs, cfg, shapes)
    assert difference(raw[0]["W"], usual[0]["W"]) < 1e-4 and difference(raw[1]["W"], usual[1]["W"]) > 0.01
    layers, _, x, y, _ = net(cfg, shapes)
    g, scaled = explore.raw_goodness(layers, x, cfg, 10), train.ff_goodness(layers, x, cfg, 10)
    assert np.allclose(g[0], scaled[0], rtol=1e-5) and not np.allclose(g[1], scaled[1], rtol=1e-2)


def call(folder, *flags):
    command = [sys.executable, str(ROOT / "ff_cifar_lc" / "explore.py"), *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_a_table_is_recorded_resumed_and_judged_on_validation_images_only(tmp_path):
    flags = "--table depth --only 8 --train-subset 128 --n-epochs 1 --validation 100 --dataset shapes --out out"
    done = call(tmp_path, *flags.split(), "--seeds", "0-1")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "out").iterdir()
    first, *rows, final = record.read(folder)
    assert first["seeds"] == [0, 1] and final == {"final": {"lines": 8}} and len(rows) == 8
    assert {"val_acc", "train_acc", "layer_acc", "seconds"} == rows[0]["ff"].keys()
    assert all(line["config"]["channels"] == 8 and line["config"]["beta"] == 512 for line in rows)
    assert "test" not in json.dumps(rows).replace("full_test", "")
    record.cut(folder, 4)  # killed after three lines, in the middle of the fourth
    with open(folder / "record.jsonl", "a") as file:
        file.write('{"variant": "4 la')
    done = call(tmp_path, "--resume", str(folder))
    assert done.returncode == 0, done.stderr
    assert {"resumed_after", "commit"} == record.read(folder)[4].keys()
    again = [line for line in record.read(folder) if "variant" in line]
    for old, new in zip(rows, again, strict=True):
        assert (old["variant"], old["seed"], old["ff"]["val_acc"]) == (
            new["variant"],
            new["seed"],
            new["ff"]["val_acc"],
        )
    found, config = ff_cifar_lc_depth.load(folder)
    assert found.keys() == {8} and found[8].keys() == {1, 2, 3, 4} and len(found[8][1]["bp"]) == 2
    ff_cifar_lc_depth.draw(found, config)


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--only", "nothing"), "no variant"),
        (("--validation", "0"), "--validation"),
        (("--save", "x.npz"), "no use for --save"),
        (("--table", "none"), "--table"),
    ],
)
def test_mistakes_are_one_line(tmp_path, flags, message):
    done = call(tmp_path, "--dataset", "shapes", *flags)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_effects_are_paired_by_seed():
    def line(variant, seed, ff, bp=None, layers=(0.5, 0.5), silent=False):
        nets = {"ff": {"val_acc": ff, "layer_acc": list(layers)}} | ({"bp": {"val_acc": bp}} if bp else {})
        about = {"variant": variant, "group": "reference" if variant == "reference" else "x", "seed": seed}
        return about | {"config": {"skip_first": silent}} | nets

    run = [line("reference", 0, 0.5, 0.6), line("reference", 1, 0.3, 0.6), line("b", 1, 0.4, 0.5), line("b", 0, 0.6)]
    first = {"command": "python ff_cifar_lc/explore.py --table x --seeds 0-1", "seeds": [0, 1], "commit": "abc"}
    table, source = results.effects([[[first, *run]]]).split("\n\n")
    assert source == "`python ff_cifar_lc/explore.py --table x --seeds 0-1`, commit abc"
    rows = [row.split(" | ") for row in table.splitlines()]
    assert rows[0][2:] == [
        "FF effect, points", "FF validation accuracy, %", "BP twin effect, points", "BP twin validation accuracy, %",
        "n |",
    ]  # fmt: skip
    assert rows[2] == ["| ", "reference", "–", "40.00 ± 14.14", "–", "60.00 ± 0.00", "2 |"]
    assert rows[-1][1:] == ["b", "+10.00 ± 0.00", "50.00 ± 14.14", "−10.00", "50.00", "2 |"]
    alone = next(row for row in rows if row[1] == "layer 0 alone")
    assert alone[2:] == ["+10.00 ± 14.14", "50.00 ± 0.00", "–", "–", "2 |"]
    run = [line("reference", 0, 0.5, silent=True), line("b", 0, 0.4, layers=(0.75, 0.5), silent=True)]
    rows = [row.split(" | ") for row in results.effects([[[first, *run]]]).splitlines()]
    assert rows[0][4:6] == ["First layer alone: effect, points", "First layer alone: validation accuracy, %"]
    assert rows[3][2:] == ["−10.00", "40.00", "+25.00", "75.00", "1 |"]


def test_the_depth_table_pairs_ff_and_bp_by_seed():
    def line(seed, channels, n_layers, ff, bp):
        about = {"variant": "x", "seed": seed, "config": {"channels": channels, "n_layers": n_layers}}
        return about | {"ff": {"val_acc": ff}, "bp": {"val_acc": bp}}

    first = {"command": "python ff_cifar_lc/explore.py --table depth --seeds 0-1", "seeds": [0, 1], "commit": "abc"}
    run = [line(0, 16, 1, 0.6, 0.5), line(1, 16, 1, 0.7, 0.4), line(0, 8, 2, 0.5, 0.6), {"resumed_after": 3}]
    table, source = results.lc_depth([[[first, *run, {"commit": "def"}]]]).split("\n\n")
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()]
    assert rows[2] == ["8", "2", "50.00", "60.00", "−10.00", "1"]
    assert rows[3] == ["16", "1", "65.00 ± 7.07", "45.00 ± 7.07", "+20.00 ± 14.14", "2"]
    assert source.endswith("commit abc, def")


def test_the_depth_figure_refuses_other_records(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(line) for line in lines()) + "\n")
    with pytest.raises(record.RecordError, match="no record of"):
        ff_cifar_lc_depth.load(tmp_path / "a.jsonl")
