"""An imagefolder too large for arrays: its order, what is decoded and when; ff_cnn/train.py on it, killed, resumed."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref

import numpy as np
import pytest
import scripts
from PIL import Image
from test_ff_cnn import without_times
from test_gpu import far, other_module

from common import arrays, data, record, runs
from common import split as splits
from common.data import DataError, Folder, Pictures, datasets, folders, pieces

cnn = scripts.load("ff_cnn/train.py")
SMALL = "--validation 60 --eval-subset 40 --n-epochs 2 --batch-size 32 --width 0.03 --no-figures --threads 1".split()
TRAIN, VAL, CLASSES = 300, 50, 5
# A script with a limit of its own: of what is held in arrays, in bytes, and of images behind mean and sd.
LIMITED = """
import runpy, sys
from pathlib import Path
script, datasets_limit, sample = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sys.argv = [script, *sys.argv[4:]]
sys.path[:0] = [str(Path(script).parent), str(Path(script).parents[1])]
from common import split
from common.data import datasets
datasets.MAX_FOLDER, split.SAMPLE = datasets_limit, sample
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """JPEGs in {train,val}/CLASS, of several sizes; a class is a colour, under noise."""
    root, rng = tmp_path_factory.mktemp("photos") / "set", np.random.default_rng(0)
    colours = rng.integers(60, 196, (CLASSES, 3))
    for part, n in (("train", TRAIN), ("val", VAL)):
        for i in range(n):
            h, w = rng.integers(38, 60, 2)
            small = np.clip(colours[i % CLASSES] + rng.normal(0, 50, (6, 6, 3)), 0, 255).astype(np.uint8)
            place = root / part / f"class{i % CLASSES}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(small).resize((w, h)).save(place / f"{i}.jpg", quality=90)
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FF_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FF_DATA", raising=False)


def load(path, size=32):
    """As if it were too large for arrays."""
    limit, datasets.MAX_FOLDER = datasets.MAX_FOLDER, 1000
    try:
        return data.load(f"imagefolder:{path}@{size}", quiet=True, stream=True)
    finally:
        datasets.MAX_FOLDER = limit


def decoded(images):
    return np.concatenate(list(pieces(images, 64)))


def command(path, *flags, script="ff_cnn/train.py", limit=1000, sample=10_000):
    words = ["--dataset", f"imagefolder:{path}@32", *SMALL, "--out", "out", *flags]
    return [sys.executable, "-c", LIMITED, str(scripts.ROOT / script), str(limit), str(sample), *words]


def call(cwd, *args, **kwargs):
    return subprocess.run(command(*args, **kwargs), cwd=cwd, capture_output=True, text=True, timeout=300)


def finished(cwd, *args, **kwargs):
    """-> the record's lines, the last checkpoint's arrays, the folder of the one run."""
    cwd.mkdir()
    done = call(cwd, *args, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (cwd / "out").iterdir()
    return record.read(folder), record.load_arrays(folder / "checkpoint.npz")[0], folder


def same_arrays(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


# ---- the data set


def test_the_same_images_in_the_same_order_as_arrays(photos, monkeypatch):
    whole, streamed = data.load(f"imagefolder:{photos}@32", quiet=True, stream=True), load(photos)
    assert isinstance(whole.x_train, np.ndarray) and isinstance(streamed.x_train, Pictures)
    for name in ("train", "test"):
        a, b = getattr(whole, f"x_{name}"), getattr(streamed, f"x_{name}")
        assert (a.shape, a.dtype, a.ndim, a.size, len(a)) == (b.shape, b.dtype, b.ndim, b.size, len(b))
        assert np.array_equal(a, decoded(b))
        y, own = getattr(whole, f"y_{name}"), getattr(streamed, f"y_{name}")
        assert np.array_equal(y, own) and y.dtype == own.dtype and np.array_equal(own, b.folder.labels[b.rows])
    assert streamed.class_names == whole.class_names and streamed.sha256 != whole.sha256


def test_files_are_read_once_for_their_order_and_decoded_only_when_asked(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folders, "_decode", None)
    first = load(photos)
    monkeypatch.setattr(Folder, "sha256", None)
    again, larger = load(photos), load(photos, 64)
    assert again.sha256 == first.sha256 != larger.sha256 and larger.x_train.shape == (TRAIN, 64, 64, 3)
    assert np.array_equal(larger.x_train.rows, first.x_train.rows)
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in kept) < 20 * (TRAIN + VAL) + 2000
    assert capsys.readouterr().err == ""  # quiet


def test_the_name_is_of_the_files_and_labels(photos, tmp_path):
    first, copy = load(photos), shutil.copytree(photos, tmp_path / "elsewhere")
    assert load(copy).sha256 == first.sha256
    (copy / "train" / "class0" / "0.jpg").rename(copy / "train" / "class1" / "0.jpg")
    moved = load(copy).sha256
    (copy / "train" / "class1" / "0.jpg").write_bytes((copy / "train" / "class1" / "1.jpg").read_bytes())
    assert len({first.sha256, moved, load(copy).sha256}) == 3


def test_without_stream_it_is_refused_before_a_file_is_read(photos, monkeypatch):
    monkeypatch.setattr(datasets, "MAX_FOLDER", 1000)
    monkeypatch.setattr(Folder, "sha256", None)
    with pytest.raises(DataError, match="append a smaller @SIZE, or train with ff_cnn/train.py"):
        data.load(f"imagefolder:{photos}@32")


@pytest.mark.parametrize("script", ["ff_mnist/train.py", "ff_cifar_lc/train.py", "ff_cnn/cumulative.py"])
def test_other_scripts_refuse_in_one_line(photos, tmp_path, script):
    words = [word for word in command(photos, script=script)[:8] if word != "--validation"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "train with ff_cnn/train.py" in done.stderr
    assert not list(tmp_path.iterdir())


def test_pictures_are_picked_without_being_decoded(photos, monkeypatch):
    x = load(photos).x_train
    with monkeypatch.context() as nothing:
        nothing.setattr(folders, "_decode", None)
        some = x[10:200][np.array([7, 7, 0, -1])]
        assert some.shape == (4, 32, 32, 3) and some.size == 4 * 3072 and x[:0].shape == (0, 32, 32, 3)
        for mistake in (lambda: np.asarray(x), lambda: x[5], lambda: x[np.arange(TRAIN) > 3], lambda: x.mean()):
            with pytest.raises((TypeError, AttributeError)):
                mistake()
        with pytest.raises(IndexError):
            x[np.array([TRAIN])]
    assert np.array_equal(decoded(some), decoded(x)[[17, 17, 10, 199]]) and list(pieces(x[:0], 5)) == []
    assert [len(piece) for piece in pieces(x[:11], 4)] == [len(piece) for piece in pieces(np.zeros(11), 4)] == [4, 4, 3]


# ---- the split


def split(photos, **changes):
    cfg = cnn.Config(**{"validation": 60, "batch_size": 32, "width": 0.03, "backbone": "plain4"} | changes)
    ds = load(photos)
    return cfg, cnn.Split(ds, cfg), ds


def test_mean_and_sd_come_from_so_many_images(photos, monkeypatch):
    monkeypatch.setattr(splits, "SAMPLE", 70)
    _, part, _ = split(photos)
    x = decoded(part.train[0][:70]) / 255
    assert np.allclose(part.about["mean"], x.mean((0, 1, 2)), atol=1e-6)
    assert np.allclose(part.about["sd"], x.std((0, 1, 2)), atol=1e-6) and part.about["streamed"]
    assert part.about["train"] == TRAIN - 60 == len(part.train[0]) and len(part.val[0]) == 60


def test_what_is_read_is_what_the_rows_say(photos):
    cfg, part, _ = split(photos, flip=False, jitter=0, cutout=0)
    order = np.random.default_rng(0).permutation(240)
    batches = [order[i : i + 32] for i in range(0, 240, 32)]
    everything = decoded(part.train[0])
    cfg.crop = 0  # the middle; and no random number is drawn for it
    for rows, images in zip(batches, part.read(batches, cfg, None), strict=True):
        x, labels = part.changed(rows, cfg, None, images)
        assert np.array_equal(images, everything[rows]) and np.array_equal(x, part.floats(images))
        assert np.array_equal(labels, part.train[1][rows])
    cfg.crop = 4
    one, two, other = (np.concatenate(list(part.read(batches, cfg, np.random.default_rng(seed)))) for seed in (1, 1, 2))
    assert np.array_equal(one, two) and not np.array_equal(one, other) and not np.array_equal(one, everything[order])
    assert np.array_equal(part.changed(batches[0], cfg, None, one[:32])[0], part.floats(one[:32]))  # not moved as well


def test_other_images_than_the_batchs_are_an_error(photos):
    cfg, part, _ = split(photos)
    part.train = part.train[0][::-1], part.train[1]
    with pytest.raises(RuntimeError, match="other images than the batch's"):
        next(part.read([np.arange(32)], cfg, np.random.default_rng(0)))
    cfg.batch_size = 16  # not as the batches were cut
    with pytest.raises(RuntimeError, match="other images than the batch's"):
        list(split(photos)[1].read([np.arange(32)], cfg, np.random.default_rng(0)))


# ---- memory


class Counting:
    """Stands in for NumPy in folders.py: of the arrays that images are decoded into, counts those alive."""

    def __init__(self):
        self.refs, self.most, self.made = [], 0, 0

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype):
        array = np.empty(shape, dtype)
        self.refs = [ref for ref in self.refs if ref() is not None] + [weakref.ref(array)]
        self.most, self.made = max(self.most, len(self.refs)), self.made + 1
        return array


def test_few_batches_are_alive_whatever_the_length_of_an_epoch(photos, monkeypatch):
    cfg, part, ds = split(photos, batch_size=8)
    net = cnn.Net(cfg, part.shape, part.n_classes, np.random.default_rng(0))
    counting = Counting()
    monkeypatch.setattr(folders, "np", counting)
    cnn.train_epoch(net, part, np.random.default_rng(1), cfg, 1)
    assert counting.made == 30 and counting.most <= 4 + 4  # decoded ahead, and on their way through zips and the step
    counting.most = 0
    rows = np.arange(3000) % TRAIN
    cnn.evaluate(net, ds.x_train[rows], ds.y_train[rows], cfg, part)
    assert counting.made == 42 and counting.most <= 2 + 4
    assert not any(ref() is not None for ref in counting.refs)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("images")]


def test_memory_is_bounded_in_bytes(photos):
    """40 MB of images at 128 x 128, passed through in pieces of half a megabyte."""
    x = load(photos, 128).x_train[np.arange(800) % TRAIN]
    assert x.size > 39e6
    tracemalloc.start()
    try:
        assert sum(len(piece) for piece in pieces(x, 10)) == 800
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


# ---- runs


def test_a_streamed_run_is_the_run_on_arrays(photos, tmp_path):
    """Without random places in the picture (--crop 0) both see the same pixels: the same record, the same bits."""
    ours, theirs = (finished(tmp_path / str(limit), photos, "--crop", "0", limit=limit) for limit in (1000, 4 << 30))
    assert same_arrays(ours[1], theirs[1])
    first, other = ours[0][0]["dataset"], theirs[0][0]["dataset"]
    assert first.pop("streamed") and "streamed" not in other and first.pop("sha256") != other.pop("sha256")
    assert first == other and without_times(ours[0][1:]) == without_times(theirs[0][1:])
    assert ours[0][-1]["final"]["test"]["sum_acc"] > 0


@pytest.mark.parametrize("epochs", [0, 1])
def test_kill_and_resume_ends_with_the_same_bits(photos, tmp_path, epochs):
    """With random places; killed in its first epoch or after it."""
    flags = ["--seed", "5", "--n-epochs", "4"]
    whole, weights, _ = finished(tmp_path / "whole", photos, *flags)
    process = subprocess.Popen(command(photos, *flags), cwd=tmp_path, stdout=subprocess.DEVNULL)
    deadline = time.time() + 120
    while process.poll() is None and time.time() < deadline:
        records = list((tmp_path / "out").glob("*/record.jsonl"))
        if records and records[0].read_text().count('"epoch"') >= epochs and records[0].read_text().count("\n"):
            break
        time.sleep(0.002)
    process.kill()  # SIGKILL; TerminateProcess on Windows
    process.wait()
    (folder,) = (tmp_path / "out").iterdir()
    if process.returncode == 0:
        pytest.skip("the run was over before it could be killed")
    assert os.name == "nt" or process.returncode == -signal.SIGKILL
    done = call(tmp_path, photos, "--resume", str(folder))
    assert done.returncode == 0 and "Resuming" in done.stdout, done.stdout + done.stderr
    lines = [line for line in record.read(folder) if "resumed_after_epoch" not in line]
    assert without_times(lines) == without_times(whole)
    assert same_arrays(record.load_arrays(folder / "checkpoint.npz")[0], weights)


def test_an_unreadable_image_in_the_middle_of_an_epoch_is_one_line(photos, tmp_path):
    copy = shutil.copytree(photos, tmp_path / "copy")
    bad = copy / "train" / "class2" / "7.jpg"
    for i in range(100):  # its bytes decide where it comes: in training, not among the 20 behind mean and sd
        bad.write_bytes(b"no image %d" % i)
        x = load(copy).x_train
        drawn = np.random.default_rng([0, 2]).permutation(TRAIN - 60)  # as common/split.py draws
        place = np.flatnonzero(np.array(x.folder.files)[x.rows[:-60][drawn]] == "class2/7.jpg")
        if len(place) and place[0] >= 20:
            break
    done = call(tmp_path, copy, sample=20)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {bad}: no readable image (UnidentifiedImageError")
    (folder,) = (tmp_path / "out").iterdir()
    assert len(record.read(folder)) == 1  # no epoch was completed


def test_a_size_that_the_networks_do_not_take(photos, tmp_path):
    done = call(tmp_path, photos, "--dataset", f"imagefolder:{photos}@28")
    assert done.returncode == 2 and "the networks take squares of 32, 64, 96" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["stand-in", "CuPy"])
def test_it_is_the_same_on_every_device(photos, name):
    """Images go there batch by batch: Pictures stay what they are."""
    found = []
    for xp in (np, other_module(name)):
        cfg, part, _ = split(photos, backbone="plain4", batch_size=50)
        net = cnn.Net(cfg, part.shape, part.n_classes, np.random.default_rng(1))
        if xp is not np:
            part.to(xp)
            runs.move(xp, {"net": net.layers})
        rng = np.random.default_rng(2)
        logs = [cnn.train_epoch(net, part, rng, cfg, epoch) for epoch in (1, 2)]
        scores, _ = cnn.evaluate(net, *part.val, cfg, part)
        assert all(isinstance(getattr(part, each)[0], Pictures) for each in ("train", "val", "test"))
        weights = np.concatenate([arrays.host(p).ravel() for layer in net.layers[0] for p in layer.params.values()])
        found.append((weights, [[*log["loss"], log["head_loss"]] for log in logs], scores["sum_acc"]))
    assert far(found[1][0], found[0][0]) < 2e-3  # Adam's first steps are signs, also of gradients next to 0
    assert np.allclose(found[1][1], found[0][1], rtol=2e-3) and abs(found[1][2] - found[0][2]) <= 0.1
