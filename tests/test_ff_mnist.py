"""The scripts of ff_mnist as their users run them: from another folder, twice, killed, resumed, with wrong flags."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from common import record

ROOT = Path(__file__).resolve().parent.parent
IMAGES = "--dataset glyphs --train-subset 300 --validation 100 --eval-subset 50 --n-epochs 2 --batch-size 50".split()
SMALL = {
    "train": [*IMAGES, "--sizes", "30,20,20", "--snapshot-every", "1"],
    "unsupervised": [*IMAGES, "--sizes", "30,20,20", "--snapshot-every", "1"],
    "recurrent": [*IMAGES, "--sizes", "20,15", "--snapshot-every", "1"],
    "backprop": [*IMAGES, "--sizes", "30,20"],
    "sequence": "--strings 8 --validation 2 --sizes 30,20 --n-epochs 2".split(),
    "amsga": [*IMAGES, "--sizes", "30,20,20", "--snapshot-every", "1"],
    "hff": [*IMAGES, "--sizes", "30,20"],
    "dtg_mlp": [*IMAGES, "--sizes", "30,20,20"],
}


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def call(cache, cwd, script, *flags):
    """Run a script in folder cwd -> the finished process."""
    environment = os.environ | {"FF_CACHE": str(cache)}
    environment.pop("FF_DATA", None)
    flags = ["--out", "out", *([] if "--figures" in flags else ["--no-figures"]), *flags]
    command = [sys.executable, str(ROOT / "ff_mnist" / f"{script}.py"), *SMALL[script], *flags]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def finished(cache, cwd, script, *flags):
    done = call(cache, cwd, script, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    return done, sorted((cwd / "out").iterdir())


def without_times(value):
    """A record's lines without what two identical runs may differ in."""
    if isinstance(value, dict):
        return {
            k: without_times(v)
            for k, v in value.items()
            if k not in ("seconds", "peak_gb", "command", "resumed_after_epoch")
        }
    return [without_times(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("script", SMALL)
def test_same_seed_same_record(cache, tmp_path, script):
    done, two = finished(cache, tmp_path, script, "--seeds", "1,2")
    assert "mean ± sd over 2 seeds" in done.stdout
    _, three = finished(cache, tmp_path, script, "--seed", "1")
    (new,) = set(three) - set(two)
    first, other, again = (
        without_times(record.read(folder)) for folder in (*sorted(two, key=lambda f: f.name[15:]), new)
    )
    assert first == again != other
    assert [line["epoch"] for line in first if "epoch" in line] == [1, 2]
    held_out = "test" if script != "sequence" else "val"
    assert 0 <= first[-1]["final"][held_out]["acc"] <= 1 and {"train", "val"} <= set(first[1])


FLAGS = {
    "train": [
        "--negatives all --loss softmax --beta 0.1",
        "--negatives all --loss margin --beta 0.1 --optimiser adam",
        "--negatives uniform --goodness mean --norm none --collaborate 0.3 --jitter 2",
        "--sizes 30 --norm length --peer 0 --schedule cosine --validation 0",
    ],
    "unsupervised": ["--local", "--readout 1 --blurs 2 --validation 0 --snapshot-every 0"],
    "recurrent": ["--sizes 20 --steps 3 --first 1 --last 3", "--optimiser adam --damping 0 --blind --validation 0"],
    "backprop": ["--optimiser sgd --jitter 1 --validation 0", "--flip --standard"],
    "sequence": ["--negatives self", "--negatives none --readout 1 --validation 0"],
    "amsga": [
        "--preset baseline --sizes 20,20 --n-epochs 1 --validation 0",
        "--preset paper --n-epochs 1 --batch-size 0 --sizes 95,20 --depth algorithm --negatives shuffle",
        "--mining-layer last --local-mean batch",
        "--no-mining --norm length --vote upper",
    ],
    "hff": ["--per-class 2 --margin 0.1 --vote upper --dropout 0.2 --jitter 1 --flip --validation 0"],
    "dtg_mlp": [
        "--norm batch-halves --head none --no-dynamic",
        "--head last --head-norm layer --norm none --validation 0",
        "--norm batch --head none",
        "--head-norm none --flip --jitter 1",
    ],
}


@pytest.mark.parametrize("script, flags", [(script, flags) for script in FLAGS for flags in FLAGS[script]])
def test_other_ways(cache, tmp_path, script, flags):
    _, (folder,) = finished(cache, tmp_path, script, "--n-epochs", "1", *flags.split())
    lines = record.read(folder)
    assert ("val" in lines[1]) == ("--validation 0" not in flags) and "final" in lines[-1]
    assert np.isfinite(np.sum(lines[1]["loss"]))


@pytest.mark.parametrize("script", SMALL)
@pytest.mark.parametrize("epochs", [0, 1])
def test_kill_and_resume_ends_with_the_same_bits(cache, tmp_path, script, epochs):
    """Killed in its first epoch or after it; then resumed."""
    flags = ["--seed", "5", "--n-epochs", "4"]
    _, (whole,) = finished(cache, tmp_path, script, *flags)
    command = [sys.executable, str(ROOT / "ff_mnist" / f"{script}.py"), *SMALL[script], "--out", "killed", *flags]
    environment = os.environ | {"FF_CACHE": str(cache)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.time() + 120
    while process.poll() is None and time.time() < deadline:
        records = list((tmp_path / "killed").glob("*/record.jsonl"))
        if records and records[0].read_text().count('"epoch"') >= epochs and records[0].read_text().count("\n"):
            break
        time.sleep(0.002)
    process.kill()  # SIGKILL; TerminateProcess on Windows
    process.wait()
    (folder,) = (tmp_path / "killed").iterdir()
    if process.returncode == 0:
        pytest.skip("the run was over before it could be killed")
    assert os.name == "nt" or process.returncode == -signal.SIGKILL
    (folder / "record.jsonl").open("a").write('{"epoch": 99, "half a li')  # as if killed while writing
    done = call(cache, tmp_path, script, "--resume", str(folder))
    assert done.returncode == 0 and "Resuming" in done.stdout, done.stdout + done.stderr
    lines, expected = record.read(folder), record.read(whole)
    resumed = [line for line in lines if "resumed_after_epoch" in line]
    assert len(resumed) == 1 and resumed[0]["same_machine"] is True
    lines.remove(resumed[0])
    assert without_times(lines) == without_times(expected)
    a, b = (record.load_arrays(f / "checkpoint.npz")[0] for f in (folder, whole))
    assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
    again = call(cache, tmp_path, script, "--resume", str(folder))
    assert again.returncode == 2 and "finished" in again.stderr


@pytest.mark.parametrize(
    "script, flags, gains",
    [
        ("train", "--sizes 200,200,200", {"acc": 0.2, "softmax_acc": 0.05}),
        ("unsupervised", "--sizes 200,200,200", {"acc": 0.04}),
        ("recurrent", "--sizes 100,100", {"acc": 0.2}),
        ("backprop", "--sizes 200,200 --lr 0.001", {"acc": 0.3}),
        ("amsga", "--sizes 200,200,200 --lr 0.003", {"acc": 0.2}),
        ("dtg_mlp", "--sizes 200,200,200 --head none --lr 0.003", {"acc": 0.2}),
    ],
)
def test_it_learns(cache, tmp_path, script, flags, gains):
    """A few epochs of 6 000 glyphs: well above the same network with hidden layers that stay as they were drawn."""
    more = "--train-subset 6000 --validation 1000 --n-epochs 8".split()
    frozen = "--lr 1e-9"  # the softmax on top learns all the same, where there is one
    scores = []
    for i, rate in enumerate(("", frozen)):
        (tmp_path / str(i)).mkdir()
        _, (folder,) = finished(cache, tmp_path / str(i), script, *more, *flags.split(), *rate.split())
        scores.append(record.read(folder)[-1]["final"]["test"])
    for key, gain in gains.items():
        assert scores[0][key] > scores[1][key] + gain


def test_hff_features_are_learnt(cache, tmp_path):
    """Well above prototypes on hidden layers that stay as they were drawn; and these are taken over from a file."""
    more = "--train-subset 6000 --validation 1000 --n-epochs 8 --sizes 50,50".split()
    drawn = [*more, "--lr", "1e-9", "--n-epochs", "1", "--save", "drawn.npz"]
    finished(cache, tmp_path, "hff", *drawn)
    scores = []
    for i, flags in enumerate(([], ["--features", "../drawn.npz"])):
        (tmp_path / str(i)).mkdir()
        _, (folder,) = finished(cache, tmp_path / str(i), "hff", *more, *flags)
        scores.append(record.read(folder)[-1]["final"])
    assert scores[0]["test"]["acc"] > scores[1]["test"]["acc"] + 0.1 and scores[1]["test"]["acc"] > 0.2
    assert scores[1]["parameters"] == 2 * 10 * 50  # prototypes alone


@pytest.mark.parametrize("negatives", ["teacher", "self"])
def test_text_is_learnt(cache, tmp_path, negatives):
    """Layers that tell real from generated windows predict more than layers that stay as they were drawn."""
    small = "--strings 60 --validation 20 --sizes 100,100 --n-epochs 10 --head-lr 0.01".split()
    shares = []
    for i, kind in enumerate((negatives, "none")):
        (tmp_path / str(i)).mkdir()
        _, (folder,) = finished(cache, tmp_path / str(i), "sequence", *small, "--negatives", kind)
        shares.append(record.read(folder)[-1]["final"]["val"]["acc"])
    assert shares[0] > shares[1] + 0.01


WRONG = [
    ("train", "--sizes 30,x", "whole numbers"),
    ("train", "--loss softmax", "--negatives all"),
    ("train", "--lr 0", "--lr"),
    ("train", "--validation 99999999", "--validation"),
    ("train", "--train-subset 99999999", "--train-subset"),
    ("unsupervised", "--blurs -2", "--blurs"),
    ("recurrent", "--first 9", "--first"),
    ("recurrent", "--damping 1", "--damping"),
    ("recurrent", "--sizes 9,9,9 --steps 2 --first 1 --last 2", "--sizes"),
    ("backprop", "--sizes 0", "whole numbers"),
    ("sequence", "--text nowhere.txt", "nowhere.txt"),
    ("sequence", "--strings 9999", "characters"),
    ("sequence", "--validation 8", "--validation"),
    ("train", "--resume nowhere", "nowhere"),
    ("amsga", "--clip 0", "--clip"),
    ("hff", "--dropout 1", "--dropout"),
    ("hff", "--features nowhere.npz", "nowhere.npz"),
    ("dtg_mlp", "--norm batch", "--head none"),
    ("dtg_mlp", "--sizes 20", "--sizes"),
]


@pytest.mark.parametrize("script, flags, word", WRONG)
def test_mistakes_end_in_one_line(cache, tmp_path, script, flags, word):
    done = call(cache, tmp_path, script, *flags.split())
    said = [line for line in done.stderr.splitlines() if "drawing the built-in set" not in line]  # the first test's
    assert done.returncode == 2 and len(said) == 1 and word in said[0]
    assert not (tmp_path / "out").exists()


def test_a_text_of_ones_own(cache, tmp_path):
    (tmp_path / "own.txt").write_text("The quick brown fox jumps over the lazy dog. " * 30, encoding="utf-8")
    done, (folder,) = finished(cache, tmp_path, "sequence", "--text", "own.txt")
    first = record.read(folder)[0]
    assert first["dataset"]["name"] == "own" and "fables" not in done.stdout


def test_figures(cache, tmp_path):
    expected = {
        "train": {"curves.png", "goodness.png", "unsettled.png", "filters.png"},
        "unsupervised": {"curves.png", "hybrids.png", "filters.png"},
        "recurrent": {"curves.png", "steps.png"},
        "backprop": {"curves.png"},
        "sequence": {"curves.png", "positions.png"},
        "amsga": {"curves.png", "thresholds.png", "stages.png"},
        "hff": {"curves.png", "cosines.png", "prototypes.png"},
        "dtg_mlp": {"curves.png", "temperatures.png"},
    }
    for script, names in expected.items():
        (tmp_path / script).mkdir()
        _, folders = finished(cache, tmp_path / script, script, "--seeds", "1-2")
        viz = (
            "ff_mnist"
            if script in ("train", "unsupervised", "recurrent", "backprop", "sequence")
            else "ff_mnist_descendants"
        )
        command = [sys.executable, str(ROOT / "viz" / f"{viz}.py"), *map(str, folders), "--out", "pictures"]
        done = subprocess.run(command, cwd=tmp_path / script, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert {p.name for p in (tmp_path / script / "pictures").iterdir()} == names
    command[2] = "nowhere"
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_epoch_benchmark_checks_and_reports(cache, optimiser):
    """It compares ours with the plain path and with PyTorch's autograd, where that is installed, before it times."""
    script = ROOT / "benchmarks" / "mnist_epoch.py"
    command = [sys.executable, str(script), "--sizes", "40,30,20", "--batches", "3", "--images", "50"]
    command += ["--dataset", "glyphs", "--epochs", "1"]
    command += ["--optimiser", optimiser]
    environment = os.environ | {"FF_CACHE": str(cache)}
    done = subprocess.run(command, capture_output=True, env=environment, text=True, timeout=300)
    assert done.returncode == 0 and "plain path" in done.stdout and "ten labels" in done.stdout, done.stderr
