"""sweep.py: every cell is run once, whatever is interrupted, killed or started twice."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import scripts

from common import cli, record

ROOT = Path(__file__).resolve().parent.parent
sweep = scripts.load("sweep.py")
SMALL = "--dataset glyphs --train-subset 200 --validation 100 --eval-subset 50 --sizes 12,10 --no-figures".split()
GRID = ["ff_mnist/hff.py", "--seeds", "0-1", "--set", "lr", "0.01", "0.001"]


def start(tmp_path, *words, epochs=1, **more):
    command = [sys.executable, str(ROOT / "sweep.py"), *words, "--out", str(tmp_path / "out"), "--", *SMALL]
    return subprocess.Popen(
        [*command, "--n-epochs", str(epochs)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def call(tmp_path, *words, epochs=1):
    with start(tmp_path, *words, epochs=epochs) as process:
        out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def records(tmp_path):
    """Every cell has one run; cell -> its lines."""
    found = {}
    for cell in (path for path in (tmp_path / "out").iterdir() if path.is_dir()):
        (path,) = cell.glob("*/record.jsonl")
        found[cell.name] = record.read(path)
    return found


def test_grid_and_flags():
    cells = sweep.grid([["lr", "0.1", "0.2"], ["--flip", "on", "off"]], [0, 3])
    assert len(cells) == 8 and cells[0] == {"lr": "0.1", "flip": "on", "seed": "0"}
    assert sweep.flags(cells[-1]) == ["--lr", "0.2", "--no-flip", "--seed", "3"]
    assert sweep.flags({"weight_decay": "0.1"}) == ["--weight-decay", "0.1"]
    assert len({sweep.folder_name(cell) for cell in cells}) == 8
    assert sweep.folder_name({"data_dir": "../x y"}) == "data_dir-..-x-y"
    for bad in ([["lr"]], [["lr", "1", "1"]], [["lr", "1"], ["lr", "2"]], [["seed", "1"]]):
        with pytest.raises(cli.UsageError):
            sweep.grid(bad, [0])


def test_a_sweep_runs_all_cells_and_the_same_again_runs_none(tmp_path):
    code, out, err = call(tmp_path, *GRID)
    assert code == 0, err
    found = records(tmp_path)
    assert sorted(found) == [f"lr-{lr}_seed-{s}" for lr in ("0.001", "0.01") for s in (0, 1)]
    assert all("final" in lines[-1] for lines in found.values())
    accs = [100 * found[f"lr-0.01_seed-{s}"][-1]["final"]["test"]["acc"] for s in (0, 1)]
    (line,) = [line for line in out.splitlines() if line.startswith("lr 0.01 ")]
    assert "n 2" in line and f"test.acc {sum(accs) / 2:.2f} ±" in line
    code, again, _ = call(tmp_path, *GRID)
    assert code == 0 and records(tmp_path) == found and line in again


def test_a_sweep_goes_on_with_a_cell_that_was_interrupted(tmp_path):
    one = ["ff_mnist/hff.py", "--seeds", "5"]
    assert call(tmp_path, *one, epochs=3)[0] == 0
    whole = records(tmp_path)["seed-5"]
    (folder,) = (tmp_path / "out" / "seed-5").glob("*-seed5")
    record.cut(folder, 2)  # after its first epoch, say; the checkpoint is gone, too
    (folder / "checkpoint.npz").unlink()
    assert call(tmp_path, *one, epochs=3)[0] == 0
    lines = records(tmp_path)["seed-5"]
    assert any("resumed_after_epoch" in line for line in lines)
    assert lines[-1]["final"]["test"]["acc"] == whole[-1]["final"]["test"]["acc"]


def test_a_cell_that_fails_is_named_and_the_others_are_run(tmp_path):
    code, out, err = call(tmp_path, "ff_mnist/hff.py", "--set", "lr", "0.01", "-1")
    assert code == 2 and err.count("\n") == 1 and "1 of 2 cells failed" in err and "lr--1_seed-0" in err
    assert "--lr -1.0: must be more than 0" in out and "final" in records_of(tmp_path, "lr-0.01_seed-0")[-1]


def records_of(tmp_path, cell):
    (path,) = (tmp_path / "out" / cell).glob("*/record.jsonl")
    return record.read(path)


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks there")
def test_two_sweeps_at_once_run_every_cell_once(tmp_path):
    both = [start(tmp_path, *GRID) for _ in range(2)]
    outs = [process.communicate(timeout=200) for process in both]
    assert all(process.returncode == 0 for process in both), outs
    assert len(records(tmp_path)) == 4  # and one record in each


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks there")
def test_a_run_that_outlives_its_sweep_is_waited_for(tmp_path):
    """The lock belongs to the run, not to who started it."""
    first = start(tmp_path, "ff_mnist/hff.py", epochs=40)
    deadline = time.time() + 60
    while not list((tmp_path / "out").glob("*/*/record.jsonl")) and time.time() < deadline:
        time.sleep(0.05)
    first.kill()  # the sweep, not its child
    first.communicate()
    assert call(tmp_path, "ff_mnist/hff.py", epochs=40)[0] == 0
    lines = records(tmp_path)["seed-0"]
    assert "final" in lines[-1] and not any("resumed_after_epoch" in line for line in lines)


def test_a_folder_of_other_runs_is_refused(tmp_path):
    """Neither other shared flags nor another script may pass for what was run."""
    assert call(tmp_path, "ff_mnist/hff.py", epochs=1)[0] == 0
    code, out, err = call(tmp_path, "ff_mnist/hff.py", epochs=2)
    assert code == 2 and "something else" in out and "1 of 1 cells failed" in err
    code, out, err = call(tmp_path, "ff_mnist/dtg_mlp.py", epochs=1)
    assert code == 2 and "something else" in out


def test_a_damaged_record_fails_its_own_cell_only(tmp_path):
    assert call(tmp_path, *GRID)[0] == 0
    (path,) = (tmp_path / "out" / "lr-0.01_seed-0").glob("*/record.jsonl")
    path.write_text("")
    code, out, err = call(tmp_path, *GRID)
    assert code == 2 and "1 of 4 cells failed" in err and "lr 0.001" in out


def test_a_resumed_cell_is_told_how_to_run_again():
    words = "--n-epochs 3 --device cuda --no-figures --threads=2 --data-dir d --lr 0.1".split()
    how, what = sweep.apart(words)
    assert how == "--device cuda --no-figures --threads=2 --data-dir d".split()
    assert what == "--n-epochs 3 --lr 0.1".split()
    assert sweep.apart("--threads 2 --n-epochs 2 --seed 0".split())[1] == "--n-epochs 2 --seed 0".split()


def test_an_interrupt_stops_what_waits(tmp_path):
    words = ["ff_mnist/hff.py", "--seeds", "0-5"]
    # a shell that starts the tests in the background has them ignore interrupts, and all that they start
    heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = start(tmp_path, *words, epochs=30, start_new_session=True, **heed)
    deadline = time.time() + 60
    while not list((tmp_path / "out").glob("*/*/record.jsonl")) and time.time() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.communicate(timeout=60)
    assert process.returncode == 130 and len(list((tmp_path / "out").glob("*/*/record.jsonl"))) <= 2


@pytest.mark.parametrize(
    "words, said",
    [
        (["ff_mnist/hff.py", "--set", "scale", "1/2", "1:2"], "one name"),
        (["ff_mnist/hff.py", "--seeds", "x"], "--seeds"),
        (["ff_mnist/none.py"], "does not exist"),
        (["ff_mnist/hff.py", "--jobs", "0"], "--jobs"),
        (["ff_mnist/hff.py", "--set", "lr"], "--set lr"),
    ],
)
def test_mistakes_are_one_line(tmp_path, words, said):
    code, _, err = call(tmp_path, *words)
    assert code == 2 and said in err and err.count("\n") == 1


def test_a_cluster_loses_no_cell_when_a_worker_dies(tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs requirements-cluster.txt")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, local_directory=str(tmp_path)
    ) as cluster:
        victim = cluster.workers[0].pid

        def kill():
            deadline = time.time() + 60
            while not list((tmp_path / "out").glob("*/*/record.jsonl")) and time.time() < deadline:
                time.sleep(0.02)
            os.kill(victim, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        code, out, err = call(tmp_path, *GRID, "--scheduler", cluster.scheduler_address, epochs=5)
        killer.join()
    assert code == 0, out + err
    found = records(tmp_path)
    assert len(found) == 4 and all("final" in lines[-1] for lines in found.values())
    assert all(sum("final" in line for line in lines) == 1 for lines in found.values())
    first = json.loads((tmp_path / "out" / "sweep.jsonl").read_text().splitlines()[0])
    assert sorted(first["cells"]) == sorted(found)


def test_without_dask_the_scheduler_flag_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(cli.UsageError, match="requirements-cluster"):
        next(sweep.on_cluster({}, "tcp://127.0.0.1:1"))
