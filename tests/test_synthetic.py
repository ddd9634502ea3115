"""ff_synthetic/train.py: the paper's counts, gradients of all eight cells, locality, runs that are stopped."""

import json
import subprocess
import sys

import gradcheck
import numpy as np
import pytest
import scripts

from common import record
from common.goodness import softmax_cross_entropy
from viz import ff_synthetic as figures
from viz import results

synthetic = scripts.load("ff_synthetic/train.py")
rng = np.random.default_rng(0)
CFG = synthetic.Config()


def student(name, K=4, double=False):
    made = synthetic.students_of(name, K, CFG, np.random.default_rng(1))[0]
    if double:
        for part in made.parts:
            for values in (part.params, part.state):
                for k in values:
                    values[k] = values[k].astype(np.float64)
    return made


def test_the_papers_counts():
    """App. E, K = 10; and what grows with K."""
    cfg = CFG
    dtg, deepsup, bp = (student(name, 10) for name in ("dtg", "deepsup", "bp"))
    assert (dtg.learned_numbers(), dtg.fixed_numbers()) == (56_068, 5_160)
    assert deepsup.learned_numbers() == 61_224 and bp.learned_numbers() == 57_354
    assert sum(s.learned_numbers() for s in synthetic.students_of("ensemble", 10, cfg, rng)) == 229_416
    assert student("deepsup", 50).learned_numbers() - student("dtg", 50).learned_numbers() == 4 * 129 * 50 - 4


@pytest.mark.parametrize("name", [*synthetic.CELLS, "bp"])
def test_gradients(name):
    """Every part's gradient: of its own layer's loss where layers are detached, else of the sum of all losses."""
    made = student(name, double=True)
    x, labels = rng.standard_normal((6, synthetic.D_IN)), np.array([0, 1, 2, 3, 1, 1])
    found = {}
    made.take = lambda part, grads: found.update({(id(part), k): np.asarray(g) for k, g in grads.items()})
    made.step(x, labels)

    def losses():
        return {i: softmax_cross_entropy(psi, labels)[0] for i, psi in made.forward(x)[0].items()}

    for i in range(synthetic.LAYERS):
        own = [made.layers[i], made.heads.get(i), made.temperatures.get(i)]
        for part in (part for part in own if part and part.params):
            grads = {k: found[id(part), k] for k in part.params}
            whole = (lambda i=i: losses()[i]) if made.local else (lambda: sum(losses().values()))
            gradcheck.check(whole, part.params, grads, tolerance=2e-5)


@pytest.mark.parametrize("name", synthetic.CELLS)
def test_only_detached_cells_are_local(name):
    def after(perturbed):
        made = student(name)
        made.layers[perturbed].params["W"] *= np.float32(1.5)
        for _ in range(3):
            made.step(x, labels)
        return made.layers[0].params["W"]

    x, labels = rng.standard_normal((32, synthetic.D_IN)).astype(np.float32), rng.integers(0, 4, 32)
    assert np.array_equal(after(2), after(3)) == synthetic.CELLS[name]["local"]


@pytest.mark.parametrize("teacher", ["default", "he", "orthogonal"])
def test_teachers(teacher):
    cfg = synthetic.Config(teacher=teacher, train_rows=300, test_rows=100)
    (x, y), (x_test, y_test) = synthetic.teacher_labels(5, cfg, 3)
    assert x.shape == (300, 50) and x_test.shape == (100, 50) and len(np.unique(np.append(y, y_test))) > 1
    again = synthetic.teacher_labels(5, cfg, 3)
    assert np.array_equal(again[0][0], x) and np.array_equal(again[1][1], y_test)
    (more, other), _ = synthetic.teacher_labels(128, cfg, 3)  # as many classes as hidden units
    assert np.array_equal(more, x) and not np.array_equal(other, y)  # along K nothing but the output layer is new
    assert not np.array_equal(synthetic.teacher_labels(5, cfg, 4)[0][0], x)


def test_a_teacher_is_no_linear_map():
    """Also with as many classes as hidden units: least squares cannot tell most of its labels."""
    (x, y), _ = synthetic.teacher_labels(128, synthetic.Config(teacher="he", train_rows=2000, test_rows=1), 0)
    A = np.linalg.lstsq(x, np.eye(128)[y], rcond=None)[0]
    assert ((x @ A).argmax(axis=1) == y).mean() < 0.6


def test_learned_heads_can_start_where_random_ones_stay():
    cfg = synthetic.Config(heads="random")
    cells = ("through-plain-learned", "through-plain-random")
    learned, fixed = (synthetic.students_of(name, 4, cfg, np.random.default_rng(1))[0] for name in cells)
    for i in range(synthetic.LAYERS):
        assert np.array_equal(learned.heads[i].params["W"], fixed.heads[i].state["R"])
        assert np.array_equal(learned.layers[i].params["W"], fixed.layers[i].params["W"])


def call(cwd, *flags, seeds=True):
    words = "--steps 30 --classes 5,10 --methods dtg,ensemble --train-rows 500 --test-rows 100 --jobs 2".split()
    words += ["--seeds", "1,2"] if seeds else []
    command = [sys.executable, str(scripts.ROOT / "ff_synthetic" / "train.py"), *words, "--out", "out", *flags]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_a_stopped_run_goes_on(tmp_path):
    done = call(tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "out").iterdir()
    lines = record.read(folder)
    cells = {(line["method"], line["K"], line["seed"]): line for line in lines if "method" in line}
    assert len(cells) == 8 and lines[-1]["final"]["cells"] == 8
    assert 0 <= lines[-1]["final"]["test"]["dtg-5_acc"] <= 1 and "56,068 learned and 5,160 fixed" in done.stdout
    assert (folder / "figures" / "differences_steps_30_train_rows_500_test_rows_100.png").exists(), done.stdout
    kept = [json.dumps(line) for line in lines[:4]]
    (folder / "record.jsonl").write_text("\n".join(kept) + '\n{"method": "dt', encoding="utf-8")
    again = call(tmp_path, "--resume", str(folder), seeds=False)
    assert again.returncode == 0 and "3 of them done" in again.stdout, again.stderr
    for line in record.read(folder):
        if "method" in line:
            first = cells.pop((line["method"], line["K"], line["seed"]))
            assert {k: v for k, v in line.items() if k != "seconds"} == {
                k: v for k, v in first.items() if k != "seconds"
            }
    assert not cells


@pytest.mark.parametrize(
    "flags, word", [("--methods dgt", "dgt"), ("--classes 1", "--classes"), ("--data-dir d", "--data-dir")]
)
def test_mistakes_end_in_one_line(tmp_path, flags, word):
    done = call(tmp_path, *flags.split())
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and word in done.stderr


def lines_of(method, K, accs, gap=0.1):
    return [
        {
            "method": method,
            "K": K,
            "seed": i,
            "learned": 5,
            "fixed": 1,
            "flop": 1e12,
            "test_acc": acc,
            "train_acc": acc + gap,
        }
        for i, acc in enumerate(accs)
    ]


def test_tables_and_figures(tmp_path):
    """Paired by teacher; the paper's corners are cells of the eight; the trend by resamples."""
    lines = [
        {"command": "python ff_synthetic/train.py", "config": {"teacher": "default"}, "seeds": [0, 1], "dataset": {}}
    ]
    for K, more in ((5, 0.0), (10, 0.0), (15, 0.0), (20, 0.0), (30, 0.02), (50, 0.02)):
        for i, name in enumerate(synthetic.CELLS):
            lines += lines_of(name, K, [0.5 + 0.001 * i, 0.7 + 0.001 * i])
        lines += lines_of("bp", K, [0.49 - more, 0.69 - more]) + lines_of("ensemble", K, [0.52, 0.72])
    lines.append({"final": {"cells": 1}})
    found = figures.collect([lines])
    names = list(synthetic.CELLS)
    assert np.allclose(figures.differences(found, "bp", 5), 1.0) and np.allclose(
        figures.differences(found, "bp", 30), 3.0
    )
    assert names[0] == "local-squares-random" and found["dtg", 5] == found[names[0], 5]
    gap = names.index("through-plain-learned")
    assert np.allclose(figures.differences(found, "deepsup", 5), -0.1 * gap)
    middle, low, high = figures.contrast(found)
    assert low <= middle <= high and np.isclose(middle, 0.0)
    assert figures.contrast({key: cells for key, cells in found.items() if key[1] != 50}) is None
    effects = figures.factor_effects(found, 5)
    assert np.allclose(effects[0,], -0.4) and np.allclose(effects[1,], -0.2) and np.allclose(effects[2,], -0.1)
    assert all(np.allclose(effects[some], 0) for some in effects if len(some) > 1)
    for i, name in enumerate(names):  # any eight numbers
        found[name, 5] = {0: {"test_acc": (i * i % 7) / 10}}
    effects = figures.factor_effects(found, 5)
    corner = 100 * (found[names[0], 5][0]["test_acc"] - found["through-plain-learned", 5][0]["test_acc"])
    assert np.isclose(corner, sum(e[0] for some, e in effects.items() if len(some) % 2))
    assert np.isclose(figures.half_width(np.array([1.0, 3.0])), 12.706)
    table = results.synthetic_pairs([[lines]])
    assert "| as in the paper | 5 | +1.00 ± 0.00 (2/2) | +0.38 ± 0.84 |" in table and "+0.59 to +2.15" in table
    assert "| 60.0 / +10.0 | 84.2 / +14.5 | +0.0 | +1.4 |" in results.synthetic_gaps([[lines]])
    assert "| 5 | 5 + 1 | 5 + 1 | 5 + 1 | 5 + 1 | 1.00 | 1.00 | 1.00 | 1.00 | 0.0 % |" in results.synthetic_counts(
        [[lines]]
    )
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [sys.executable, "viz/ff_synthetic.py", str(tmp_path / "r.jsonl"), "--out", str(tmp_path / "drawn")]
    done = subprocess.run(command, cwd=scripts.ROOT, capture_output=True, text=True)
    drawn = {path.name: path.stat().st_size for path in (tmp_path / "drawn").iterdir()}
    assert done.returncode == 0 and drawn.keys() == {"differences.png", "factors.png"}, done.stderr
    assert max(drawn.values()) < 200_000
