"""One set of images whatever the source: canonical order, cache, data folders, mirrors, `auto` and its fallback."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import test_data_download as mirrors
import test_data_formats as make
from test_data_download import Server, serve  # noqa: F401 (a fixture)

from common import data
from common.data import DataError, datasets, download, formats

REPO = Path(__file__).resolve().parents[1]
TRAIN, TEST = make.images(60, 1), make.images(20, 2)


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """An empty cache and no settings of this machine."""
    for name in ("FF_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download, "POLL", 0.02)


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr(datasets, "MIRRORS", {name: {} for name in datasets.MIRRORS})


@pytest.fixture
def parses(monkeypatch):
    """Counts how often files were parsed."""
    calls, parse = [], datasets._parse
    monkeypatch.setattr(datasets, "_parse", lambda *args: calls.append(args) or parse(*args))
    return calls


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """A stand-in for builtin.py that draws little; counts the drawings."""
    calls = []

    def draw(name, shape):
        calls.append(name)
        return *make.images(20, 5, shape), *make.images(10, 6, shape), tuple("abcdefghij")

    module = types.ModuleType("common.data.builtin")
    module.__file__ = str(tmp_path / "builtin.py")
    Path(module.__file__).write_text("# version 1")
    module.glyphs = lambda: draw("glyphs", (28, 28, 1))
    module.shapes = lambda: draw("shapes", (32, 32, 3))
    monkeypatch.setitem(sys.modules, "common.data.builtin", module)
    monkeypatch.setattr(data, "builtin", module, raising=False)
    monkeypatch.setattr(datasets, "version", lambda package: "1")  # of matplotlib
    module.calls = calls
    return module


def folder(path):
    path.mkdir(parents=True, exist_ok=True)
    return path


def cifar10_tar(path, train=TRAIN, test=TEST):
    return make.write_tar(path, make.cifar10_files(train, test))


def same(a, b):
    return all(np.array_equal(getattr(a, k), getattr(b, k)) for k in ("x_train", "y_train", "x_test", "y_test"))


# ---- one canonical order


def test_pickles_and_pngs_give_identical_arrays(tmp_path):
    a, b, c, d = (folder(tmp_path / name) for name in "abcd")
    cifar10_tar(a / "cifar-10-python.tar.gz")
    order = np.random.default_rng(0).permutation(60)
    make.write_zip(b / "cifar10-png.zip", make.png_files((TRAIN[0][order], TRAIN[1][order]), TEST))
    make.write_tar(c / "cifar10.tgz", make.png_files(TRAIN, TEST), ".")
    for name, content in make.cifar10_files(TRAIN, TEST, protocol=4).items():
        (folder(d / "cifar-10-batches-py") / name).write_bytes(content)
    sets = [data.load("cifar10", data_dir=place) for place in (a, b, c, d)]
    for other in sets[1:]:
        assert same(sets[0], other) and other.sha256 == sets[0].sha256 and other.class_names == sets[0].class_names
        assert np.array_equal(sets[0].x_train[:7], other.x_train[:7])  # any prefix is the same images
    first = sets[0]
    assert first.x_train.shape == (60, 32, 32, 3) and first.y_train.shape == (60,) and first.x_test.shape[0] == 20
    assert all(x.dtype == np.uint8 for x in (first.x_train, first.y_train, first.x_test, first.y_test))
    assert {x.tobytes(): y for x, y in zip(first.x_train, first.y_train, strict=True)} == {
        x.tobytes(): y for x, y in zip(*TRAIN, strict=True)
    }
    assert first.source == "cifar-10-python.tar.gz" and first.note == ""


def test_canonical_order_is_by_hash_of_the_image_then_label():
    x = np.stack([TRAIN[0][0], TRAIN[0][1], TRAIN[0][0], TRAIN[0][0]])
    y = np.array([[3, 1], [5, 0], [2, 9], [3, 0]], np.uint8)
    sorted_x, sorted_y = datasets._sorted(x, y)
    hashes = [datasets.hashlib.sha256(image.tobytes()).hexdigest() for image in sorted_x]
    assert hashes == sorted(hashes)
    assert [tuple(label) for label in sorted_y.tolist() if label != [5, 0]] == [(2, 9), (3, 0), (3, 1)]


def test_the_fingerprint_sees_shapes_order_and_labels():
    x, y = TRAIN
    base = datasets.fingerprint(x, y, *TEST)
    assert base == datasets.fingerprint(np.asfortranarray(x), y, *TEST)
    assert len({base, datasets.fingerprint(x[::-1], y, *TEST), datasets.fingerprint(x, y[::-1], *TEST)}) == 3
    assert base != datasets.fingerprint(x.reshape(60, 3, 32, 32), y, *TEST)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", [".", "mnist", "MNIST/raw"])
def test_mnist_from_a_folder(tmp_path, packed, place, capsys):
    train, test = make.images(30, 1, (28, 28, 1)), make.images(10, 2, (28, 28, 1))
    make.write_mnist(tmp_path / "d" / place, train, test, packed)
    mnist = data.load("mnist", data_dir=tmp_path / "d")
    assert (
        mnist.x_train.shape == (30, 28, 28, 1)
        and mnist.y_test.shape == (10,)
        and mnist.class_names == tuple("0123456789")
    )
    assert "not the published mnist images: sha256 " + mnist.sha256 in capsys.readouterr().err


def test_one_set_is_not_taken_for_another(tmp_path, monkeypatch):
    """MNIST and Fashion-MNIST have the same file names: the fingerprint tells them apart."""
    make.write_mnist(tmp_path, make.images(30, 1, (28, 28, 1)), make.images(10, 2, (28, 28, 1)))
    monkeypatch.setitem(datasets.KNOWN, "mnist", data.load("mnist", data_dir=tmp_path).sha256)
    with pytest.raises(DataError, match="holds mnist, not fashion-mnist"):
        data.load("fashion-mnist", data_dir=tmp_path)


def test_cifar100_fine_and_coarse_share_images(tmp_path, parses):
    train, test = make.images(200, 1, classes=100), make.images(100, 2, classes=100)
    files = make.cifar100_files(train, test)
    make.write_tar(tmp_path / "cifar-100-python.tar.gz", files, "cifar-100-python")
    fine, coarse = (data.load(name, data_dir=tmp_path) for name in ("cifar100", "cifar100-coarse"))
    assert np.array_equal(fine.x_train, coarse.x_train) and np.array_equal(fine.y_train // 5, coarse.y_train)
    assert (len(fine.class_names), len(coarse.class_names)) == (100, 20) and fine.sha256 != coarse.sha256
    assert len(parses) == 1


# ---- the cache


def test_the_second_load_maps_the_cache(tmp_path, parses, monkeypatch):
    cifar10_tar(tmp_path / "cifar-10-python.tar.gz")
    first = data.load("cifar10", data_dir=tmp_path)
    monkeypatch.setenv("FF_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "fingerprint", None)  # nothing may be hashed anew
    again = data.load("cifar10")
    assert len(parses) == 1 and same(first, again) and again.sha256 == first.sha256
    base = again.x_train
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)
    for array in (again.x_train, again.y_train, again.x_test, again.y_test):
        with pytest.raises(ValueError):
            array[0] = 0


def test_another_archive_is_parsed_anew(tmp_path, parses):
    path = tmp_path / "cifar-10-python.tar.gz"
    first = data.load("cifar10", data_dir=cifar10_tar(path).parent)
    second = data.load("cifar10", data_dir=cifar10_tar(path, test=make.images(30, 9)).parent)
    assert len(parses) == 2 and first.sha256 != second.sha256
    os.utime(path, (1, 1))
    assert data.load("cifar10", data_dir=tmp_path).sha256 == second.sha256 and len(parses) == 3


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE = {
    "truncated npy": lambda entry: truncate(entry / "x_train.npy"),
    "longer npy": lambda entry: (entry / "x_test.npy").write_bytes((entry / "x_test.npy").read_bytes() + b"x"),
    "empty npy": lambda entry: (entry / "y_test.npy").write_bytes(b""),
    "missing npy": lambda entry: (entry / "x_test.npy").unlink(),
    "other bytes": lambda entry: (entry / "x_test.npy").write_bytes(bytes((entry / "x_test.npy").stat().st_size)),
    "other labels": lambda entry: np.save(entry / "y_test.npy", np.zeros((20, 1), np.uint8)),
    "bad json": lambda entry: truncate(entry / "meta.json"),
    "empty json": lambda entry: (entry / "meta.json").write_text(""),
    "json of something else": lambda entry: (entry / "meta.json").write_text("[1]"),
    "json without sizes": lambda entry: (entry / "meta.json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_entry_is_made_again(tmp_path, parses, capsys, damage):
    cifar10_tar(tmp_path / "cifar-10-python.tar.gz")
    first = data.load("cifar10", data_dir=tmp_path)
    sha256, x_test = first.sha256, first.x_test.copy()
    del first  # Windows does not replace a file that is mapped
    (entry,) = (tmp_path / "cache").iterdir()
    capsys.readouterr()
    DAMAGE[damage](entry)
    again = data.load("cifar10", data_dir=tmp_path)
    assert again.sha256 == sha256 and np.array_equal(again.x_test, x_test) and len(parses) == 2
    assert capsys.readouterr().err.count("damaged cache entry") == 1
    data.load("cifar10", data_dir=tmp_path)
    assert len(parses) == 2


def test_a_full_disk_leaves_no_cache_entry(tmp_path, monkeypatch):
    cifar10_tar(tmp_path / "cifar-10-python.tar.gz")

    def full(file, array, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(datasets.np, "save", full)
        with pytest.raises(DataError, match="cannot use the cache .*No space left on device.*FF_CACHE"):
            data.load("cifar10", data_dir=tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(data.load("cifar10", data_dir=tmp_path).x_train) == 60


def test_a_cache_that_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    cifar10_tar(tmp_path / "cifar-10-python.tar.gz")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FF_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="cannot use the cache"):
        data.load("cifar10", data_dir=tmp_path)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("FF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME" if os.name != "nt" else "LOCALAPPDATA", str(tmp_path))
    assert datasets.cache_dir() == tmp_path / "forward-forward"


# ---- folders that lack something


def test_errors_in_a_data_folder_name_the_remedy(tmp_path, drawn):
    for name in ("cifar10", "auto"):  # `auto` never hides a mistake in --data-dir behind a built-in set
        with pytest.raises(DataError, match="does not exist"):
            data.load(name, data_dir=tmp_path / "nowhere")
        with pytest.raises(DataError, match="cifar10 is not in .*: put cifar-10-python.tar.gz"):
            data.load(name, data_dir=tmp_path)
        (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
        with pytest.raises(DataError, match="is empty"):
            data.load(name, data_dir=tmp_path)
        (tmp_path / "cifar-10-python.tar.gz").unlink()
    with pytest.raises(DataError, match="mnist is not in .*: put train-images-idx3-ubyte.gz"):
        data.load("mnist", data_dir=tmp_path)
    make.write_mnist(tmp_path, make.images(30, 1, (28, 28, 1)), make.images(10, 2, (28, 28, 1)))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="incomplete in .*: put t10k-labels-idx1-ubyte.gz there"):
        data.load("mnist", data_dir=tmp_path)
    assert drawn.calls == []
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_a_data_folder_that_may_not_be_read(tmp_path, monkeypatch):
    def forbidden(files, version):
        raise PermissionError(13, "Permission denied", str(files[0]))

    cifar10_tar(tmp_path / "cifar-10-python.tar.gz")
    monkeypatch.setattr(datasets, "_identity", forbidden)
    with pytest.raises(DataError, match="cannot read .*cifar-10-python.tar.gz .Permission denied."):
        data.load("cifar10", data_dir=tmp_path)


def test_images_and_labels_must_fit(tmp_path):
    make.write_mnist(
        tmp_path / "a", make.images(30, 1, (28, 28, 1)), (make.images(10, 2, (28, 28, 1))[0], np.zeros(9, "B"))
    )
    with pytest.raises(DataError, match="10 images .* and 9 labels"):
        data.load("mnist", data_dir=tmp_path / "a")
    make.write_mnist(tmp_path / "b", make.images(30, 1, (28, 28, 1)), make.images(10, 2, (27, 28, 1)))
    with pytest.raises(DataError, match="cannot be mnist"):
        data.load("mnist", data_dir=tmp_path / "b")
    make.write_mnist(tmp_path / "c", make.images(30, 1, (28, 28, 1), classes=11), make.images(10, 2, (28, 28, 1)))
    with pytest.raises(DataError, match="a label without a class name"):
        data.load("mnist", data_dir=tmp_path / "c")


def test_unknown_names():
    for arguments in ({"name": "imagenet"}, {"name": "auto", "auto": "imagenet"}):
        with pytest.raises(DataError, match="unknown data set 'imagenet': choose one of auto, mnist,"):
            data.load(**arguments)


# ---- the built-in sets and `auto`


def test_built_in_sets_are_drawn_once(drawn):
    for _ in range(2):
        shapes, glyphs = data.load("shapes"), data.load("glyphs", data_dir="/nowhere")
    assert drawn.calls == ["shapes", "glyphs"]
    assert shapes.x_train.shape == (20, 32, 32, 3) and glyphs.x_test.shape == (10, 28, 28, 1)
    assert shapes.class_names == tuple("abcdefghij") and shapes.note == "" and "builtin.py" in shapes.source
    Path(drawn.__file__).write_text("# version 2")
    data.load("shapes")
    assert drawn.calls == ["shapes", "glyphs", "shapes"]


@pytest.mark.parametrize(
    "wanted, stand_in", [("cifar10", "shapes"), ("cifar100-coarse", "shapes"), ("mnist", "glyphs")]
)
def test_auto_falls_back_loudly(drawn, no_network, capsys, wanted, stand_in):
    fallback = data.load("auto", auto=wanted, quiet=True)
    assert (
        fallback.name == stand_in and wanted.removesuffix("-coarse") in fallback.note and "no mirror" in fallback.note
    )
    notice = capsys.readouterr().err
    assert f"NOT {wanted.upper()}" in notice and f"'{stand_in}'" in notice and "--data-dir" in notice
    assert len(notice.splitlines()) >= 4


def test_a_set_named_by_hand_is_never_replaced(drawn, no_network):
    for name in ("cifar10", "cifar100", "cifar100-coarse", "mnist", "fashion-mnist"):
        with pytest.raises(DataError, match="no mirror could be used .* pass --data-dir DIR"):
            data.load(name)
    assert drawn.calls == []


def test_auto_with_built_in_set_or_data_folder_is_not_a_fallback(tmp_path, drawn, capsys):
    assert data.load("auto", auto="shapes", quiet=True).note == ""
    cifar10_tar(tmp_path / "cifar-10-python.tar.gz")
    assert data.load("auto", data_dir=tmp_path).name == "cifar10"
    assert "NOT" not in capsys.readouterr().err


@pytest.mark.parametrize("behave", [mirrors.silent, mirrors.drips, mirrors.html, mirrors.status(503)])
def test_auto_gives_up_in_time(serve, drawn, monkeypatch, behave):  # noqa: F811
    server = serve(behave=behave)
    remote = datasets.Remote(server.url, "cifar-10-python.tar.gz", "md5:0")
    monkeypatch.setitem(datasets.MIRRORS, "cifar10", {name: [remote] for name in "abcd"})
    monkeypatch.setattr(datasets, "PATIENCE", 0.6)
    start = time.monotonic()
    assert data.load("auto").name == "shapes"
    assert time.monotonic() - start < datasets.PATIENCE + 2
    assert len(server.log) == 4


def test_glyphs_without_matplotlib(drawn, monkeypatch):
    def missing(package):
        raise datasets.PackageNotFoundError(package)

    monkeypatch.setattr(datasets, "version", missing)
    assert data.load("shapes").name == "shapes"
    with pytest.raises(DataError, match="pip install matplotlib"):
        data.load("glyphs")


# ---- mirrors


def as_remotes(server, folder):
    """A mirror that serves the files of `folder`, with their right checksums."""
    result = []
    for path in sorted(folder.iterdir()):
        server.files[path.name] = path.read_bytes()
        check = f"md5:{datasets.hashlib.md5(path.read_bytes()).hexdigest()}"
        result.append(datasets.Remote(server.url + path.name, path.name, check, path.stat().st_size))
    return result


@pytest.fixture
def good(serve, tmp_path, monkeypatch):  # noqa: F811
    """A server with a small CIFAR-10 as pickles, and its Remotes."""
    path = cifar10_tar(folder(tmp_path / "served") / "cifar-10-python.tar.gz")
    server = serve(behave=mirrors.ranges)
    server.remotes = as_remotes(server, path.parent)
    known = data.load("cifar10", data_dir=path.parent).sha256
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setitem(datasets.KNOWN, "cifar10", known)
    return server


def test_the_next_mirror_is_taken_and_the_failure_told(good, serve, monkeypatch, capsys):  # noqa: F811
    bad = serve(behave=mirrors.status(503))
    broken = [good.remotes[0]._replace(url=bad.url)]
    monkeypatch.setitem(datasets.MIRRORS, "cifar10", {"first": broken, "second": good.remotes})
    loaded = data.load("cifar10", quiet=True)
    assert loaded.source.startswith("second (http://127.0.0.1") and len(loaded.x_train) == 60 and loaded.note == ""
    assert capsys.readouterr().err == "cifar10: mirror first is of no use: HTTP 503\n"
    requests = len(bad.log) + len(good.log)
    data.load("auto")
    assert len(bad.log) + len(good.log) == requests  # the second time from the cache


def test_all_mirrors_and_their_failures_are_in_the_error(good, serve, monkeypatch):  # noqa: F811
    bad = {"a": serve(behave=mirrors.status(503)), "b": serve(behave=mirrors.html), "c": serve(behave=mirrors.wrong)}
    table = {name: [good.remotes[0]._replace(url=server.url, size=0)] for name, server in bad.items()}
    monkeypatch.setitem(datasets.MIRRORS, "cifar10", table)
    with pytest.raises(DataError) as error:
        data.load("cifar10")
    assert "a: HTTP 503; b: sends a web page instead of data; c: " in str(error.value)
    assert "put cifar-10-python.tar.gz into DIR and pass --data-dir DIR" in str(error.value)


def test_four_files_of_mnist_and_one_broken(serve, tmp_path, monkeypatch):  # noqa: F811
    make.write_mnist(tmp_path / "served", make.images(30, 1, (28, 28, 1)), make.images(10, 2, (28, 28, 1)))
    server = serve()
    remotes = as_remotes(server, tmp_path / "served")
    broken = [*remotes[:3], remotes[3]._replace(check="md5:0")]
    monkeypatch.setitem(datasets.MIRRORS, "mnist", {"broken": broken, "good": remotes})
    assert data.load("mnist", quiet=True).source.startswith("good")
    assert len(server.log) == 8


def png_mirror(serve, tmp_path, train):  # noqa: F811
    path = make.write_zip(folder(tmp_path / "png") / "cifar10.zip", make.png_files(train, TEST))
    server = serve()
    return [as_remotes(server, path.parent)[0]._replace(check="", size=0)]


def test_a_mirror_without_checksum_counts_only_with_the_known_images(good, serve, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setitem(datasets.MIRRORS, "cifar10", {"png": png_mirror(serve, tmp_path, TRAIN)})
    assert data.load("cifar10").sha256 == datasets.KNOWN["cifar10"]
    shutil.rmtree(tmp_path / "cache")
    forged = TRAIN[0].copy()
    forged[0, 0, 0, 0] ^= 1
    monkeypatch.setitem(datasets.MIRRORS, "cifar10", {"png": png_mirror(serve, tmp_path, (forged, TRAIN[1]))})
    with pytest.raises(DataError, match="png: not the published cifar10 images: sha256"):
        data.load("cifar10")
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []


def test_a_hostile_archive_from_a_mirror_is_not_kept(good, serve, tmp_path, monkeypatch):  # noqa: F811
    files = make.cifar10_files(TRAIN, TEST) | {"data_batch_3": make.ATTACKS["os.system"]()}
    make.write_tar(folder(tmp_path / "evil") / "cifar-10-python.tar.gz", files)
    server = serve()
    table = {"evil": as_remotes(server, tmp_path / "evil"), "good": good.remotes}
    monkeypatch.setitem(datasets.MIRRORS, "cifar10", table)
    monkeypatch.chdir(tmp_path)
    assert data.load("cifar10").source.startswith("good")
    assert not (tmp_path / "pwned").exists() and not list((tmp_path / "cache").rglob("evil"))


def test_slow_mirrors_come_last_but_do_come(good, serve, monkeypatch, capsys):  # noqa: F811
    def slow(request, content):
        start = int(request.headers.get("Range", "bytes=0-")[6:-1])
        place = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        mirrors.headers(request, 206 if start else 200, len(content) - start, **place)
        for i in range(start, len(content), 70_000):
            request.wfile.write(content[i : i + 70_000])
            time.sleep(0.05)

    monkeypatch.setattr(download, "SLOW_AFTER", 0.02)
    monkeypatch.setattr(datasets, "FAST", 1e9)
    good.behave = slow
    bad = serve(behave=mirrors.status(503))
    table = {"slow": good.remotes, "bad": [good.remotes[0]._replace(url=bad.url)]}
    monkeypatch.setitem(datasets.MIRRORS, "cifar10", table)
    assert data.load("cifar10").source.startswith("slow")
    assert len(bad.log) == 1 and good.log[1][1].startswith("bytes=")
    assert "kB/s" in capsys.readouterr().err


LOAD = """
import sys
sys.path.insert(0, sys.argv[1])
from common.data import datasets
url, check, size = sys.argv[2:]
datasets.MIRRORS["cifar10"] = {"here": [datasets.Remote(url, "cifar-10-python.tar.gz", check, int(size))]}
print(datasets.load("cifar10").sha256)
"""


def start_process(remote):
    arguments = [str(REPO), remote.url, remote.check, str(remote.size)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", LOAD, *arguments], **pipes)


def test_two_processes_download_once(good):
    somebody_waits = threading.Event()

    def behave(request, content):  # the first process is kept busy until the second has come
        somebody_waits.wait(15)
        mirrors.plain(request, content)

    def listen(process):
        for line in process.stderr:
            if "waiting" in line:
                somebody_waits.set()
                waited.append(line)

    good.behave, waited = behave, []
    processes = [start_process(good.remotes[0]) for _ in range(2)]
    listeners = [threading.Thread(target=listen, args=(process,)) for process in processes]
    for listener in listeners:
        listener.start()
    outputs = [process.stdout.read().strip() for process in processes]
    for process, listener in zip(processes, listeners, strict=True):
        process.wait(timeout=20)
        listener.join()
    assert outputs == [datasets.KNOWN["cifar10"]] * 2
    assert len(good.log) == 1 and len(waited) == 1


def test_a_killed_download_leaves_nothing_final_and_is_continued(good, tmp_path, monkeypatch):
    def behave(request, content):
        mirrors.headers(request, 200, len(content), ETag='"v1"')
        request.wfile.write(content[:150_000])
        request.wfile.flush()
        request.released.wait(20)

    good.behave = behave
    process = start_process(good.remotes[0])
    part = tmp_path / "cache" / "downloads" / "cifar10" / "here" / "cifar-10-python.tar.gz.part"
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size > 0) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert part.exists() and not part.with_suffix("").exists() and not (tmp_path / "cache" / "cifar10").exists()
    assert (tmp_path / "cache" / "cifar10.lock").exists()
    have = part.stat().st_size
    good.behave = mirrors.ranges
    if os.name != "posix":  # elsewhere only time shows that the holder is gone
        os.utime(tmp_path / "cache" / "cifar10.lock", (1, 1))
    monkeypatch.setitem(datasets.MIRRORS, "cifar10", {"here": good.remotes})
    assert len(data.load("cifar10").x_train) == 60
    assert good.log[1][1] == f"bytes={have}-"
    assert not list((tmp_path / "cache").glob("*.lock"))


def test_the_mirror_table_is_complete():
    for base, table in datasets.MIRRORS.items():
        assert base in datasets.SUBFOLDERS and len(table) >= (2 if base in datasets.STAND_IN else 1)
        for remotes in table.values():
            assert len(remotes) == (4 if base in ("mnist", "fashion-mnist") else 1)
            for remote in remotes:
                expected = datasets.ARCHIVES.get(base) or [f"{name}.gz" for name in datasets.IDX]
                assert remote.name in expected and remote.url.startswith("http")
                digits = remote.check.partition(":")[2]
                assert not remote.check or len(digits) == {"md5": 32, "sha256": 64}[remote.check.partition(":")[0]]
                assert remote.check or base in datasets.KNOWN  # or else anything would be believed
    assert set(datasets.CHECKS) == set(datasets.COUNT)  # a data folder of theirs is believed for its checksum alone
    for base, checks in datasets.CHECKS.items():
        (remotes,) = {tuple((r.name, r.check) for r in remotes) for remotes in datasets.MIRRORS[base].values()}
        assert set(remotes) <= set(checks.items())
        assert {name for name in datasets.ARCHIVES[base] if "." in name} <= set(checks)
        assert all(len(check) == 36 and check.startswith("md5:") for check in checks.values())
    published = set(data.names) - {"glyphs", "shapes", "imagefolder:PATH"}
    assert set(datasets.KNOWN) | set(datasets.COUNT) == published and not set(datasets.KNOWN) & set(datasets.COUNT)
    assert all(len(value) == 64 for value in datasets.KNOWN.values())
    assert json.dumps(datasets.KNOWN) and formats.MAX_UNPACKED > 0
