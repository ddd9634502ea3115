"""ff_cnn/train.py as its users run it: from another folder, twice, killed, resumed, with wrong flags."""

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
SMALL = "--dataset shapes --train-subset 300 --validation 100 --eval-subset 50 --n-epochs 2 --batch-size 50".split()
SMALL += ["--width", "0.03"]


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def command(*flags):
    flags = ["--out", "out", *([] if "--figures" in flags else ["--no-figures"]), *flags]
    return [sys.executable, str(ROOT / "ff_cnn" / "train.py"), *SMALL, *flags]


def environment(cache):
    found = os.environ | {"FF_CACHE": str(cache)}
    found.pop("FF_DATA", None)
    return found


def call(cache, cwd, *flags):
    """Run the script in folder cwd -> the finished process."""
    return subprocess.run(command(*flags), cwd=cwd, env=environment(cache), capture_output=True, text=True, timeout=300)


def finished(cache, cwd, *flags):
    done = call(cache, cwd, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    return done, sorted((cwd / "out").iterdir())


def without_times(value):
    """A record's lines without what two identical runs may differ in."""
    if isinstance(value, dict):
        times = ("seconds", "images_per_second", "peak_gb", "command", "resumed_after_epoch")
        return {k: without_times(v) for k, v in value.items() if k not in times}
    return [without_times(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("credit", ["local", "deepsup", "bp"])
def test_same_seed_same_record(cache, tmp_path, credit):
    done, two = finished(cache, tmp_path, "--credit", credit, "--seeds", "1,2")
    assert "mean ± sd over 2 seeds" in done.stdout
    _, three = finished(cache, tmp_path, "--credit", credit, "--seed", "1")
    (new,) = set(three) - set(two)
    first, other, again = (
        without_times(record.read(folder)) for folder in (*sorted(two, key=lambda f: f.name[15:]), new)
    )
    assert first == again != other
    assert [line["epoch"] for line in first if "epoch" in line] == [1, 2]
    final = first[-1]["final"]
    assert 0 <= final["test"]["head_acc"] <= 1 and {"train", "val"} <= set(first[1])
    if credit != "bp":
        assert len(final["test"]["layer_acc"]) == 7 and np.shape(final["test"]["disagreement"]) == (7, 7)


@pytest.mark.parametrize(
    "flags",
    [
        "--rule linear --norm rms --validation 0",
        "--no-temperature --projection unit --cutout 0 --jitter 0 --crop 0 --no-flip",
        "--projection learned --no-pipelined --head-dropout 0 --smoothing 0",
        "--goodness-norm batch --norm none --dropout 0",
        "--credit bp --head last --accumulate 2 --recompute",
        "--credit deepsup --clip-by network",
        "--backbone vgg11",
        "--backbone vgg13",
        "--backbone resnet18",
        "--backbone plain4",
        "--rule asge --alpha 1.5",
        "--rule hff --scale 5 --pooling max",
        "--rule cwc --credit deepsup",
        "--backbone mlp",
        "--dataset glyphs",
    ],
)
def test_other_ways(cache, tmp_path, flags):
    _, (folder,) = finished(cache, tmp_path, "--n-epochs", "1", *flags.split())
    lines = record.read(folder)
    assert ("val" in lines[1]) == ("--validation 0" not in flags) and "final" in lines[-1]
    assert np.isfinite(lines[1]["head_loss"])


@pytest.mark.parametrize("epochs", [0, 1])
def test_kill_and_resume_ends_with_the_same_bits(cache, tmp_path, epochs):
    """Killed in its first epoch or after it; then resumed."""
    flags = ["--seed", "5", "--n-epochs", "4"]
    _, (whole,) = finished(cache, tmp_path, *flags)
    killed = [word if word != "out" else "killed" for word in command(*flags)]
    process = subprocess.Popen(killed, cwd=tmp_path, env=environment(cache), stdout=subprocess.DEVNULL)
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
    done = call(cache, tmp_path, "--resume", str(folder))
    assert done.returncode == 0 and "Resuming" in done.stdout, done.stdout + done.stderr
    lines = [line for line in record.read(folder) if "resumed_after_epoch" not in line]
    assert without_times(lines) == without_times(record.read(whole))
    a, b = (record.load_arrays(f / "checkpoint.npz")[0] for f in (folder, whole))
    assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("credit", ["local", "bp"])
def test_it_learns(cache, tmp_path, credit):
    """A few epochs of 3 000 shapes: well above the same network with blocks that stay as they were drawn."""
    more = "--train-subset 3000 --validation 500 --eval-subset 300 --n-epochs 6 --width 0.06 --backbone plain4".split()
    more += "--cutout 0 --jitter 0 --crop 0 --no-flip --dropout 0 --head-dropout 0 --lr 0.005".split()
    scores = []
    for i, rate in enumerate(("", "--lr 1e-7 --lr-end 0 --temperature-lr 1e-7")):
        (tmp_path / str(i)).mkdir()
        _, (folder,) = finished(cache, tmp_path / str(i), *more, "--credit", credit, *rate.split())
        scores.append(record.read(folder)[-1]["final"]["test"])
    key = "sum_acc" if credit == "local" else "head_acc"
    assert scores[0][key] > scores[1][key] + 0.12


@pytest.mark.parametrize(
    "flags, word",
    [
        ("--width 0", "--width"),
        ("--lr 0", "--lr"),
        ("--dropout 1", "--dropout"),
        ("--recompute", "--credit"),
        ("--validation 99999999", "--validation"),
        ("--backbone vgg9", "vgg9"),
        ("--resume nowhere", "nowhere"),
    ],
)
def test_mistakes_end_in_one_line(cache, tmp_path, flags, word):
    done = call(cache, tmp_path, *flags.split())
    said = [line for line in done.stderr.splitlines() if "drawing the built-in set" not in line]  # the first test's
    assert done.returncode == 2 and len(said) == 1 and word in said[0]
    assert not (tmp_path / "out").exists()


def test_tables(cache, tmp_path):
    words = "--table ablations --only T --seeds 0,1 --dataset shapes --train-subset 60 --n-epochs 1 --validation 500"
    script = [sys.executable, str(ROOT / "ff_cnn" / "explore.py"), *words.split(), "--out", "out"]
    done = subprocess.run(script, cwd=tmp_path, env=environment(cache), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = record.read(next((tmp_path / "out").iterdir()))
    found = [line for line in lines if "variant" in line]
    assert len(found) >= 4 and {line["seed"] for line in found} == {0, 1}
    assert all(0 <= line[name]["val_acc"] <= 1 for line in found for name in ("sum", "upper", "head"))


def test_figures(cache, tmp_path):
    names = {"curves.png", "layers.png", "temperatures.png", "disagreement.png", "filters.png"}
    _, (folder,) = finished(cache, tmp_path, "--figures")
    assert {p.name for p in (folder / "figures").iterdir()} == names
    _, folders = finished(cache, tmp_path, "--rule", "linear", "--seeds", "1-2")
    viz = [sys.executable, str(ROOT / "viz" / "ff_cnn.py"), *map(str, folders), "--out", "pictures"]
    done = subprocess.run(viz, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "pictures").iterdir()} == names
    done = subprocess.run([*viz[:2], "nowhere"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
