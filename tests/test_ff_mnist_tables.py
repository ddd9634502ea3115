"""Explorations, film, figures and tables of ff_mnist: settings that can run, records that draw, rows that say right."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import scripts

from common import data, record
from viz import ff_mnist_ablations, ff_mnist_normalisation, results

ROOT = Path(__file__).resolve().parent.parent
explore = scripts.load("ff_mnist/explore.py")
explore_text = scripts.load("ff_mnist/explore_text.py")


def call(cwd, script, *flags):
    command = [sys.executable, str(ROOT / script), *map(str, flags)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def glyphs():
    return data.load("glyphs", None)


@pytest.mark.parametrize("table", explore.TABLES)
def test_variants_are_settings_that_the_script_can_run(table, glyphs):
    reference, rows = explore.TABLES[table]
    names = [name for _, name, _ in rows]
    assert len(set(names)) == len(names)
    for _, name, settings in rows:
        settings = dict(settings)
        script, _ = explore.method(table, settings)
        script.check(replace(script.Config(), **reference | settings, validation=1000), glyphs)
        usual = {k: getattr(script.Config(), k) for k in settings} | {
            k: reference[k] for k in settings if k in reference
        }
        assert name == "reference" or table not in ("normalisation", "losses") or settings != usual


def test_variants_of_the_text_table_can_run():
    reference, rows = explore_text.TABLES["text"]
    assert len({name for _, name, _ in rows}) == len(rows)
    for _, _, settings in rows:
        explore_text.sequence.check(replace(explore_text.sequence.Config(), **reference | settings), None)


@pytest.mark.parametrize(
    "table, only, nets",
    [
        ("normalisation", "reference", {"ff", "softmax"}),
        ("unsupervised", "14 blurs", {"softmax"}),
        ("local", "0.002", {"softmax"}),
        ("recurrent", "500,500", {"ff"}),
    ],
)
def test_a_table_judges_on_held_out_images_only(tmp_path, table, only, nets):
    flags = "--train-subset 200 --n-epochs 1 --validation 100 --dataset glyphs --out out"
    done = call(tmp_path, "ff_mnist/explore.py", "--table", table, "--only", only, *flags.split())
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "out").iterdir()
    _, row, final = record.read(folder)
    assert final == {"final": {"lines": 1}} and nets == {k for k in row if k in ("ff", "softmax")}
    assert all({"train_acc", "val_acc"} <= row[net].keys() for net in nets) and "test" not in json.dumps(row)
    again = call(tmp_path, "ff_mnist/explore.py", "--resume", folder)
    assert again.returncode == 2 and "finished" in again.stderr
    if table == "normalisation":
        done = call(tmp_path, "viz/ff_mnist_normalisation.py", folder, "--out", tmp_path / "n.png")
        assert done.returncode == 0 and (tmp_path / "n.png").stat().st_size < 200_000, done.stderr


def test_the_text_table_goes_on_after_its_last_line(tmp_path):
    flags = "--only window --n-epochs 1 --out out --seeds 0-1".split()
    done = call(tmp_path, "ff_mnist/explore_text.py", *flags)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "out").iterdir()
    rows = [line for line in record.read(folder) if "variant" in line]
    assert len(rows) == 6 and rows[0]["config"]["readout"] == 0
    record.cut(folder, 3)
    done = call(tmp_path, "ff_mnist/explore_text.py", "--resume", folder)
    assert done.returncode == 0, done.stderr
    again = [line for line in record.read(folder) if "variant" in line]
    assert [line["softmax"] for line in again] == [line["softmax"] for line in rows]


def test_film(tmp_path):
    small = "--dataset glyphs --train-subset 200 --validation 100 --eval-subset 50 --batch-size 50 --no-figures"
    flags = f"{small} --n-epochs 3 --sizes 20,15 --snapshot-every 1 --out out".split()
    assert call(tmp_path, "ff_mnist/train.py", *flags).returncode == 0
    (folder,) = (tmp_path / "out").iterdir()
    done = call(tmp_path, "viz/ff_mnist_gif.py", folder)
    assert done.returncode == 0 and "3 frames" in done.stdout, done.stderr
    first = (folder / "figures" / "training.gif").read_bytes()
    assert call(tmp_path, "viz/ff_mnist_gif.py", folder, "--out", "again.gif").returncode == 0
    assert (tmp_path / "again.gif").read_bytes() == first and first[:6] == b"GIF89a"
    done = call(tmp_path, "viz/ff_mnist_normalisation.py", folder)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "no record of" in done.stderr


def a_run(script, seed, acc, dataset="mnist", **settings):
    """The first and the last line of a record, and one epoch between them."""
    module = scripts.load(f"ff_mnist/{script}.py")
    config = asdict(module.Config()) | {"seed": seed} | settings
    first = {"command": f"python ff_mnist/{script}.py --seed {seed}", "config": config, "commit": "abc"}
    first |= {"dataset": {"name": dataset, "train": 50000}, "machine": {"cpu": "some"}}
    return [first, {"epoch": 1, "loss": [0.1], "seconds": 60.0}, {"final": {"test": acc, "seconds": 61.0}}]


def rows_of(table):
    return [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in table.splitlines()[2:]]


def test_errors_stand_beside_the_papers_number_only_for_its_own_settings():
    acc = {"acc": 0.986, "softmax_acc": 0.985}
    cases = [
        ([a_run("train", s, acc | {"acc": 0.986 + 0.002 * s}) for s in (0, 1)], "1.36", "1.30 ± 0.14", "2"),
        ([a_run("train", 0, acc, jitter=2)], "0.64", "1.40", "1"),
        ([a_run("train", 0, acc, negatives="uniform")], "–", "1.40", "1"),
        ([a_run("train", 0, acc, dataset="glyphs")], "–", "1.40", "1"),
        ([a_run("unsupervised", 0, {"acc": 0.99}, local=True)], "1.16", "1.00", "1"),
        ([a_run("unsupervised", 0, {"acc": 0.99})], "1.37", "1.00", "1"),
        ([a_run("recurrent", 0, {"acc": 0.99})], "1.31", "1.00", "1"),
        ([a_run("backprop", 0, {"acc": 0.99})], "1.4", "1.00", "1"),
    ]
    for (runs, paper, error, n), row in zip(cases, rows_of(results.mnist_errors([c[0] for c in cases])), strict=True):
        assert (row[3], row[5], row[6], row[7]) == (error, paper, n, "60"), runs[0][0]["command"]
        assert row[4].startswith("1.50" if "softmax_acc" in runs[0][-1]["final"]["test"] else "–")


def test_seconds_on_a_gpu_stand_apart():
    acc = {"acc": 0.986, "softmax_acc": 0.985}
    found = [a_run("train", seed, acc) for seed in (0, 1, 2)]
    found[1][0]["machine"]["gpu"] = "H200"
    found[1][1]["seconds"] = 6.0
    assert rows_of(results.mnist_errors([found]))[0][7] == "60; H200: 6"
    assert rows_of(results.mnist_summary([found]))[0][7] == "1.0; H200: 0.1"
    assert rows_of(results.mnist_summary([found[1:2]]))[0][7] == "H200: 0.1"


def test_the_sequence_table():
    def run(seed, kind, share, held_out):
        first, epoch, _ = a_run("sequence", seed, {}, negatives=kind, validation=48 if held_out else 0)
        parts = {"train": share} | ({"val": share / 2} if held_out else {})
        guess = np.full(90, 0.1).tolist()
        return [first, epoch, {"final": {k: {"acc": v, "unigram_by_position": guess} for k, v in parts.items()}}]

    table = results.sequence_table(
        [[run(0, "teacher", 0.5, True), run(1, "teacher", 0.6, True)], [run(0, "none", 0.3, 0)]]
    )
    first, second = rows_of(table)
    assert first[0] == "teacher" and first[1:5] == ["55.00 ± 7.07", "27.50 ± 3.54", "10.00", "2"]
    assert second[1:5] == ["30.00", "–", "10.00", "1"]


def test_a_table_without_a_reference_prints_what_each_way_to_ask_says():
    def line(variant, seed, **nets):
        return {"variant": variant, "group": "x", "seed": seed} | {k: {"val_acc": v} for k, v in nets.items()}

    first = {"command": "python ff_mnist/explore.py --table rates --seeds 0-1", "seeds": [0, 1], "commit": "abc"}
    first |= {"dataset": {"name": "mnist"}}
    run = [
        first,
        line("a", 0, ff=0.5, softmax=0.4),
        line("b", 0, ff=0.6, softmax=0.3),
        line("a", 1, ff=0.7, softmax=0.4),
    ]
    rows = rows_of(results.variants([[run]]).split("\n\n")[0])
    assert rows == [["a", "60.00 ± 14.14", "40.00 ± 0.00", "2"], ["b", "60.00", "30.00", "1"]]
    other = [first | {"dataset": {"name": "cifar10"}}, line("a", 0, ff=0.2) | {"parameters": 1_500_000}]
    rows = rows_of(results.variants([[run], [other]]).split("\n\n")[0])
    assert rows[0] == ["mnist", "a", "60.00 ± 14.14", "40.00 ± 0.00", "–", "2"]
    assert rows[2][:3] == ["cifar10", "a", "20.00"] and rows[2][4:] == ["1.50 M", "1"]


def test_the_normalisation_figure_reads_every_cell(tmp_path):
    lines = [{"command": "x", "config": {"table": "normalisation"}}]
    for _, name, settings in explore.TABLES["normalisation"][1]:
        config = {"goodness": "sum", "norm": "rms", "theta": 1.0, "sizes": "5,5", "n_epochs": 1} | settings
        for seed in (0, 1):
            accs = {"ff": {"val_acc": 0.9}, "softmax": {"val_acc": 0.8}}
            lines.append({"variant": name, "seed": seed, "config": config} | accs)
    path = tmp_path / "n.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    found, _ = ff_mnist_normalisation.load(path)
    assert len(found) == 24 and all(np.allclose(cell["ff"], [10, 10]) for cell in found.values())


def finish(run, **cost):
    """A run whose last line says what it cost, too."""
    run[-1]["final"] |= {"parameters": 2_000_000, "peak_gb": 0.5} | cost
    return run


def test_descendants_stand_beside_the_papers_number_only_for_its_own_settings():
    none = dict.fromkeys(("scales", "mining", "adapt", "anneal"), False)
    cases = [
        ([a_run("amsga", 0, {"acc": 0.94}, batch_size=0)], "AMSGA", "94.45 (text), 93.45 (abstract, tables)"),
        ([a_run("amsga", 0, {"acc": 0.94}, batch_size=500)], "AMSGA", "–"),
        ([a_run("amsga", 0, {"acc": 0.94}, "fashion-mnist", batch_size=0, **none)], "none of AMSGA's parts", "81.0"),
        ([a_run("hff", s, {"acc": 0.62 + 0.01 * s}, "cifar10") for s in (0, 1)], "HFF", "61.93"),
        ([a_run("hff", 0, {"acc": 0.62}, "cifar10", features="a/cifar100.npz")], "prototypes on cifar100", "–"),
        ([a_run("dtg_mlp", 0, {"acc": 0.62}, "cifar10", sizes="2048,2048,2048,2048")], "hybrid", "63.72"),
        ([a_run("dtg_mlp", 0, {"acc": 0.62}, "cifar10", detach=True)], "all local", "–"),
        ([a_run("dtg_mlp", 0, {"acc": 0.62}, "cifar10", lambda_ff=0.0)], "backpropagation alone", "–"),
    ]
    cases[0][0][0][-1]["final"]["train"] = {"acc": 0.945}
    for (runs, name, paper), row in zip(cases, rows_of(results.descendants([c[0] for c in cases])), strict=True):
        assert row[0].endswith(name) and row[5] == paper and row[6] == str(len(runs))
    table = rows_of(results.descendants([c[0] for c in cases]))
    assert (table[0][3], table[0][4], table[1][4], table[3][3]) == ("94.00", "94.50", "–", "62.50 ± 0.71")


def test_side_by_side_has_one_row_for_each_method_and_network():
    three = {"sizes": "1000,1000,1000", "n_epochs": 20}
    all_runs = [
        [finish(a_run("backprop", 0, {"acc": 0.98}, **three))],
        [finish(a_run("backprop", 0, {"acc": 0.55}, "cifar10", **three))],
        [finish(a_run("train", s, {"acc": 0.97 + 0.01 * s, "softmax_acc": 0.96}, **three)) for s in (0, 1)],
        [finish(a_run("train", 0, {"acc": 0.97, "softmax_acc": 0.96}, loss="margin", **three))],
        [finish(a_run("dtg_mlp", 0, {"acc": 0.9}, "fashion-mnist", detach=True, **three))],
    ]
    table = results.side_by_side(all_runs).split("\n\n")[0]
    found = {row[0]: row for row in rows_of(table)}
    bp = found["backpropagation (`backprop.py`)"]
    assert len(found) == 4 and bp[2:8] == ["2.00 M", "20", "60", "0.50 GB", "1", "98.00 (1)"] and bp[9] == "55.00 (1)"
    assert found["Forward-Forward, label in the input (`train.py`)"][7] == "97.50 ± 0.71 (2); 96.00 ± 0.00"
    assert found["Forward-Forward, label in the input (`train.py`), margin loss"][7] == "97.00 (1); 96.00"
    assert found["DTG-FF MLP (`dtg_mlp.py`), --detach: all local"][7:] == ["–", "90.00 (1)", "–"]


def test_ablations_are_drawn_from_the_committed_records(tmp_path):
    folder = tmp_path / "results" / "ff_mnist_amsga-parts"
    folder.mkdir(parents=True)
    lines = [{"config": {}}]
    for group, variant in (("reference", "reference"), ("left out", "without scales"), ("none", "none, theta 4")):
        for seed in (0, 1):
            config = {"n_epochs": 30}
            lines.append({"variant": variant, "group": group, "seed": seed, "ff": {"val_acc": 0.9}, "config": config})
    (folder / "parts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = call(tmp_path, "viz/ff_mnist_ablations.py", "--results", tmp_path / "results", "--out", tmp_path / "drawn")
    assert done.returncode == 0 and "no speed.png" in done.stdout, done.stderr
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["parts.png"]
    names = {name for _, name, _ in explore.TABLES["dtg-ladder"][1]}
    assert names >= ff_mnist_ablations.PAPER_LADDER.keys()  # the paper's numbers find their rows
    speeds = ff_mnist_ablations.speeds(ROOT / "results" / "benchmarks" / "hff.txt")
    assert all(set(of) == {2, 5, 10, 20, 50, 100} for of in speeds.values())
