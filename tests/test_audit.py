"""benchmarks/audit.py counts what a step holds: nothing that grows with depth in FF, everything in backpropagation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import audit

BLOCK = 8 * 32 * 32 * 10 * 4  # bytes of one block's activity: 8 images, 10 channels


def activations(method, backbone):
    cell = {"method": method, "backbone": backbone, "side": 32, "batch": 8, "width": 0.04}
    return audit.measure(cell | {"device": "cpu", "repeats": 1})["activations"]


@pytest.mark.parametrize("method", ["FF naive", "FF pipelined"])
def test_forward_forward_holds_no_more_with_depth(method):
    few = activations(method, "equal4")
    assert activations(method, "equal32") <= 1.1 * few
    assert few <= (2.6 if method == "FF pipelined" else 3.7) * BLOCK  # a block's input, activity and their gradient


def test_backpropagation_holds_all_activations_and_its_tools_fewer():
    found = {method: activations(method, "equal8") for method in audit.METHODS}
    few, many = activations("BP", "equal4"), activations("BP", "equal16")
    assert abs((many - found["BP"]) / (found["BP"] - few) - 2) < 0.1  # in proportion to the blocks
    assert found["BP"] > 2 * found["FF pipelined"]
    assert found["BP, 4 parts"] < found["BP, 2 parts"] < found["BP"] and found["BP, recomputed"] < found["BP"]
    assert found["BP"] > 8 * BLOCK  # exactly counted: all eight blocks' are there at once


def test_cells_are_processes_and_a_failure_is_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks/audit.py"), "--quick", "--width", "0.03", "--repeats", "1"]
    done = subprocess.run([*command, "--out", "a.jsonl"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("MB activations") == len(audit.METHODS), done.stderr
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == len(audit.METHODS)
    done = subprocess.run([*command, "--width", "nan"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_figures(tmp_path):
    machine, results = {"cpu": "some"}, tmp_path / "results"
    results.mkdir()
    for name, shapes in (("depth", ["equal4", "equal8"]), ("nets", ["vgg8", "vgg11"])):
        cells = [
            {"method": m, "backbone": b, "side": 32, "batch": 32, "width": 0.25, "machine": machine}
            | {"activations": 1e6 * (i + 1), "images_per_second": 100.0, "resident": 0.2}
            for b in shapes
            for i, m in enumerate(audit.METHODS)
        ]
        (results / f"{name}.jsonl").write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    command = [sys.executable, str(ROOT / "viz/audit.py"), "--results", str(results), "--out", "drawn"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    drawn = {path.name: path.stat().st_size for path in (tmp_path / "drawn").iterdir()}
    assert done.returncode == 0 and drawn.keys() == {"audit_depth.png", "audit_frontier.png"}, done.stderr
    assert max(drawn.values()) < 200_000
    (results / "bad.jsonl").write_text('{"method": "none"}\n')
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "bad.jsonl" in done.stderr and done.stderr.count("\n") == 1
