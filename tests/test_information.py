"""Information estimates on data whose information is known, and diagnose.py on a small run."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import scripts

from common import information
from common.cli import UsageError
from viz import results

rng = np.random.default_rng(0)


def gaussians(distance, n=20000):
    """Two equally frequent classes, unit variance, means `distance` apart -> g, labels, I(g; Y) by quadrature."""
    labels = rng.integers(0, 2, n)
    x = np.linspace(-12, 12 + distance, 200001)
    each = [np.exp(-((x - m) ** 2) / 2) / np.sqrt(2 * np.pi) for m in (0, distance)]
    p = sum(each) / 2
    step = x[1] - x[0]

    def h(q):
        return -np.sum(q[q > 1e-300] * np.log2(q[q > 1e-300])) * step

    return rng.standard_normal(n) + distance * labels, labels, h(p) - sum(h(q) for q in each) / 2


@pytest.mark.parametrize("distance", [1.0, 3.0])
def test_known_information(distance):
    g, labels, bits = gaussians(distance)
    assert abs(information.histogram(g, labels, 50) - bits) < 0.02
    assert information.histogram(g, labels, 500) > information.histogram(g, labels, 50)  # finite samples


@pytest.mark.parametrize("distance", [1.0, 3.0])
def test_neighbours_find_known_information(distance):
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    g, labels, bits = gaussians(distance, 4000)
    assert abs(information.ksg(g, labels) - bits) < 0.05
    assert information.ksg(g, rng.permutation(labels)) < 0.02


def test_without_scikit_learn_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.feature_selection", None)
    with pytest.raises(UsageError, match="pip install scikit-learn"):
        information.ksg(np.zeros(10), np.zeros(10, int))


def test_shuffled_labels_say_nothing():
    g, labels, _ = gaussians(3.0)
    shuffled = rng.permutation(labels)
    assert information.histogram(g, shuffled, 50) < 0.01
    x = np.stack([g, g**2], axis=1)[:2000]
    assert information.fano(information.probe_error(x, shuffled[:2000], 2, epochs=5), 2) < 0.05


def test_fano():
    assert np.isclose(information.fano(0.0, 8), 3) and information.fano(0.9, 10) < 1e-12
    assert np.isclose(information.fano(0.1, 10), np.log2(10) - 0.4689955936 - 0.1 * np.log2(9))
    for distance in (1.0, 3.0):  # a bound: below the truth
        g, labels, bits = gaussians(distance, 4000)
        error = information.probe_error(g[:, None], labels, 2, epochs=10)
        assert information.fano(error, 2) < bits + 0.03


def test_a_run_is_diagnosed(tmp_path):
    environment = os.environ | {"FF_CACHE": str(tmp_path / "cache")}

    def call(*words):
        command = [sys.executable, str(scripts.ROOT / "ff_cnn" / words[0]), *words[1:]]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    words = "--dataset shapes --train-subset 200 --validation 60 --n-epochs 1 --batch-size 50 --width 0.03 --out out"
    done = call("train.py", *words.split(), "--no-figures")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "out").iterdir()
    done = call("diagnose.py", str(folder), "--images", "200", "--no-ksg")
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "diagnosis.jsonl").read_text())["final"]
    assert len(found["vector"]) == 7 and found["any_acc"] >= max(found["layer_acc"]) and found["images"] == 200
    lines = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
    assert len(found["T"]) == len(lines[1]["T"]) and np.allclose(found["T"], lines[1]["T"])  # the trained network
    picture = [sys.executable, str(scripts.ROOT / "viz" / "diagnose.py"), str(folder)]
    done = subprocess.run(picture, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and 10_000 < (folder / "figures" / "information.png").stat().st_size < 200_000, (
        done.stderr
    )
    table = results.information([[[json.loads((folder / "diagnosis.jsonl").read_text())]]]).splitlines()
    assert len(table) == 2 + 7 + 6 and table[2].startswith(
        f"| 0 | {found['dim'][0]} | {found['histogram']['50'][0]:.2f}"
    )
    words = words.replace("--out out", "--out bp --credit bp --train-subset 60")
    assert call("train.py", *words.split(), "--no-figures").returncode == 0
    (folder,) = (tmp_path / "bp").iterdir()
    done = call("diagnose.py", str(folder), "--images", "100", "--no-ksg")
    found = json.loads((folder / "diagnosis.jsonl").read_text())["final"]
    assert done.returncode == 0 and "layer_acc" not in found and len(found["gap"]) == 7, done.stderr
    done = call("diagnose.py", "nowhere")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
