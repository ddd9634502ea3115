"""The script as its users run it: from another folder, twice, killed, resumed, and with every kind of wrong flag."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import train

from common import cli, record

SCRIPT = Path(__file__).resolve().parent.parent / "ff_cifar_lc" / "train.py"
SMALL = (
    "--train-subset 160 --eval-subset 64 --validation 100 --batch-size 32 --rf 5,3 --channels 4 --n-epochs 2".split()
)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def call(cache, cwd, *flags, small=SMALL):
    """Run the script in folder cwd on built-in data -> the finished process."""
    command = [sys.executable, str(SCRIPT), *small, "--out", "out", *flags]
    if not {"--dataset", "--resume"} & set(flags):
        command += ["--dataset", "shapes"]
    environment = os.environ | {"FF_CACHE": str(cache)}
    environment.pop("FF_DATA", None)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def finished(cache, cwd, *flags):
    done = call(cache, cwd, "--no-figures", *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    return done, sorted((cwd / "out").iterdir())


def without_times(lines):
    """A record's lines without what two identical runs may differ in."""
    if isinstance(lines, dict):
        drop = {"seconds", "test_seconds", "command", "resumed_after_epoch"}
        return {k: without_times(v) for k, v in lines.items() if k not in drop}
    return [without_times(line) for line in lines] if isinstance(lines, list) else lines


def test_same_seed_same_record(cache, tmp_path):
    done, folders = finished(cache, tmp_path, "--seed", "1", "--save", "weights.npz")
    assert [line.split()[:2] for line in done.stdout.splitlines() if line.startswith("epoch")] == [
        ["epoch", "1/2"],
        ["epoch", "2/2"],
    ]
    assert "FF test accuracy" in done.stdout and "BP test accuracy" in done.stdout
    _, folders = finished(cache, tmp_path, "--seeds", "1-2")
    first, second, other = (record.read(f) for f in folders)
    assert without_times(first) == without_times(second) != without_times(other)
    config, *epochs, final = first
    assert config["dataset"]["name"] == "shapes" and len(config["dataset"]["sha256"]) == 64
    assert config["config"]["seed"] == 1 and [e["epoch"] for e in epochs] == [1, 2]
    assert {"loss", "g_pos", "g_neg", "train_acc", "val_acc", "seconds"} <= set(epochs[0]["ff"])
    assert final["final"]["test_images"] == 4000 and len(final["final"]["ff"]["per_class"]) == 10
    a, b = (record.load_arrays(f / "checkpoint.npz")[0] for f in folders[:2])
    assert all(np.array_equal(a[k], b[k]) for k in a)
    saved, _ = record.load_arrays(tmp_path / "weights.npz")
    assert np.array_equal(saved["ff/0/W"], a["ff/0/params/W"])
    assert sorted(p.name for p in (folders[0] / "snapshots").iterdir())[:2] == ["epoch-000.npz", "epoch-001.npz"]


def test_seeds_report_mean_and_spread(cache, tmp_path):
    done, folders = finished(cache, tmp_path, "--seeds", "3,4", "--no-bp-baseline", "--no-full-test")
    assert len(folders) == 2 and "mean ± sd over 2 seeds" in done.stdout
    accuracies = [100 * record.read(f)[-1]["final"]["ff"]["test_acc"] for f in folders]
    assert f"{np.mean(accuracies):.2f} ± {np.std(accuracies, ddof=1):.2f} %" in done.stdout


OTHERS = [
    "--n-layers 1",
    "--n-layers 3 --skip-first --schedule cosine",
    "--validation 0 --no-flip --shift 0 --weight-decay 0.1",
    "--negatives hard --loss threshold --beta 2 --shift 1 --peer 0",
    "--negatives sampled --no-neutral",
    "--preset write-up --n-layers 1",
    "--preset write-up --n-layers 3 --no-skip-first",
    "--preset write-up --negatives hard --loss margin",
]


@pytest.mark.parametrize("flags", OTHERS)
def test_other_nets(cache, tmp_path, flags):
    _, (folder,) = finished(cache, tmp_path, "--n-epochs", "1", "--no-full-test", *flags.split())
    lines = record.read(folder)
    assert ("val_acc" in lines[1]["ff"]) == ("--validation 0" not in flags)
    assert 0 <= lines[-1]["final"]["ff"]["test_acc"] <= 1


def test_presets(cache, tmp_path):
    _, folders = finished(cache, tmp_path, "--preset", "write-up", "--no-full-test", "--no-bp-baseline", "--lr", "0.02")
    config = record.read(folders[0])[0]["config"]
    assert config["label"] == "slot" and config["lr"] == 0.02 and config["n_epochs"] == 2  # flags win over the preset
    for name, preset in train.PRESETS.items():
        chosen, _ = cli.parse(train.Config, "", ["--preset", name], train.CHOICES, train.PRESETS)
        assert asdict(chosen) == asdict(train.Config()) | preset and preset.keys() <= asdict(chosen).keys()


def test_the_write_up_is_as_it_was(cache, tmp_path):
    """Bit for bit the run that was reproduced before label maps existed: these digits are from that version."""
    small = "--train-subset 320 --eval-subset 64 --validation 100 --batch-size 32 --rf 5,3 --channels 4 --n-epochs 2"
    done = call(cache, tmp_path, "--preset", "write-up", "--seed", "3", "--no-figures", small=small.split())
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "out").iterdir()
    *_, last, final = record.read(folder)
    expected = {"loss": [0.78079158, 0.70245534], "g_pos": [1.53880405, 1.82980275], "g_neg": [1.54115641, 1.82720304]}
    for key, values in expected.items():  # on another kind of processor the roundings differ
        assert np.allclose(last["ff"][key], values, rtol=1e-4)
    assert np.isclose(last["bp"]["loss"], 1.62283826, rtol=1e-4)
    assert abs(final["final"]["bp"]["test_acc"] - 0.227) < 0.005


def test_grey_images(cache, tmp_path):
    _, (folder,) = finished(cache, tmp_path, "--n-epochs", "1", "--dataset", "glyphs", "--no-bp-baseline")
    assert record.read(folder)[0]["dataset"]["name"] == "glyphs"


@pytest.mark.parametrize(
    "way, expected",
    [
        ("", 0.6),
        ("--negatives uniform --no-neutral --beta 64", 0.4),
        ("--preset write-up", 0.3),
    ],
)
def test_it_learns(cache, tmp_path, way, expected):
    """3 200 easy images, five epochs: both nets must be well above chance (10 %), or the rule is broken."""
    _, (folder,) = finished(
        cache,
        tmp_path,
        "--dataset",
        "glyphs",
        "--train-subset",
        "3200",
        "--n-epochs",
        "5",
        "--rf",
        "20,5",
        *way.split(),
    )
    final = record.read(folder)[-1]["final"]
    assert final["ff"]["test_acc"] > expected and final["bp"]["test_acc"] > 0.5


@pytest.mark.parametrize(
    "moment, way",
    [
        ("before an epoch is over", ""),
        ("after an epoch", ""),
        ("at the last epoch", ""),
        ("after an epoch", "--negatives sampled"),
        ("after an epoch", "--negatives uniform --no-neutral"),
        ("after an epoch", "--preset write-up"),
    ],
)
def test_kill_and_resume_ends_with_the_same_bits(cache, tmp_path, moment, way):
    flags = [*way.split(), "--seed", "5", "--n-epochs", "4", "--no-full-test"]
    _, (whole,) = finished(cache, tmp_path, *flags)
    epochs = {"before an epoch is over": 0, "after an epoch": 1, "at the last epoch": 4}[moment]
    command = [sys.executable, str(SCRIPT), *SMALL, "--out", "killed", "--dataset", "shapes", "--no-figures", *flags]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ | {"FF_CACHE": str(cache)}, stdout=subprocess.DEVNULL
    )
    deadline = time.time() + 120
    while process.poll() is None and time.time() < deadline:
        records = list((tmp_path / "killed").glob("*/record.jsonl"))
        if (
            records
            and records[0].read_text().count('"epoch"') >= epochs
            and list(records[0].parent.glob("checkpoint.npz"))
        ):
            break
        time.sleep(0.002)
    process.kill()  # SIGKILL; TerminateProcess on Windows
    process.wait()
    (folder,) = (tmp_path / "killed").iterdir()
    if process.returncode == 0:
        pytest.skip("the run was over before it could be killed")
    assert os.name == "nt" or process.returncode == -signal.SIGKILL
    (folder / "record.jsonl").open("a").write('{"epoch": 99, "half a li')  # as if killed while writing
    done = call(cache, tmp_path, "--resume", str(folder), "--no-figures")
    assert done.returncode == 0 and "Resuming" in done.stdout, done.stdout + done.stderr
    lines, expected = record.read(folder), record.read(whole)
    resumed = [line for line in lines if "resumed_after_epoch" in line]
    assert len(resumed) == 1 and resumed[0]["same_machine"] is True
    lines.remove(resumed[0])
    assert without_times(lines) == without_times(expected)
    a, b = (record.load_arrays(f / "checkpoint.npz")[0] for f in (folder, whole))
    assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
    again = call(cache, tmp_path, "--resume", str(folder))
    assert again.returncode == 2 and "finished" in again.stderr


def test_killed_before_the_first_checkpoint(cache, tmp_path):
    flags = ["--seed", "6", "--n-epochs", "1", "--no-full-test", "--threads", "1"]
    _, (whole,) = finished(cache, tmp_path, *flags)
    arrays, _ = record.load_arrays(whole / "checkpoint.npz")
    expected = record.read(whole)
    (whole / "checkpoint.npz").unlink()
    record.cut(whole, 1)
    done = call(cache, tmp_path, "--resume", str(whole), "--no-figures")
    assert done.returncode == 0, done.stderr
    lines = record.read(whole)
    assert lines[1]["same_machine"] and lines[1]["machine"]["threads"] == 1  # as many threads as the run had
    assert without_times([lines[0], *lines[2:]]) == without_times(expected)
    again, _ = record.load_arrays(whole / "checkpoint.npz")
    assert all(np.array_equal(arrays[k], again[k]) for k in arrays)


def test_deviations(cache, tmp_path):
    command = [sys.executable, str(SCRIPT.parent / "deviations.py"), *SMALL, "--dataset", "shapes", "--no-full-test"]
    command += ["--seeds", "0-1", "--out", "out", "--n-epochs", "1"]
    environment = os.environ | {"FF_CACHE": str(cache)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "out").iterdir()
    final = record.read(folder)[-1]["final"]
    assert len(final) == 4 and all(len(row["test_acc"]) == 2 for row in final)


@pytest.mark.parametrize("preset", [(), ("--preset", "write-up")])
def test_epoch_benchmark_checks_and_reports(preset):
    script = SCRIPT.parent.parent / "benchmarks" / "lc_epoch.py"
    command = [sys.executable, str(script), "--batches", "3", "--channels", "2", *preset]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "plain path" in done.stdout and "x one pass" in done.stdout, done.stderr


def test_a_segment_on_another_machine_says_so(cache, tmp_path):
    _, (folder,) = finished(cache, tmp_path, "--n-epochs", "2", "--no-full-test", "--no-bp-baseline")
    text = (folder / "record.jsonl").read_text().splitlines()
    first = json.loads(text[0])
    first["machine"]["cpu"] = "another processor entirely"
    text[0] = json.dumps(first)
    (folder / "record.jsonl").write_text("\n".join(text[:-1]) + "\n")
    arrays, meta = record.load_arrays(folder / "checkpoint.npz")
    meta["record_bytes"] = (folder / "record.jsonl").stat().st_size
    record.save_arrays(folder / "checkpoint.npz", arrays, meta)
    done = call(cache, tmp_path, "--resume", str(folder), "--no-figures")
    assert done.returncode == 0 and "another machine" in done.stdout
    assert record.read(folder)[-2]["same_machine"] is False


WRONG = {
    "field larger than the map": ("--rf", "40"),
    "field larger than the second map": ("--rf", "30,5"),
    "field is no number": ("--rf", "eleven"),
    "subset larger than the set": ("--train-subset", "19950"),
    "no images": ("--train-subset", "-1"),
    "slot without pairs": ("--label", "slot"),
    "rows without pairs": ("--no-neutral",),
    "unknown loss": ("--loss", "hinge"),
    "unknown preset": ("--preset", "papers"),
    "no sharpness": ("--beta", "0"),
    "shift": ("--shift", "-1"),
    "evaluation larger than validation": ("--eval-subset", "101"),
    "validation larger than the set": ("--validation", "20000"),
    "unknown data set": ("--dataset", "imagenet"),
    "missing file": ("--dataset", "cifar10", "--data-dir", "nowhere"),
    "no epochs": ("--n-epochs", "0"),
    "negative rate": ("--lr", "-1"),
    "infinite threshold": ("--threshold", "nan"),
    "too many threads": ("--threads", "4096"),
    "unknown flag": ("--learning-rate", "1"),
    "not a number": ("--lr", "fast"),
    "seeds": ("--seeds", "4-0"),
    "resume nothing": ("--resume", "nowhere"),
    "slot and peers": ("--preset", "write-up", "--peer", "0.001"),
    "negative strength": ("--peer", "-0.1"),
    "slot does not fit": ("--preset", "write-up", "--slot-rows", "33"),
    "no slot": ("--slot-rows", "0"),
    "negative seed": ("--seed", "-1"),
    "the same seed twice": ("--seeds", "0,0"),
    "one file for two runs": ("--seeds", "0-1", "--save", "w.npz"),
    "a file in no folder": ("--save", "no/such/w.npz"),
    "a folder below a file": ("--out", str(SCRIPT / "runs")),
}


@pytest.mark.parametrize("flags", WRONG.values(), ids=WRONG.keys())
def test_wrong_use_ends_with_one_line(cache, tmp_path, flags):
    done = call(cache, tmp_path, "--no-figures", *flags)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if "drawing the built-in set" not in line]  # the first test does
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert not (tmp_path / "out").exists()


def test_corrupt_archive(cache, tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"this is no archive")
    done = call(cache, tmp_path, "--dataset", "cifar10", "--data-dir", str(tmp_path))
    assert done.returncode == 2 and done.stderr.strip().count("\n") == 0 and "cifar-10-python.tar.gz" in done.stderr
