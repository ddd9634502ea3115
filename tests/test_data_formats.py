"""Archives from strangers: every attack ends in one DataError line, executes nothing and writes nothing."""

import gzip
import io
import os
import pickle
import struct
import sys
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.data import formats
from common.data.formats import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN = [f"data_batch_{i}" for i in range(1, 6)]


# ---- small archives in the public formats (test_data_datasets.py and test_data_download.py use them too)


def images(n, seed, shape=(32, 32, 3), classes=10):
    """n random images (n, *shape) and labels (n,), uint8."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, *shape), np.uint8), (np.arange(n) % classes).astype(np.uint8)


def python2_pickle(value):
    """Protocol 2 with 8-bit strings, as the public CIFAR files have it."""
    if isinstance(value, dict):
        return b"}(" + b"".join(python2_pickle(k) + python2_pickle(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(python2_pickle, value)) + b"e"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, str):
        return b"T" + struct.pack("<i", len(value)) + value.encode()
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
    array += python2_pickle(value.shape[0]) + python2_pickle(value.shape[1]) + b"\x86"
    array += b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    return array + b"T" + struct.pack("<i", value.size) + value.tobytes() + b"tb"


def dump(value, protocol="python2"):
    return b"\x80\x02" + python2_pickle(value) + b"." if protocol == "python2" else pickle.dumps(value, protocol)


def planes(x):
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)).reshape(len(x), -1)


def cifar10_files(train, test, protocol="python2"):
    """{name: bytes} of CIFAR-10's batch files; train, test: (x, y)."""
    files = {"batches.meta": dump({"label_names": list(CLASSES), "num_vis": 3072}, protocol)}
    parts = [(n, x, y) for n, x, y in zip(TRAIN, np.array_split(train[0], 5), np.array_split(train[1], 5), strict=True)]
    for name, x, y in [*parts, ("test_batch", *test)]:
        files[name] = dump(
            {"batch_label": name, "labels": y.tolist(), "data": planes(x), "filenames": ["x.png"]}, protocol
        )
    return files


def cifar100_files(train, test):
    names = {"fine_label_names": [f"fine{i}" for i in range(100)], "coarse_label_names": [f"c{i}" for i in range(20)]}
    files = {"meta": dump(names)}
    for name, (x, y) in (("train", train), ("test", test)):
        files[name] = dump({"fine_labels": y.tolist(), "coarse_labels": (y // 5).tolist(), "data": planes(x)})
    return files


def write_tar(path, files, folder="cifar-10-batches-py"):
    """files: {name: bytes}, or a list of (TarInfo, bytes)."""
    with tarfile.open(path, "w:gz") as tar:
        if isinstance(files, dict):
            files = [(tarfile.TarInfo(f"{folder}/{name}"), data) for name, data in files.items()]
        for info, data in files:
            info.size = len(data) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(data))
    return path


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def png_files(train, test):
    """{path: bytes} as in the PNG mirrors."""
    return {
        f"cifar10/{split}/{CLASSES[label]}/{i:04d}_{CLASSES[label]}.png": png(image)
        for split, (x, y) in (("train", train), ("test", test))
        for i, (image, label) in enumerate(zip(x, y, strict=True))
    }


def write_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder, train, test, packed=True):
    folder.mkdir(parents=True, exist_ok=True)
    for split, (x, y) in (("train", train), ("t10k", test)):
        for name, array in ((f"{split}-images-idx3-ubyte", x[..., 0]), (f"{split}-labels-idx1-ubyte", y)):
            data = idx(np.ascontiguousarray(array))
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(data))
            else:
                (folder / name).write_bytes(data)
    return folder


def read_cifar10(path):
    return formats.read_cifar(path, TRAIN, "test_batch", "batches.meta", ["labels"], ["label_names"])


SET = images(20, 1), images(10, 2)


# ---- the formats themselves


@pytest.mark.parametrize("protocol", ["python2", 2, 3, 4])
def test_cifar_batches_come_back_as_written(tmp_path, protocol):
    x_train, y_train, x_test, y_test, names = read_cifar10(write_tar(tmp_path / "a.tgz", cifar10_files(*SET, protocol)))
    assert x_train.dtype == y_train.dtype == np.uint8
    assert x_train.shape == (20, 32, 32, 3) and y_train.shape == (20, 1)
    assert np.array_equal(x_train, SET[0][0]) and np.array_equal(y_train[:, 0], SET[0][1])
    assert np.array_equal(x_test, SET[1][0]) and np.array_equal(y_test[:, 0], SET[1][1])
    assert tuple(names[0]) == CLASSES


def test_cifar_batches_from_an_unpacked_folder(tmp_path):
    for name, data in cifar10_files(*SET).items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "readme.html").write_text("<html>")
    assert np.array_equal(read_cifar10(tmp_path)[0], SET[0][0])


def test_cifar100_has_two_label_columns(tmp_path):
    train, test = images(100, 1, classes=100), images(100, 2, classes=100)
    path = write_tar(tmp_path / "a.tar.gz", cifar100_files(train, test), "cifar-100-python")
    labels, names = ["fine_labels", "coarse_labels"], ["fine_label_names", "coarse_label_names"]
    _, y_train, _, _, names = formats.read_cifar(path, ["train"], "test", "meta", labels, names)
    assert np.array_equal(y_train, np.stack([train[1], train[1] // 5], 1))
    assert [len(n) for n in names] == [100, 20]


def test_a_fortran_ordered_array_is_read_by_its_meaning():
    array = np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    assert np.array_equal(formats.unpickle(pickle.dumps({"data": array}, 2))["data"], array)


def test_png_folders_in_zip_and_tgz(tmp_path):
    files = png_files(*SET) | {"cifar10/labels.txt": b"airplane", "cifar10/train/cat/._1.png": b"macOS"}
    a = formats.read_png_folders(write_zip(tmp_path / "a.zip", files), CLASSES)
    b = formats.read_png_folders(write_tar(tmp_path / "b.tgz", files, "."), CLASSES)
    for x, y in zip(a, b, strict=True):
        assert np.array_equal(x, y) and x.dtype == np.uint8
    assert np.array_equal(a[0], SET[0][0]) and np.array_equal(a[1][:, 0], SET[0][1])


@pytest.mark.parametrize("pack", [gzip.compress, bytes])
def test_idx_gzipped_or_not(tmp_path, pack):
    x, y = images(7, 3, (28, 28))
    (tmp_path / "x").write_bytes(pack(idx(x)))
    (tmp_path / "y").write_bytes(pack(idx(y)))
    assert np.array_equal(formats.read_idx(tmp_path / "x", 3), x)
    assert np.array_equal(formats.read_idx(tmp_path / "y", 1), y)


# ---- damaged and crafted files


GOOD_IDX = idx(images(7, 3, (28, 28))[0])
BAD_IDX = {
    "0 bytes": (b"", "empty"),
    "html": (b"\n<!DOCTYPE html><title>503</title>", "web page"),
    "gzipped nothing": (gzip.compress(b""), "not an IDX file"),
    "truncated gzip": (gzip.compress(GOOD_IDX)[:-3000], "damaged"),
    "bad gzip crc": (gzip.compress(GOOD_IDX)[:-8] + b"12345678", "damaged"),
    "truncated": (GOOD_IDX[:-1], "fewer than"),
    "too long": (gzip.compress(GOOD_IDX + bytes(10**7)), "more than"),
    "gigantic": (gzip.compress(b"\0\0\x08\x03" + b"\x7f\xff\xff\xff" * 3), "more than"),
    "other dtype": (b"\0\0\x0d" + GOOD_IDX[3:], "not an IDX file"),
    "other rank": (idx(images(7, 3, (28, 28))[1]), "not an IDX file"),
}


@pytest.mark.parametrize("case", BAD_IDX)
def test_bad_idx(tmp_path, case):
    data, complaint = BAD_IDX[case]
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(data)
    with pytest.raises(DataError, match=complaint) as error:
        formats.read_idx(path, 3)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


class Call:
    """Pickles as a call of `function(*args)`."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def array_pickle(dtype=b"U\x02u1", state=b"(K\x01K\x02\x85cnumpy\ndtype\n%sK\x00K\x01\x87R\x89U\x02abtb"):
    """{"data": array} by hand, to be bent."""
    head = b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return head + state % dtype + b"s."


ATTACKS = {
    "os.system": lambda: pickle.dumps({"data": Call(os.system, "echo pwned > pwned")}, 2),
    "os.system, protocol 0": lambda: pickle.dumps(Call(os.system, "echo pwned > pwned"), 0),
    "os.system, protocol 4": lambda: pickle.dumps(Call(os.system, "echo pwned > pwned"), 4),
    "eval": lambda: pickle.dumps(Call(eval, "open('pwned', 'w')"), 2),
    "getattr": lambda: pickle.dumps(Call(getattr, np.zeros(1, np.uint8), "tofile"), 2),
    "dotted name": lambda: b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
    "submodule": lambda: b"\x80\x02cnumpy\ntestings.",
    "numpy.load": lambda: b"\x80\x02cnumpy\nload\nU\x05pwned\x85R.",
    "class as INST": lambda: b"(S'pwned'\nios\nsystem\n.",
    "call the result": lambda: array_pickle()[:-2] + b"(tR.",
    "attributes on a stand-in": lambda: b"\x80\x02ccodecs\nencode\n}U\x01aK\x01sb.".replace(b"codecs", b"_codecs"),
    "slots on a stand-in": lambda: b"\x80\x02cnumpy\ndtype\nN}U\x0c__setstate__K\x01s\x86b.",
    "persistent id": lambda: b"\x80\x02U\x01aQ.",
    "extension registry": lambda: b"\x80\x02\x82\x01.",
    "codec": lambda: b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
    "object array": lambda: pickle.dumps({"data": np.array([[1, "a"]], object)}, 2),
    "object dtype by hand": lambda: array_pickle(b"U\x02O8"),
    "float array": lambda: pickle.dumps({"data": np.zeros(3)}, 2),
    "array without dtype": lambda: array_pickle(state=b"(K\x01K\x02\x85U\x02u1\x89U\x02abtb%.0s"),
    "array beyond its bytes": lambda: array_pickle(
        state=b"(K\x01M\xff\xff\x85cnumpy\ndtype\n%sK\x00K\x01\x87R\x89U\x02abtb"
    ),
    "array without state": lambda: b"\x80\x02}U\x04datacnumpy.core.multiarray\n_reconstruct\n)Rs.",
    "memo of 32 GB": lambda: b"\x80\x02Nr\xff\xff\xff\xff.",
    "string of 2 GB": lambda: b"\x80\x02T\xff\xff\xff\x7fabc.",
    "not a dict": lambda: b"\x80\x02].",
    "truncated": lambda: dump({"labels": [1, 2, 3]})[:-5],
    "noise": lambda: bytes(range(256)),
    "empty": lambda: b"",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_hostile_pickle(tmp_path, monkeypatch, attack):
    monkeypatch.chdir(tmp_path)
    files = cifar10_files(*SET) | {"data_batch_3": ATTACKS[attack]()}
    path = write_tar(tmp_path / "a.tar.gz", files)
    with pytest.raises(DataError) as error:
        read_cifar10(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert os.listdir(tmp_path) == ["a.tar.gz"], "something was executed or written"


@pytest.mark.parametrize(
    "attack, complaint",
    {
        "getattr": "call .*getattr: refused",
        "dotted name": "call numpy.ndarray.__init__: refused",
        "class as INST": "call os.system: refused",
        "object array": "dtype 'O8', only uint8",
        "object dtype by hand": "dtype b'O8', only uint8",
        "float array": "dtype 'f8', only uint8",
        "array beyond its bytes": "bytes do not fill its shape",
        "array without dtype": "without a dtype",
        "codec": "unexpected text encoding",
    }.items(),
)
def test_hostile_pickles_are_refused_for_the_right_reason(attack, complaint):
    with pytest.raises(DataError, match=complaint):
        formats.unpickle(ATTACKS[attack]())


def test_refused_calls_are_named():
    with pytest.raises(DataError, match=r"system: refused, nothing was executed"):
        formats.unpickle(pickle.dumps({"data": Call(os.system, "true")}, 2))


def test_a_hostile_pickle_leaves_the_stand_ins_alone():
    before = dict(vars(formats._Dtype)), dict(vars(formats._Encode)), dict(vars(formats._Array))
    for name in ("attributes on a stand-in", "slots on a stand-in"):
        with pytest.raises((DataError, TypeError)):
            formats.unpickle(ATTACKS[name]())
    assert before == (dict(vars(formats._Dtype)), dict(vars(formats._Encode)), dict(vars(formats._Array)))


@pytest.mark.parametrize(
    "change",
    [
        {"labels": [0, 1]},
        {"labels": [0, 1, 2, "3"]},
        {"labels": [0, 1, 2, 256]},
        {"labels": [0, 1, 2, -1]},
        {"data": np.zeros((4, 3071), np.uint8)},
        {"data": [1, 2, 3, 4]},
    ],
)
def test_batches_that_make_no_sense(tmp_path, change):
    batch = {"labels": [0, 1, 2, 3], "data": np.zeros((4, 3072), np.uint8)} | change
    path = write_tar(tmp_path / "a.tar.gz", cifar10_files(*SET) | {"data_batch_2": pickle.dumps(batch, 2)})
    with pytest.raises(DataError, match="a batch wh|a batch without"):
        read_cifar10(path)


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b"surprise" if kind == tarfile.REGTYPE else b""


TARS = {
    "climbs out": (special("../../x", tarfile.REGTYPE), "unsafe path"),
    "climbs out from inside": (special("cifar-10-batches-py/../../data_batch_1", tarfile.REGTYPE), "unsafe path"),
    "absolute": (special("/tmp/ff_data_batch_1", tarfile.REGTYPE), "unsafe path"),
    "windows": (special("..\\..\\x", tarfile.REGTYPE), "unsafe path"),
    "drive": (special("C:\\x", tarfile.REGTYPE), "unsafe path"),
    "symlink": (special("cifar-10-batches-py/data_batch_1", tarfile.SYMTYPE, "/etc/passwd"), "data_batch_1 missing"),
    "hardlink": (special("cifar-10-batches-py/data_batch_1", tarfile.LNKTYPE, "/etc/passwd"), "data_batch_1 missing"),
    "fifo": (special("cifar-10-batches-py/data_batch_1", tarfile.FIFOTYPE), "data_batch_1 missing"),
    "device": (special("cifar-10-batches-py/data_batch_1", tarfile.CHRTYPE), "data_batch_1 missing"),
}


@pytest.mark.parametrize("case", TARS)
def test_hostile_tar_member(tmp_path, case):
    member, complaint = TARS[case]
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    files = [(tarfile.TarInfo(f"cifar-10-batches-py/{n}"), d) for n, d in cifar10_files(*SET).items()]
    path = write_tar(inside / "c.tar.gz", [member, *(f for f in files if not f[0].name.endswith("data_batch_1"))])
    with pytest.raises(DataError, match=complaint):
        read_cifar10(path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_two_members_of_one_name(tmp_path):
    files = [(tarfile.TarInfo(f"{folder}/{n}"), d) for folder in "ab" for n, d in cifar10_files(*SET).items()]
    with pytest.raises(DataError, match="two files"):
        read_cifar10(write_tar(tmp_path / "a.tar.gz", files))


def test_gzip_bomb_as_tar(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MAX_UNPACKED", 1 << 20)
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(bytes(50 << 20), 1))
    with pytest.raises(
        DataError
    ):  # zeros are the end mark of a tar: the rest is read for the checksum, up to the limit
        read_cifar10(path)
    write_tar(path, {"unneeded": bytes(50 << 20)})
    with pytest.raises(DataError, match="unpacks to more"):
        read_cifar10(path)


def test_large_and_many_tar_members(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar.gz", cifar10_files(*SET))
    with monkeypatch.context() as patch, pytest.raises(DataError, match="members allowed"):
        patch.setattr(formats, "MAX_MEMBERS", 3)
        read_cifar10(path)
    with pytest.raises(DataError, match="has .* bytes, more than"):
        list(formats.members(path, lambda name: True, limit=1000))


@pytest.mark.parametrize("cut", [0.3, 0.9, 0.999])
def test_truncated_archives(tmp_path, cut):
    for path in (write_tar(tmp_path / "a.tgz", cifar10_files(*SET)), write_zip(tmp_path / "a.zip", png_files(*SET))):
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * cut)])
        with pytest.raises(DataError):
            read_cifar10(path) if path.suffix == ".tgz" else formats.read_png_folders(path, CLASSES)


@pytest.mark.parametrize(
    "content, complaint", [(b"", "empty"), (b"<html>busy</html>", "web page"), (b"PK\3\4", "damaged")]
)
def test_not_an_archive_at_all(tmp_path, content, complaint):
    path = tmp_path / "a.zip"
    path.write_bytes(content)
    for read in (read_cifar10, lambda path: formats.read_png_folders(path, CLASSES)):
        with pytest.raises(DataError, match=complaint):
            read(path)


def one_png(name="cifar10/train/cat/1.png", data=b""):
    return png_files(*SET) | {name: data}


def test_zip_bombs(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "a.zip", one_png(data=bytes(20 << 20)))  # 20 MB in 20 kB
    with pytest.raises(DataError, match="more than the 65536 bytes allowed"):
        formats.read_png_folders(path, CLASSES)
    path = write_zip(tmp_path / "b.zip", png_files(*SET))
    with monkeypatch.context() as patch, pytest.raises(DataError, match="unpacks to more"):
        patch.setattr(formats, "MAX_UNPACKED", 20_000)
        formats.read_png_folders(path, CLASSES)
    with monkeypatch.context() as patch, pytest.raises(DataError, match="members"):
        patch.setattr(formats, "MAX_MEMBERS", 10)
        formats.read_png_folders(path, CLASSES)


def directory_of(n, zip64=False, comment=b"", claim=None, note=b""):
    """A zip that is nothing but a directory: n entries of 47 bytes and a note, `claim` of them (None: n) admitted."""
    head = (b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, 1, 0, len(note), 0, 0, 0, 0)
    entries = (struct.pack("<4s6H3L5H2L", *head) + b"x" + note) * n
    claim = n if claim is None else claim
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, claim & 0xFFFF, claim & 0xFFFF, len(entries), 0, len(comment))
    return as_zip64(entries + end) if zip64 else entries + end + comment


def as_zip64(archive):
    """The same archive (bytes, no comment) with the larger record at its end, to which the usual one only points."""
    _, _, _, _, count, size, offset, _ = struct.unpack("<4s4H2LH", archive[-22:])
    count = size // 47 if count == 0xFFFF else count
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(archive) - 22, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return archive[:-22] + record + locator + end


DIRECTORIES = {
    "many": (lambda: directory_of(300_000), "has 300000 members, more than the 100000 allowed"),
    "many, admitted to be 1": (lambda: directory_of(300_000, claim=1), "has 300000 members, more than"),
    "many, before a comment": (lambda: directory_of(300_000, comment=b"hello"), "has 300000 members, more than"),
    "many, zip64": (lambda: directory_of(300_000, zip64=True), "has 300000 members, more than"),
    "long": (lambda: directory_of(600, note=bytes(65_535)), "has a directory of more than the 33554432 bytes allowed"),
    "long, zip64": (lambda: directory_of(600, note=bytes(65_535), zip64=True), "has a directory of more than the"),
}


@pytest.mark.parametrize("case", DIRECTORIES)
def test_a_zips_directory_is_judged_before_objects_are_made_of_it(tmp_path, case):
    """zipfile makes 500 bytes of objects of each entry: 150 MB here, gigabytes in an archive as large as is allowed."""
    content, complaint = DIRECTORIES[case]
    path = tmp_path / "a.zip"
    path.write_bytes(content())
    del content
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=complaint):
            formats.read_png_folders(path, CLASSES)
        assert tracemalloc.get_traced_memory()[1] < formats.MAX_DIRECTORY + (4 << 20)
    finally:
        tracemalloc.stop()


def test_the_crafted_directories_are_ones_that_zipfile_takes(tmp_path):
    """Otherwise they would be refused for another reason than their length."""
    for options in ({}, {"zip64": True}, {"comment": b"hello"}, {"claim": 1}, {"note": b"abc"}):
        (tmp_path / "a.zip").write_bytes(directory_of(3, **options))
        with zipfile.ZipFile(tmp_path / "a.zip") as archive:
            assert archive.namelist() == ["x"] * 3


def test_genuine_zips_with_zip64_or_a_comment_are_read(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "a.zip", png_files(*SET))
    plain = path.read_bytes()
    monkeypatch.setattr(formats, "MAX_MEMBERS", 30)  # exactly as many as there are
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"made by hand"
    for content in (plain, as_zip64(plain), path.read_bytes(), b"#!/bin/sh\n" + plain):
        path.write_bytes(content)
        assert np.array_equal(formats.read_png_folders(path, CLASSES)[0], SET[0][0])
    monkeypatch.setattr(formats, "MAX_DIRECTORY", 1000)
    with pytest.raises(DataError, match="has a directory of more than the 1000 bytes allowed"):
        formats.read_png_folders(path, CLASSES)


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..\\x", "cifar10/train/../../../x.png"])
def test_zip_with_unsafe_paths(tmp_path, name):
    with pytest.raises(DataError, match="unsafe path"):
        formats.read_png_folders(write_zip(tmp_path / "a.zip", one_png(name, b"x")), CLASSES)
    assert os.listdir(tmp_path) == ["a.zip"]


def test_pngs_that_are_none(tmp_path):
    jpeg = io.BytesIO()
    Image.new("RGB", (32, 32)).save(jpeg, "JPEG")
    for data, complaint in (
        (png(np.zeros((64, 32, 3), np.uint8)), "32x64, not 32x32"),
        (jpeg.getvalue(), "damaged"),
        (png(SET[0][0][0])[:-40], "damaged"),
        (png(np.full((32, 32), 3000, np.uint16)), r"1.png has more than 8 bits a pixel .mode I.*: scale it to 0..255"),
        (b"", "damaged"),
    ):
        with pytest.raises(DataError, match=complaint):
            formats.read_png_folders(write_zip(tmp_path / "a.zip", one_png(data=data)), CLASSES)
    with pytest.raises(DataError, match="no images"):
        formats.read_png_folders(write_zip(tmp_path / "b.zip", {"cifar10/readme.txt": b"x"}), CLASSES)
