"""Records and checkpoints: whole or not there, and cut back to the checkpoint."""

from types import SimpleNamespace

import numpy as np
import pytest

from common import record, runs
from common.evaluate import accuracy, in_batches, mean_sd, per_class_accuracy, rank_correlation
from common.layers import Dense
from common.optim import Adam


def test_lines_and_folders(tmp_path):
    folders = [record.new_run(tmp_path, 3) for _ in range(3)]
    assert len(set(folders)) == 3 and all("seed3" in f.name for f in folders)
    record.append(folders[0], {"epoch": 1, "loss": np.float32(0.5), "g": np.arange(2)})
    record.append(folders[0], {"final": {"acc": 0.25}})
    assert record.read(folders[0]) == [{"epoch": 1, "loss": 0.5, "g": [0, 1]}, {"final": {"acc": 0.25}}]
    with pytest.raises(TypeError):
        record.append(folders[0], {"what": object()})


@pytest.mark.parametrize("content", [None, "not json\n", "\x00\x01"])
def test_unreadable_record(tmp_path, content):
    if content:
        (tmp_path / "record.jsonl").write_text(content)
    with pytest.raises(record.RecordError, match="record"):
        record.read(tmp_path)


def test_arrays_survive_and_damage_is_named(tmp_path):
    path = tmp_path / "a.npz"
    record.save_arrays(path, {"w/0": np.arange(5.0)}, {"epoch": 3, "big": 2**100})
    arrays, meta = record.load_arrays(path)
    assert np.array_equal(arrays["w/0"], np.arange(5.0)) and meta == {"epoch": 3, "big": 2**100}
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(record.RecordError, match="damaged"):
        record.load_arrays(path)
    with pytest.raises(record.RecordError, match="does not exist"):
        record.load_arrays(tmp_path / "b.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_a_crash_while_saving_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    record.save_arrays(path, {"w": np.zeros(3)}, {"epoch": 1})

    def crash(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(record.np, "savez", crash)
    with pytest.raises(OSError):
        record.save_arrays(path, {"w": np.ones(3)}, {"epoch": 2})
    assert record.load_arrays(path)[1] == {"epoch": 1}


def test_the_record_is_cut_back_to_the_checkpoint(tmp_path):
    record.append(tmp_path, {"epoch": 1})
    record.save_checkpoint(tmp_path, {"w": np.ones(2)}, {"epoch": 1})
    record.append(tmp_path, {"epoch": 2})  # killed before the second checkpoint
    _, meta = record.load_checkpoint(tmp_path)
    assert meta["epoch"] == 1 and record.read(tmp_path) == [{"epoch": 1}]
    (tmp_path / "record.jsonl").write_text("")
    with pytest.raises(record.RecordError, match="shorter"):
        record.load_checkpoint(tmp_path)


def test_everything_between_steps_is_saved():
    def net():
        layers = [Dense(4, 3, np.random.default_rng(0)), Dense(3, 2, np.random.default_rng(1))]
        return layers, [Adam(layer.params, 0.1) for layer in layers]

    def steps(layers, opts, n):
        for i in range(n):
            for layer, opt in zip(layers, opts, strict=True):
                opt.step({k: np.full_like(p, 0.1 * i - 0.2) for k, p in layer.params.items()})

    one, two = net(), net()
    steps(*one, 3)
    arrays = record.state_of("x", *one)
    record.restore("x", *two, {k: v.copy() for k, v in arrays.items()})
    steps(*one, 2), steps(*two, 2)
    for a, b in zip(one[0], two[0], strict=True):
        assert all(np.array_equal(a.params[k], b.params[k]) for k in a.params)


def test_statistics():
    assert accuracy([1, 2, 3], np.array([1, 2, 0])) == 2 / 3
    assert per_class_accuracy(np.array([0, 1, 1]), np.array([0, 0, 1]), 3) == [0.5, 1.0, None]
    assert np.isclose(rank_correlation([1, 2, 3, 4], [10, 20, 30, 50]), 1) and np.isclose(
        rank_correlation([1, 2, 3], [3, 2, 1]), -1
    )
    assert np.isclose(rank_correlation([1, 1, 2], [1, 1, 3]), 1)
    assert mean_sd([1, 2, 3]) == (2, 1) and np.isnan(mean_sd([5])[1])
    assert [s.stop for s in in_batches(5, 2)] == [2, 4, 5]


def test_checkpoints_take_at_most_a_twentieth_of_the_time(tmp_path, monkeypatch):
    """A run whose epochs take a second and whose checkpoints take half of one; the last epoch is always saved."""
    now, saved = [100.0], []
    monkeypatch.setattr(runs.time, "perf_counter", lambda: now[0])

    def save(folder, arrays, meta):
        now[0] += 0.5
        saved.append(meta["epoch"])

    monkeypatch.setattr(record, "save_checkpoint", save)
    run = runs.Run(SimpleNamespace(n_epochs=25), None, None, tmp_path)
    for epoch in range(1, 26):
        now[0] += 1
        run.checkpoint(epoch, {}, {})
    assert saved == [1, 11, 21, 25]
