"""Pictures, film and tables from a small made-up run: every kind of run is drawn, twice to the same bytes."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common import record
from viz import concept, ff_cifar_lc, ff_cifar_lc_gif, results

ROOT = Path(__file__).resolve().parent.parent
FIGURES = {"curves", "per_class", "example_images", "label_encoded", "receptive_fields"}


def config(seed=0, epochs=2, n_layers=2, bp=True, validation=100):
    return {
        "seed": seed, "n_epochs": epochs, "n_layers": n_layers, "channels": 2, "rf": "11,5", "batch_size": 64,
        "lr": 0.01, "threshold": 2.0, "train_subset": 200, "validation": validation, "eval_subset": 20, "slot_rows": 3,
        "skip_first": True, "bp_baseline": bp, "full_test": True, "snapshot_every": 1,
    }  # fmt: skip


def lines(finished=True, **kind):
    """A record's lines, with a resumed segment in the middle and a class without test images."""
    c = config(**kind)
    layers = np.arange(c["n_layers"])
    acc = {"train_acc": 0.25 + 0.01 * c["seed"]} | ({"val_acc": 0.2} if c["validation"] else {})
    out = [
        {
            "command": "python ff_cifar_lc/train.py --out x --no-figures",
            "config": c,
            "dataset": {"name": "shapes"},
            "commit": "c0",
        }
    ]
    for epoch in range(1, c["n_epochs"] + finished):
        loss, gap = (0.6 / epoch + 0.01 * layers).tolist(), (0.1 * epoch + layers)
        line = {"epoch": epoch, "ff": {"loss": loss, "g_pos": (2 + gap).tolist(), "g_neg": (2 - gap).tolist(), **acc}}
        line["ff"]["seconds"] = 3.0
        out.append(line | ({"bp": {"loss": 2.0, "seconds": 1.5, **acc}} if c["bp_baseline"] else {}))
        if epoch == 1:
            out.append({"resumed_after_epoch": 1, "same_machine": True})
    if finished:
        score = {"test_acc": 0.22 + 0.02 * c["seed"], "per_class": [None, *np.linspace(0, 0.8, 9)]}
        twin = {"bp": score, "rank_correlation": 0.75} if c["bp_baseline"] else {}
        out.append({"final": {"test_images": 40, "ff": score, **twin}})
    return out


def make_run(folder, shape=(32, 32, 3), snapshots=True, **kind):
    folder.mkdir()
    written = lines(**kind)
    for line in written:
        record.append(folder, line)
    if not snapshots:
        return folder
    (folder / "snapshots").mkdir()
    rng = np.random.default_rng(0)
    examples = {"images": rng.integers(0, 256, (10, *shape), dtype=np.uint8), "mean": np.full(shape[2], 0.5)}
    names = {"class_names": [f"class {k}" for k in range(10)]}
    record.save_arrays(folder / "snapshots" / "examples.npz", examples, names)
    for epoch in [0, *(line["epoch"] for line in written if "epoch" in line)]:
        arrays = {
            "filters": rng.normal(size=(6, 11, 11, shape[2], 2)).astype(np.float32),
            "places": np.array([(0, 0), (0, 21), (10, 5), (10, 16), (21, 0), (21, 21)]),
            "goodness": rng.gamma(2 + epoch, size=(written[0]["config"]["n_layers"], 20, 10)),
            "labels": rng.integers(0, 10, 20).astype(np.uint8),
        }
        record.save_arrays(folder / "snapshots" / f"epoch-{epoch:03d}.npz", arrays, {"epoch": epoch})
    return folder


def script(name, *words, cwd):
    """Run viz/<name>.py as a user does, from another directory."""
    command = [sys.executable, str(ROOT / "viz" / f"{name}.py"), *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def call(module, monkeypatch, *words):
    """The same in this process, without a second start."""
    monkeypatch.setattr(sys, "argv", ["script", *map(str, words)])
    module.main()


def test_scripts_draw_a_run_from_another_directory_and_twice_the_same(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run", epochs=1)
    done = script("ff_cifar_lc", "--model", run, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"figures: {run / 'figures' / 'curves.png'} (and 4 more)\n"
    pictures = {path.stem: path for path in (run / "figures").glob("*.png")}
    assert set(pictures) == FIGURES
    for path in pictures.values():
        with Image.open(path) as picture:
            assert picture.width >= 1000 and picture.height >= 480 and not picture.info
        assert path.stat().st_size < 300_000
    call(ff_cifar_lc, monkeypatch, run, "--out", tmp_path / "again")
    for path in pictures.values():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    capsys.readouterr()

    done = script("ff_cifar_lc_gif", run, "--fps", "5", "--out", "film.gif", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("film: film.gif (2 frames"), done.stderr
    assert (tmp_path / "film.gif").stat().st_size <= ff_cifar_lc_gif.LIMIT
    with Image.open(tmp_path / "film.gif") as film:
        durations = [film.seek(k) or film.info["duration"] for k in range(film.n_frames)]
    assert durations == [200, 2000]
    call(ff_cifar_lc_gif, monkeypatch, run, "--fps", "5", "--out", tmp_path / "again.gif")
    assert (tmp_path / "again.gif").read_bytes() == (tmp_path / "film.gif").read_bytes()


def test_grey_images_one_layer_no_twin_no_validation(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run", (32, 32, 1), n_layers=1, bp=False, validation=0)
    call(ff_cifar_lc, monkeypatch, run)
    assert "(and 4 more)" in capsys.readouterr().out
    call(ff_cifar_lc_gif, monkeypatch, run, "--epochs", "1", "--snapshot-every", "5")
    assert "(2 frames" in capsys.readouterr().out  # epoch 0, and 1 because it is the last


def test_an_interrupted_run_is_drawn_as_far_as_it_went(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run", finished=False, snapshots=False, n_layers=4)
    call(ff_cifar_lc, monkeypatch, run)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "the run was interrupted, so no per_class.png" in out and "no snapshots" in out
    assert [path.name for path in (run / "figures").iterdir()] == ["curves.png"]
    with pytest.raises(record.RecordError, match="no snapshots"):
        call(ff_cifar_lc_gif, monkeypatch, run)


def test_a_film_that_is_too_large_loses_colours_then_pixels_and_says_so(monkeypatch):
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)) for _ in range(3)]
    whole, said = ff_cifar_lc_gif.fit(frames, 4)
    assert said == ""
    monkeypatch.setattr(ff_cifar_lc_gif, "LIMIT", len(whole) // 2)
    less, said = ff_cifar_lc_gif.fit(frames, 4)
    assert len(less) <= len(whole) // 2 and "reduced to" in said
    monkeypatch.setattr(ff_cifar_lc_gif, "LIMIT", 100)
    with pytest.raises(record.RecordError, match="--snapshot-every"):
        ff_cifar_lc_gif.fit(frames, 4)


def test_mistakes_end_in_one_line_and_exit_code_2(tmp_path):
    for words in (["nowhere"], []):
        done = script("ff_cifar_lc", *words, cwd=tmp_path)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{}\n", "[]\n", '{"config": {"seed": 0}}\n', "not json\n"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "record.jsonl").write_text(text)
    with pytest.raises(record.RecordError):
        ff_cifar_lc.Run(tmp_path)


def test_the_concept_picture(tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        call(concept, monkeypatch, "--out", tmp_path / "made" / name)
    a, b = ((tmp_path / "made" / name).read_bytes() for name in ("a.png", "b.png"))
    assert a == b and len(a) < 300_000


def commit_record(root, name, **kind):
    folder = root / "results" / "ff_cifar_lc"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines(**kind)))


def test_tables_are_made_from_records_and_a_stale_one_is_found(tmp_path, monkeypatch, capsys):
    commit_record(tmp_path, "a.jsonl", seed=0)
    commit_record(tmp_path, "b.jsonl", seed=1)
    commit_record(tmp_path, "c.jsonl", seed=4, bp=False)
    readme = tmp_path / "README.md"
    names = list(results.TABLES)
    empty = "".join(f"before\n<!-- results:{name} -->\n<!-- /results:{name} -->\n" for name in names) + "after ± ⁺\n"
    readme.write_text(empty, encoding="utf-8")

    stale = script("results", "--check", "--root", tmp_path, cwd=tmp_path)
    assert stale.returncode == 1 and stale.stderr.count("\n") == 1 and "README.md" in stale.stderr
    assert readme.read_text(encoding="utf-8") == empty
    call(results, monkeypatch, "--root", tmp_path)
    call(results, monkeypatch, "--root", tmp_path, "--check")
    text = readme.read_text(encoding="utf-8")
    assert "| FF | shapes, 200 images, 2 epochs | 23.00 ± 1.41 (2 seeds) | – | 25.5 ± 0.7 | 3.0 |" in text
    assert "| BP twin | shapes, 200 images, 2 epochs | 23.00 ± 1.41 (2 seeds) | – | 25.5 ± 0.7 | 1.5 |" in text
    assert "`python ff_cifar_lc/train.py --seeds 0-1` | c0 |" in text and "30.00 (1 seed)" in text
    assert "| 9 | 80.0 ± 0.0 | 80.0 ± 0.0 |" in text and "| 0 | – | – |" in text and "0.75 ± 0.00" in text
    assert "| 1 | 3.20 ± 0.00 | 0.80 ± 0.00 | – |" in text
    assert text.startswith("before\n") and text.endswith("after ± ⁺\n")


def test_the_write_up_stands_only_beside_its_own_settings():
    first = {"config": results.WRITE_UP_CONFIG | {"seed": 3}, "dataset": {"name": "cifar10"}}
    assert results.write_up([[first]])["ff"] == 22.78
    assert results.write_up([[first | {"dataset": {"name": "shapes"}}]]) == {}
    assert results.write_up([[first | {"config": first["config"] | {"lr": 0.1}}]]) == {}


def test_results_refuse_what_would_mislead(tmp_path):
    folder = tmp_path / "results" / "ff_cifar_lc"
    commit_record(tmp_path, "a.jsonl")
    commit_record(tmp_path, "b.jsonl")
    with pytest.raises(record.RecordError, match="repeats"):
        results.groups(folder)
    commit_record(tmp_path, "b.jsonl", seed=1, finished=False)
    with pytest.raises(record.RecordError, match="no final line"):
        results.groups(folder)
    with pytest.raises(record.RecordError, match="no table x"):
        results.fill("<!-- results:x -->\n<!-- /results:x -->", tmp_path, "README.md")
    with pytest.raises(record.RecordError, match="never closed"):
        results.fill("<!-- results:ff_cifar_lc -->\n", tmp_path, "README.md")


def test_viz_never_imports_an_experiment():
    for path in (ROOT / "viz").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.startswith(("ff_", "common.kernels", "common.cli")) for name in names), path
