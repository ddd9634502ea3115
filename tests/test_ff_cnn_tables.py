"""viz/ff_cnn_tables.py: what it draws from records, and what it says where there are none."""

import json
import subprocess
import sys

import numpy as np
import pytest
import scripts

from common.record import RecordError
from viz import ff_cnn_tables

METHODS = [key for key in ff_cnn_tables.METHODS if key[0] != "cumulative"]


def write(folder, name, lines):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def table(folder, lines, dataset="cifar10"):
    write(folder, dataset, [{"config": {}, "dataset": {"name": dataset}}, *lines, {"final": {"lines": len(lines)}}])


def variant(name, config, acc, seed=0, **more):
    return {"variant": name, "group": name, "seed": seed, "config": config, "head": {"val_acc": acc}} | more


@pytest.fixture
def results(tmp_path):
    for i, (rule, credit) in enumerate(METHODS):
        for seed in (0, 1):
            first = {"config": {"rule": rule, "credit": credit}, "dataset": {"name": "cifar10"}}
            test = {"test": {"head_acc": 0.6 + 0.02 * i + 0.01 * seed, "sum_acc": 0.1}}
            run = [first, {"epoch": 1, "seconds": 300.0}, {"final": test}]
            write(tmp_path / "ff_cnn", f"{rule}-{credit}-{seed}", run)
    first = {"config": {"gamma": 0.7, "remedy": "none"}, "dataset": {"name": "cifar10"}}
    write(
        tmp_path / "ff_cnn", "cumulative", [first, {"epoch": 1, "seconds": 9.0}, {"final": {"test": {"sum_acc": 0.5}}}]
    )
    cells = [
        variant(f"{c} {r} {p}", {"credit": c, "rule": r, "projection": p}, 0.5 + 0.1 * (c == "deepsup"))
        for c in ("local", "deepsup")
        for r in ("dtg", "linear")
        for p in ("random", "learned")
    ]
    table(tmp_path / "ff_cnn_factorial", [*cells, variant("bp", {"credit": "bp", "projection": "rule"}, 0.9)])
    deep = [
        variant(f"{b} {r}", {"rule": r, "credit": c, "backbone": b}, 0.5)
        for b in ff_cnn_tables.PLAIN
        for r, c in METHODS
        if (r, c) in (("dtg", "local"), ("linear", "deepsup"))
    ]
    table(tmp_path / "ff_cnn_depth", deep)
    for dataset, gap in (("cifar100", 0.2), ("cifar100-coarse", 0.1)):
        curves = [
            variant(r, {"rule": r, "credit": c}, 0.5, curve=[{"head": 0.3}, {"head": 0.4 + gap * (c != "local")}])
            for r, c in (("dtg", "local"), ("linear", "deepsup"), ("dtg", "bp"))
        ]
        table(tmp_path / "ff_cnn_labels", curves, dataset)
    return tmp_path


def test_pictures(results):
    command = [sys.executable, "viz/ff_cnn_tables.py", "--results", str(results), "--out", str(results / "drawn")]
    done = subprocess.run(command, cwd=scripts.ROOT, capture_output=True, text=True)
    drawn = {path.name: path.stat().st_size for path in (results / "drawn").iterdir()}
    assert done.returncode == 0 and drawn.keys() == {f"{n}.png" for n in ("family", "factorial", "depth", "labels")}
    assert max(drawn.values()) < 200_000
    (results / "ff_cnn_depth" / "cifar10.jsonl").unlink()
    done = subprocess.run(command, cwd=scripts.ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "no finished table" in done.stderr and done.stderr.count("\n") == 1


def test_what_is_drawn(results):
    left, _ = ff_cnn_tables.family(results / "ff_cnn").axes
    assert len(left.get_yticks()) == len(METHODS) + 1  # the head's answer where there is one, else the blocks' sum
    means = sorted(float(line.get_xdata()[0]) for line in left.lines if len(line.get_xdata()) == 1)
    assert any(np.isclose(x, 50) for x in means) and any(np.isclose(x, 60.5) for x in means)
    lines = {
        line.get_label(): line.get_ydata() for line in ff_cnn_tables.labels(results / "ff_cnn_labels").axes[0].lines
    }
    assert np.allclose(lines["minus BP, one head, 100 labels"], [0, -20])
    assert np.allclose(lines["minus BP, one head, 20 labels"], [0, -10])
    (factorial,) = ff_cnn_tables.factorial(results / "ff_cnn_factorial").axes
    heights = {float(y) for line in factorial.lines for y in line.get_ydata()}
    assert not any(y > 80 for y in heights)  # backpropagation from one head is no cell
    with pytest.raises(RecordError, match="no finished run"):
        ff_cnn_tables.family(results / "ff_cnn_depth" / "none")
