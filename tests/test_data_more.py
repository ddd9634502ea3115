"""STL-10, Tiny ImageNet and MedMNIST from small archives in their public formats, and folders of one's own images."""

import hashlib
import io
import itertools
import os
import random
import struct
import sys
import tarfile
import threading
import time
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import test_data_download as mirrors
import test_data_formats as make
from test_data_datasets import as_remotes, drawn, folder, isolated, no_network, parses, same  # noqa: F401 (fixtures)
from test_data_download import Server, serve  # noqa: F401 (a fixture)

from common import data
from common.data import DataError, Folder, datasets, folders, formats

STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


@pytest.fixture(autouse=True)
def own_archives(monkeypatch):
    """The small archives made here are not the published ones: no checksum is expected of them."""
    checks = dict(datasets.CHECKS)
    monkeypatch.setattr(datasets, "CHECKS", {})
    return checks


def as_pairs(x, y):
    """{image bytes: label}"""
    return {image.tobytes(): int(label) for image, label in zip(x, np.ravel(y), strict=True)}


def agrees(dataset, train, test):
    """True if the data set holds these images with these labels, in whatever order."""
    found = as_pairs(dataset.x_train, dataset.y_train), as_pairs(dataset.x_test, dataset.y_test)
    return found == (as_pairs(*train), as_pairs(*test))


def refused(name, place, complaint):
    with pytest.raises(DataError, match=complaint) as error:
        data.load(name, data_dir=place)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- STL-10


STL_TRAIN, STL_TEST = make.images(12, 1, (96, 96, 3)), make.images(11, 2, (96, 96, 3))


def stl10_files(train=STL_TRAIN, test=STL_TEST):
    files = {"class_names.txt": "\n".join(STL10).encode(), "fold_indices.txt": b"0 1 2\n"}
    for split, (x, y) in (("test", test), ("train", train)):
        files[f"{split}_X.bin"] = b"".join(i[:, :, c].tobytes(order="F") for i in x for c in range(3))
        files[f"{split}_y.bin"] = (y + 1).astype(np.uint8).tobytes()
    return files


def stl10(path, files):
    return make.write_tar(folder(path) / "stl10_binary.tar.gz", files, "stl10_binary").parent


def test_stl10_as_archive_and_as_folder_in_any_order(tmp_path, capsys):
    files = stl10_files()
    a = data.load("stl10", data_dir=stl10(tmp_path / "a", files))
    b = data.load("stl10", data_dir=stl10(tmp_path / "b", dict(reversed(files.items()))))
    shuffled = np.random.default_rng(0).permutation(12)
    c = data.load(
        "stl10", data_dir=stl10(tmp_path / "c", stl10_files((STL_TRAIN[0][shuffled], STL_TRAIN[1][shuffled])))
    )
    for name, content in files.items():
        (folder(tmp_path / "d" / "stl10_binary") / name).write_bytes(content)
    d = data.load("stl10", data_dir=tmp_path / "d")
    assert a.x_train.shape == (12, 96, 96, 3) and a.y_test.shape == (11,) and a.class_names == STL10
    assert agrees(a, STL_TRAIN, STL_TEST)
    assert all(same(a, other) and a.sha256 == other.sha256 for other in (b, c, d))
    assert "not the published stl10 images: (12, 11), not (5000, 8000)" in capsys.readouterr().err


def test_the_unlabeled_images_flow_through(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MAX_UNPACKED", 2 << 20)
    big = stl10(tmp_path, {"unlabeled_X.bin": bytes(40 << 20)} | stl10_files())
    tracemalloc.start()
    try:
        formats.read_stl10(big / "stl10_binary.tar.gz")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    monkeypatch.setattr(formats, "STL10_STREAM", 20 << 20)
    refused("stl10", big, "unpacks to more than the 20971520 bytes allowed")


def test_what_is_kept_stays_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MAX_UNPACKED", 400_000)
    refused("stl10", stl10(tmp_path, stl10_files()), "unpacks to more than the 400000 bytes allowed")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE])
def test_tarfile_cannot_be_made_to_keep_much(tmp_path, kind):
    """In an archive that may be 3 GB long: headers that tarfile reads into memory before it hands over a member."""
    path = tmp_path / "stl10_binary.tar.gz"
    info = tarfile.TarInfo("stl10_binary/x")
    info.type, info.size = kind, 8 << 20
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    body = (b"1" * 504 + b"\1" + bytes(7)) if kind == tarfile.GNUTYPE_SPARSE else b"11 path=abc\n".ljust(512, b"a")
    if kind == tarfile.GNUTYPE_SPARSE:  # a map of holes that goes on and on
        block[482] = 1
        block[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(block))[0]
        body = (b"00000000001\0" * 42) + b"\1" + bytes(7)
    with make.gzip.open(path, "wb", 1) as file:
        file.write(bytes(block) + body * (16 << 10))
    refused("stl10", tmp_path, "more than 1048576 bytes between two members")


STL_BAD = {
    "label 0": (stl10_files() | {"train_y.bin": bytes(12)}, "train_y.bin has a label outside 1 to 10"),
    "label 11": (stl10_files() | {"test_y.bin": bytes([11] * 11)}, "test_y.bin has a label outside 1 to 10"),
    "labels too few": (
        stl10_files() | {"test_y.bin": bytes([1] * 10)},
        "test_X.bin is not 27648 bytes for each of the 10",
    ),
    "no labels": (stl10_files() | {"test_y.bin": b""}, "test_X.bin is not"),
    "half an image": (stl10_files() | {"train_X.bin": bytes(27648 * 12 - 1)}, "train_X.bin is not"),
    "missing": ({k: v for k, v in stl10_files().items() if k != "test_X.bin"}, "test_X.bin missing"),
    "names": (stl10_files() | {"class_names.txt": b"a\x1b[1m\n"}, "not printable"),
    "many names": (stl10_files() | {"class_names.txt": b"a " * 9999}, "too long"),
}


@pytest.mark.parametrize("case", STL_BAD)
def test_bad_stl10(tmp_path, case):
    refused("stl10", stl10(tmp_path, STL_BAD[case][0]), STL_BAD[case][1])


def test_stl10_with_a_member_too_large_or_a_page_instead(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "STL10_MEMBER", 300_000)
    refused("stl10", stl10(tmp_path, stl10_files()), "member .*_X.bin has .* bytes, more than the 300000 allowed")
    (tmp_path / "stl10_binary.tar.gz").write_bytes(b"<!doctype html><title>moved</title>")
    refused("stl10", tmp_path, "web page, not data")


# ---- Tiny ImageNet


WNIDS = ["n02", "n01", "n04", "n03"]  # the file is not sorted, the classes are
WORDS = "n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\tcrane\nn03\tcrane, derrick\nn04\tbee\n"


def jpeg(image, **options):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def tiny_files(seed=1):
    """{path: bytes} and (x, y) of train and val, as Pillow decodes them; every fifth image is grey."""
    rng = np.random.default_rng(seed)
    files = {"tiny-imagenet-200/wnids.txt": "\n".join(WNIDS).encode(), "tiny-imagenet-200/words.txt": WORDS.encode()}
    train, val, lines = ([], []), ([], []), []
    for k, (wnid, i) in enumerate(itertools.product(sorted(WNIDS), range(5))):
        smooth = np.kron(rng.integers(0, 256, (8, 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
        content = jpeg(smooth[..., 0] if k % 5 == 0 else smooth)
        if i < 3:
            files[f"tiny-imagenet-200/train/{wnid}/images/{wnid}_{i}.JPEG"] = content
            files[f"tiny-imagenet-200/train/{wnid}/{wnid}_boxes.txt"] = b"x.JPEG\t0\t0\t9\t9\n"
        else:
            files[f"tiny-imagenet-200/val/images/val_{k}.JPEG"] = content
            lines.append(f"val_{k}.JPEG\t{wnid}\t0\t0\t62\t62\n")
        files[f"tiny-imagenet-200/test/images/test_{k}.JPEG"] = b"not read"
        x, y = train if i < 3 else val
        x.append(pixels(content))
        y.append(sorted(WNIDS).index(wnid))
    files["tiny-imagenet-200/val/val_annotations.txt"] = "".join(lines).encode()
    return files, (np.stack(train[0]), np.array(train[1])), (np.stack(val[0]), np.array(val[1]))


def tiny(path, files):
    return make.write_zip(folder(path) / "tiny-imagenet-200.zip", files).parent


def test_tiny_imagenet_in_any_order(tmp_path, capsys):
    files, train, val = tiny_files()
    a = data.load("tiny-imagenet", data_dir=tiny(tmp_path / "a", files))
    mixed = list(files.items())
    random.Random(0).shuffle(mixed)
    b = data.load("tiny-imagenet", data_dir=tiny(tmp_path / "b", dict(mixed)))
    assert a.x_train.shape == (12, 64, 64, 3) and a.x_test.shape == (8, 64, 64, 3)
    assert agrees(a, train, val) and same(a, b) and a.sha256 == b.sha256
    assert a.class_names == ("goldfish", "crane", "crane, derrick", "bee")
    assert "tiny-imagenet" not in datasets.KNOWN and "sha256" not in capsys.readouterr().err


def change(**changes):
    """The files with those changed whose names end so; None: left out."""
    changes = {key.replace("__", "/"): value for key, value in changes.items()}

    def changed(files):
        result = dict(files)
        for name in files:
            for end, value in changes.items():
                if name.rpartition(".")[0].endswith(end):
                    result.pop(name) if value is None else result.__setitem__(name, value)
        return result

    return changed


HEAD = "tiny-imagenet-200"
SMALL = jpeg(np.zeros((32, 32, 3), np.uint8))
TINY_BAD = {
    "no wnids": (change(wnids=None), "wnids.txt missing"),
    "no annotations": (change(val_annotations=None), "val_annotations.txt missing"),
    "empty annotations": (change(val_annotations=b""), "val_3.JPEG has no class"),
    "one class twice": (change(wnids=b"n01\nn01\nn02"), "different classes"),
    "no classes": (change(wnids=b"\n"), "different classes"),
    "no word": (change(words=b"n01\tgoldfish\n"), "words.txt lacks a class"),
    "unknown label": (change(val_annotations=b"val_3.JPEG\tn99\t0\n"), "val/images/val_3.JPEG has no class"),
    "broken annotations": (change(val_annotations=b"val_3.JPEG"), "damaged or not in the expected format"),
    "unknown class": (lambda f: f | {f"{HEAD}/train/n99/images/n99_0.JPEG": SMALL}, "n99_0.JPEG has no class"),
    "a class without images": (change(n01_0=None, n01_1=None, n01_2=None), r"train/n01/images/\*.JPEG missing"),
    "a validation image missing": (change(val_3=None, val_4=None), "val/images/val_3.JPEG and 1 more missing"),
    "other size": (change(n01_1=SMALL), "n01_1.JPEG is 32x32, not 64x64"),
    "a PNG": (change(n01_1=make.png(np.zeros((64, 64, 3), np.uint8))), "damaged"),
    "cut": (change(n01_1=jpeg(np.zeros((64, 64, 3), np.uint8))[:-80]), "damaged"),
    "too large": (change(n01_1=bytes(70_000)), "n01_1.JPEG has more than the 65536 bytes allowed"),
    "two files": (
        lambda f: f | {"x/train/n01/images/n01_1.JPEG": f[f"{HEAD}/train/n01/images/n01_1.JPEG"]},
        "two files",
    ),
    "climbs out": (lambda f: f | {"../x.JPEG": b""}, "unsafe path"),
}


@pytest.mark.parametrize("case", TINY_BAD)
def test_bad_tiny_imagenet(tmp_path, case):
    spoil, complaint = TINY_BAD[case]
    refused("tiny-imagenet", tiny(tmp_path, spoil(tiny_files()[0])), complaint)
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == ["tiny-imagenet-200.zip"]


def test_tiny_imagenet_may_have_more_members_than_other_sets(tmp_path, monkeypatch):
    place = tiny(tmp_path, tiny_files()[0])
    monkeypatch.setattr(formats, "MAX_MEMBERS", 10)
    assert len(data.load("tiny-imagenet", data_dir=place).x_train) == 12 and formats.TINY_MEMBERS > 120_000
    monkeypatch.setattr(formats, "TINY_MEMBERS", 20)
    with pytest.raises(DataError, match="members, more than the 20 allowed"):
        formats.read_tiny_imagenet(place / "tiny-imagenet-200.zip")
    (place / "tiny-imagenet-200.zip").write_bytes(b"<html>not found</html>")
    refused("tiny-imagenet", place, "web page, not data")


# ---- MedMNIST


def medmnist_arrays(n_classes, dtype=np.uint8):
    sizes = {"train": 20, "val": 9, "test": 10}
    arrays = {}
    for seed, (split, n) in enumerate(sizes.items()):
        x, y = make.images(n, seed, (28, 28, 3), n_classes)
        arrays |= {f"{split}_images": x, f"{split}_labels": y[:, None].astype(dtype)}
    return arrays


def npz(path, arrays, save=np.savez_compressed):
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, **arrays)
    return path.parent


@pytest.mark.parametrize("name, n_classes", [("pathmnist", 9), ("dermamnist", 7), ("bloodmnist", 8)])
def test_medmnist(tmp_path, name, n_classes):
    arrays = medmnist_arrays(n_classes)
    a = data.load(name, data_dir=npz(tmp_path / "a" / f"{name}.npz", arrays))
    other = {k: np.asfortranarray(v.astype(np.int64) if "labels" in k else v) for k, v in reversed(arrays.items())}
    b = data.load(name, data_dir=npz(tmp_path / "b" / "medmnist" / f"{name}.npz", other, np.savez).parent)
    train = (np.concatenate([arrays[f"{s}_{what}"] for s in ("train", "val")]) for what in ("images", "labels"))
    assert agrees(a, tuple(train), (arrays["test_images"], arrays["test_labels"]))
    assert a.x_train.shape == (29, 28, 28, 3) and a.y_train.shape == (29,) and a.x_test.shape == (10, 28, 28, 3)
    assert same(a, b) and a.sha256 == b.sha256 and len(a.class_names) == n_classes


def npy(header, body=b""):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + body


class Touch:
    def __reduce__(self):
        return os.system, ("echo pwned > pwned",)


def pickled():
    file = io.BytesIO()
    np.save(file, np.array([Touch()] * 20, object)[:, None], allow_pickle=True)
    return file.getvalue()


HUGE = {"descr": "|u1", "fortran_order": False, "shape": (1 << 40, 28, 28, 3)}
MED_BAD = {
    "pickled": ({"train_labels.npy": pickled()}, "train_labels.npy is an array of object, only whole numbers"),
    "floats": ({"val_labels.npy": npy(HUGE | {"descr": "<f4", "shape": (9, 1)}, bytes(36))}, "only whole numbers"),
    "a record": (
        {"val_labels.npy": npy(HUGE | {"descr": [("a", "|u1")], "shape": (9,)}, bytes(9))},
        "only whole numbers",
    ),
    "terabytes": ({"train_images.npy": npy(HUGE, bytes(99))}, "train_images.npy does not hold"),
    "too few": ({"train_images.npy": npy(HUGE | {"shape": (20, 28, 28, 3)}, bytes(47039))}, "does not hold"),
    "negative": ({"train_labels.npy": npy(HUGE | {"shape": (-20, -1)}, bytes(20))}, "does not hold"),
    "other shape": (
        {"test_images.npy": npy(HUGE | {"shape": (10, 28, 28)}, bytes(7840))},
        r"test_images are uint8 \(10, 28",
    ),
    "no images": ({"test_images.npy": npy(HUGE | {"shape": (0, 28, 28, 3)})}, "test_images are"),
    "labels too few": (
        {"val_labels.npy": npy(HUGE | {"shape": (8, 1)}, bytes(8))},
        "val_labels are not one small number",
    ),
    "label -1": ({"val_labels.npy": npy(HUGE | {"descr": "|i1", "shape": (9, 1)}, b"\xff" * 9)}, "val_labels are not"),
    "label 8": ({"val_labels.npy": npy(HUGE | {"shape": (9, 1)}, b"\x08" * 9)}, "a label without a class name"),
    "code as header": ({"val_labels.npy": b"\x93NUMPY\1\0\x20\0__import__('os').system('true') "}, "damaged"),
    "another version": ({"val_labels.npy": b"\x93NUMPY\3\0" + bytes(20)}, "version"),
    "no npy": ({"val_labels.npy": b"PK\3\4"}, "damaged"),
    "missing": ({"val_labels.npy": None}, "val_labels.npy missing"),
}


@pytest.mark.parametrize("case", MED_BAD)
def test_bad_medmnist(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(npz(tmp_path / "bloodmnist.npz", medmnist_arrays(8)) / "bloodmnist.npz") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    changes, complaint = MED_BAD[case]
    make.write_zip(tmp_path / "bloodmnist.npz", {k: v for k, v in (files | changes).items() if v is not None})
    refused("bloodmnist", tmp_path, complaint)
    assert not (tmp_path / "pwned").exists()


def test_medmnist_with_a_member_too_large_or_a_page_instead(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MEDMNIST_MEMBER", 30_000)
    npz(tmp_path / "pathmnist.npz", medmnist_arrays(9))
    refused("pathmnist", tmp_path, "member .*_images.npy has more than the 30000 bytes allowed")
    (tmp_path / "pathmnist.npz").write_bytes(b"<html>moved</html>")
    refused("pathmnist", tmp_path, "web page, not data")


# ---- checksums of what lies in a data folder


PUBLISHED = {
    "stl10": lambda path: stl10(path, stl10_files()) / "stl10_binary.tar.gz",
    "tiny-imagenet": lambda path: tiny(path, tiny_files()[0]) / "tiny-imagenet-200.zip",
    "pathmnist": lambda path: npz(path / "pathmnist.npz", medmnist_arrays(9)) / "pathmnist.npz",
    "dermamnist": lambda path: npz(path / "dermamnist.npz", medmnist_arrays(7)) / "dermamnist.npz",
    "bloodmnist": lambda path: npz(path / "bloodmnist.npz", medmnist_arrays(8)) / "bloodmnist.npz",
}


def md5(path):
    return f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}"


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_archive_in_a_data_folder_has_the_published_checksum(tmp_path, monkeypatch, parses, own_archives, name):  # noqa: F811
    path = PUBLISHED[name](tmp_path)
    monkeypatch.setattr(datasets, "CHECKS", own_archives)
    told = refused(name, tmp_path, f"not the published {name}")
    assert told.startswith(str(path)) and own_archives[name][path.name] in told and md5(path) in told
    assert parses == []  # nothing in it was looked at
    path.write_bytes(b"<html>moved</html>")
    refused(name, tmp_path, "web page, not data")
    path.write_bytes(b"")
    refused(name, tmp_path, "is empty")


def test_a_checksum_is_looked_at_once_per_cache_entry(tmp_path, monkeypatch, parses):  # noqa: F811
    path, read, hash_of = PUBLISHED["bloodmnist"](tmp_path), [], datasets.download.hash_of
    monkeypatch.setattr(datasets, "CHECKS", {"bloodmnist": {path.name: md5(path)}})
    monkeypatch.setattr(datasets.download, "hash_of", lambda *args: read.append(args) or hash_of(*args))
    first, again = (data.load("bloodmnist", data_dir=tmp_path) for _ in range(2))
    assert same(first, again) and len(read) == len(parses) == 1
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused("bloodmnist", tmp_path, "not the published bloodmnist: its checksum is md5:.*, not md5:.*; get it again")
    assert len(read) == 2 and len(parses) == 1


def test_an_unpacked_stl10_is_verified_file_by_file(tmp_path, monkeypatch, own_archives):
    place = folder(tmp_path / "stl10_binary")
    for name, content in stl10_files().items():
        (place / name).write_bytes(content)
    named = {name for name in own_archives["stl10"] if name.endswith(".bin")}
    assert named == {"train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"}
    monkeypatch.setattr(datasets, "CHECKS", {"stl10": {name: md5(place / name) for name in named}})
    assert agrees(data.load("stl10", data_dir=tmp_path), STL_TRAIN, STL_TEST)
    (place / "test_y.bin").write_bytes(bytes([3] * 11))
    assert refused("stl10", tmp_path, "not the published stl10").startswith(str(place / "test_y.bin"))


def test_entries_from_before_archives_were_verified_are_made_anew(tmp_path, monkeypatch, own_archives):
    """And only those: CIFAR and MNIST, whose images are known by their hash, keep their entries."""
    assert {datasets.CACHE_VERSION[name] for name in datasets.KNOWN} == {1}
    PUBLISHED["bloodmnist"](tmp_path)
    with monkeypatch.context() as before:
        before.setitem(datasets.CACHE_VERSION, "bloodmnist", 1)
        data.load("bloodmnist", data_dir=tmp_path)
    monkeypatch.setattr(datasets, "CHECKS", own_archives)
    refused("bloodmnist", tmp_path, "not the published bloodmnist")


# ---- one order, whatever the decoder


def other_build(monkeypatch, module):
    """Pixels as another build of Pillow may give them: many differ by 1."""
    decode = module._decode

    def differing(*args):
        image = decode(*args)
        if isinstance(image, bytes):
            return (np.frombuffer(image, np.uint8) ^ 1).tobytes()
        return image ^ np.uint8(1)

    monkeypatch.setattr(module, "_decode", differing)


def test_tiny_imagenets_order_is_of_the_files_not_of_the_pixels(tmp_path, monkeypatch):
    files, *_ = tiny_files()
    a = data.load("tiny-imagenet", data_dir=tiny(tmp_path / "a", files))
    for split, x in (("train", a.x_train), ("val", a.x_test)):
        contents = [content for name, content in files.items() if f"/{split}/" in name and name.endswith(".JPEG")]
        contents.sort(key=lambda content: hashlib.sha256(content).digest())
        assert np.array_equal(x, np.stack([pixels(content) for content in contents]))
    other_build(monkeypatch, formats)
    b = data.load("tiny-imagenet", data_dir=tiny(tmp_path / "b", files))
    assert np.array_equal(b.x_train, a.x_train ^ 1) and np.array_equal(b.y_train, a.y_train)
    assert np.array_equal(b.x_test, a.x_test ^ 1) and np.array_equal(b.y_test, a.y_test)


def test_one_jpeg_with_two_labels_is_ordered_by_label():
    x, y = np.zeros((3, 2, 2, 3), np.uint8), np.array([[2], [1], [0]], np.uint8)
    assert datasets._sorted(x, y, [b"b", b"b", b"c"])[1].ravel().tolist() == [1, 2, 0]


def test_a_jpeg_set_from_a_mirror_has_an_entry_of_its_own_version(tmp_path, monkeypatch):
    files, train, test = tiny_files()
    hashes = [hashlib.sha256(bytes([i])).digest() for i in range(20)]
    made = datasets._canonical(
        "tiny-imagenet", (train[0], train[1][:, None], test[0], test[1][:, None], [WNIDS], hashes[:12], hashes[12:]), ""
    )
    monkeypatch.setattr(datasets, "_download", lambda *_: made)
    (folder(tmp_path / "cache" / "tiny-imagenet") / "meta.json").write_text("the old order")
    assert len(data.load("tiny-imagenet").x_train) == 12
    assert (tmp_path / "cache" / "tiny-imagenet" / "meta.json").read_text() == "the old order"


# ---- mirrors and `auto`


NEW = ("stl10", "tiny-imagenet", "pathmnist", "dermamnist", "bloodmnist")


def test_the_new_names_are_told():
    with pytest.raises(DataError) as error:
        data.load("imagenet")
    assert all(name in str(error.value) and name in data.names for name in (*NEW, "imagefolder:PATH"))


def test_no_mirror_is_one_line_and_no_stand_in(drawn, no_network):  # noqa: F811
    for name, file in zip(NEW, ("stl10_binary.tar.gz", "tiny-imagenet-200.zip", "pathmnist.npz"), strict=False):
        for arguments in ({"name": name}, {"name": "auto", "auto": name}):
            with pytest.raises(
                datasets.NoMirror, match=f"{name}: no mirror .* put {file} into DIR and pass --data-dir"
            ):
                data.load(**arguments)
    assert drawn.calls == []


def test_medmnist_from_the_second_mirror(serve, tmp_path, monkeypatch, capsys):  # noqa: F811
    place = npz(tmp_path / "served" / "bloodmnist.npz", medmnist_arrays(8))
    local = data.load("bloodmnist", data_dir=place)
    server = serve()
    (good,) = as_remotes(server, place)
    table = {"page": [good._replace(url=serve(behave=mirrors.html).url)]}
    table |= {"tar": [good._replace(url=serve(behave=mirrors.plain).url + "x", size=0)], "good": [good]}
    monkeypatch.setitem(datasets.MIRRORS, "bloodmnist", table)
    capsys.readouterr()
    loaded = data.load("bloodmnist", quiet=True)
    assert same(loaded, local) and loaded.source.startswith("good (http://127.0.0.1") and len(server.log) == 1
    told = capsys.readouterr().err
    assert (
        "page is of no use: sends a web page" in told and "tar is of no use: sends something that is not a .npz" in told
    )


# ---- folders of images


def picture(k, h=40, w=56):
    """An image that differs at every place and from the others."""
    y, x = np.mgrid[:h, :w]
    return np.stack([y * 255 // h, x * 255 // w, np.full((h, w), 37 * k % 256)], -1).astype(np.uint8)


@pytest.fixture
def images(tmp_path):
    """train: 3 classes of 7 images; val: 2 images each."""
    for split, n in (("train", 7), ("val", 2)):
        for c, name in enumerate(("b", "a", "c")):
            for i in range(n):
                k = 10 * c + i + (100 if split == "val" else 0)
                place = folder(tmp_path / "set" / split / name)
                image = Image.fromarray(picture(k, 40 + k % 7, 56))
                image.save(place / f"{i}.{('jpg', 'PNG', 'jpeg')[i % 3]}", ("JPEG", "PNG", "JPEG")[i % 3])
    (tmp_path / "set" / "train" / "a" / "notes.txt").write_text("x")
    (tmp_path / "set" / "train" / "a" / "._1.jpg").write_text("macOS")
    (tmp_path / "set" / "train" / "README").write_text("x")
    return tmp_path / "set"


def gather(batches):
    x, y = zip(*batches, strict=True)
    return np.concatenate(x), np.concatenate(y)


def image_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("images")]


def test_a_folder_is_listed_by_name(images):
    train, val = Folder(images, "train", 32), Folder(str(images), "val", 32)
    assert train.class_names == val.class_names == ("a", "b", "c") and len(train) == 21 and len(val) == 6
    assert train.files[:3] == ["a/0.jpg", "a/1.PNG", "a/2.jpeg"] and train.files[-1] == "c/6.jpg"
    assert train.labels.tolist() == [0] * 7 + [1] * 7 + [2] * 7 and train.labels.dtype == np.int64


@pytest.mark.parametrize("keyed", [False, True])
def test_batches_do_not_depend_on_workers(images, keyed):
    train, rng = Folder(images, "train", 32), np.random.default_rng(0)
    order = rng.permutation(21)
    keys = rng.integers(0, 2**32, 21, np.uint32) if keyed else None
    first = gather(train.batches(order, 8, workers=1, ahead=1, keys=keys))
    assert first[0].shape == (21, 32, 32, 3) and first[0].dtype == np.uint8 and first[1].dtype == np.int64
    assert np.array_equal(first[1], train.labels[order])
    for workers, ahead, size in ((1, 4, 8), (3, 2, 8), (5, 9, 4), (2, 1, 100)):
        again = gather(train.batches(order, size, workers, ahead, keys))
        assert all(map(np.array_equal, first, again))
    if not keyed:
        back = gather(train.batches(np.arange(21), 8))
        assert np.array_equal(first[0], back[0][order])
    assert [len(y) for _, y in train.batches(order, 8)] == [8, 8, 5] and list(train.batches([], 8)) == []
    assert image_threads() == []


def test_the_crop_is_what_resizing_all_and_cropping_gives(images):
    train = Folder(images, "train", 28)
    for key in (None, 0, 2**32 - 1, 0x8000_1234):
        keys = None if key is None else [key]
        got = gather(train.batches([1], 1, keys=keys))[0][0]  # a PNG: no draft
        whole = Image.open(images / "train" / train.files[1]).convert("RGB")
        W, H = (round(side * 32 / min(whole.size)) for side in whole.size)
        whole = np.asarray(whole.resize((W, H), Image.Resampling.BILINEAR)).astype(int)
        x, y = (W - 28) // 2, (H - 28) // 2
        if key is not None:
            x, y = (key & 0xFFFF) * (W - 27) >> 16, (key >> 16) * (H - 27) >> 16
        assert abs(whole[y : y + 28, x : x + 28] - got).max() <= 1


def test_crops_are_decided_by_their_keys(images):
    train = Folder(images, "train", 32)
    keys = np.random.default_rng(1).integers(0, 2**32, 60, np.uint32)
    crops = gather(train.batches([3] * 60, 16, keys=keys))[0]
    assert 10 < len({crop.tobytes() for crop in crops})
    once_more = gather(train.batches([3] * 60, 7, keys=keys[::-1].copy()))[0]
    assert np.array_equal(once_more[::-1], crops)
    corners = gather(train.batches([1] * 2, 2, keys=[0, 2**32 - 1]))[0].astype(int)
    assert (corners[1, ..., :2].mean((0, 1)) > corners[0, ..., :2].mean((0, 1))).all()  # further down, further right


def test_a_large_jpeg_is_decoded_at_a_smaller_scale(tmp_path, monkeypatch):
    place = folder(tmp_path / "train" / "a")
    Image.fromarray(picture(5, 600, 900)).save(place / "1.jpg", quality=95)
    seen, resize = [], Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, *a, **k: seen.append(self.size) or resize(self, *a, **k))
    small = gather(Folder(tmp_path, "train", 56).batches([0], 1))[0][0].astype(int)
    assert seen == [(113, 75)]  # an eighth, and not below 64
    exact = Image.fromarray(picture(5, 600, 900)).resize((96, 64), Image.Resampling.BILINEAR)
    assert abs(np.asarray(exact).astype(int)[4:60, 20:76] - small).mean() < 2


def test_modes_and_misnamed_files(tmp_path):
    place, image = folder(tmp_path / "train" / "a"), Image.fromarray(picture(3))
    image.convert("L").save(place / "0.jpg")
    image.convert("CMYK").save(place / "1.jpg")
    image.convert("P").save(place / "2.png")
    image.convert("RGBA").save(place / "3.png")
    image.save(place / "4.JPEG", "PNG")
    image.convert("1").save(place / "5.png")
    Image.fromarray(picture(3, 3, 500)).save(place / "6.png")
    x, _ = gather(Folder(tmp_path, "train", 16).batches(range(7), 7))
    assert x.shape == (7, 16, 16, 3) and (x[0, ..., 0] == x[0, ..., 1]).all()
    assert abs(x[3].astype(int) - x[4]).max() <= 1 and abs(x[1].astype(int) - x[4]).mean() < 4


def grey16(image):
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def rgb16(image):
    """A PNG (bytes) of 16 bits for each channel, which Pillow reads but does not write: image * 257."""
    h, w, _ = image.shape
    rows = (image.astype(">u2") * 257).astype(">u2").reshape(h, -1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = (b"IHDR", struct.pack(">2L5B", w, h, 16, 2, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")
    parts = (struct.pack(">L", len(c)) + k + c + struct.pack(">L", zlib.crc32(k + c)) for k, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_grey_images_of_16_bits_are_refused_not_made_white(images):
    path = images / "train" / "b" / "1.PNG"
    grey16(Image.fromarray(picture(3))).save(path, "PNG")
    assert Image.open(path).mode.startswith("I") and np.asarray(Image.open(path).convert("RGB")).mean() > 250
    complaint = r"more than 8 bits a pixel \(mode I.*\): scale it to 0..255 and save it as L"
    with pytest.raises(DataError, match=complaint) as error:
        gather(Folder(images, "train", 16).batches(range(21), 4))
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    with pytest.raises(DataError, match=complaint):
        data.load(f"imagefolder:{images}")


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B", "F"])
def test_no_mode_of_more_than_8_bits_is_converted(mode):
    with pytest.raises(DataError, match="x.png has more than 8 bits a pixel"):
        formats.as_rgb(Image.new(mode, (2, 2)), "x.png")


def test_colour_images_of_16_bits_are_scaled(tmp_path):
    place = folder(tmp_path / "train" / "a")
    (place / "1.png").write_bytes(rgb16(picture(3)))
    Image.fromarray(picture(3)).save(place / "2.png")
    x, _ = gather(Folder(tmp_path, "train", 16).batches(range(2), 2))
    assert np.array_equal(x[0], x[1])


@pytest.mark.parametrize("workers, ahead", [(1, 1), (4, 3)])
def test_never_more_than_ahead_batches_in_flight(images, monkeypatch, workers, ahead):
    began, decode = [], folders._decode
    monkeypatch.setattr(folders, "_decode", lambda path, *rest: began.append(path) or decode(path, *rest))
    taken = 0
    for _ in Folder(images, "train", 16).batches(list(range(21)) * 4, 4, workers, ahead):
        taken += 4
        time.sleep(0.02)  # the workers get as far as they may
        assert len(began) <= taken + 4 * ahead
    assert len(began) == taken == 84


def test_an_early_stop_leaves_no_thread(images):
    train = Folder(images, "train", 16)
    for _ in train.batches(list(range(21)) * 50, 4, workers=3):
        assert image_threads()
        break
    assert image_threads() == []
    with pytest.raises(ZeroDivisionError):
        for _ in train.batches(range(21), 4):
            1 / 0  # noqa: B018
    train.batches(range(21), 4)  # never begun
    batches = train.batches(range(21), 4)
    next(batches)
    batches.close()
    assert image_threads() == []


BROKEN = {
    "text": (b"hello", "UnidentifiedImageError"),
    "empty": (b"", "UnidentifiedImageError"),
    "gif": (b"GIF89a" + bytes(40), "UnidentifiedImageError"),
    "cut": (jpeg(picture(1))[:-200], "truncated"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_unreadable_image_is_one_line_with_its_path(images, case):
    content, complaint = BROKEN[case]
    (images / "train" / "b" / "3.jpg").write_bytes(content)
    train, seen = Folder(images, "train", 16), []
    with pytest.raises(DataError, match=complaint) as error:
        for _, labels in train.batches(range(21), 5, workers=3):
            seen.extend(labels)
    assert str(error.value).startswith(str(images / "train" / "b" / "3.jpg")) and "\n" not in str(error.value)
    assert len(seen) == 10 and image_threads() == []  # the batches before it came first
    with pytest.raises(DataError, match=complaint):
        data.load(f"imagefolder:{images}")


def test_decompression_bombs(images, monkeypatch):
    monkeypatch.setattr(folders, "MAX_PIXELS", 2000)
    with pytest.raises(DataError, match=r"a.0.jpg: no readable image \(56 x 43 pixels, more than the 2000 allowed\)"):
        gather(Folder(images, "train", 16).batches(range(21), 4))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's own limit is a line too
    with warnings.catch_warnings(), pytest.raises(DataError, match="DecompressionBomb"):
        warnings.simplefilter("error")
        gather(Folder(images, "train", 16).batches(range(21), 4))


def test_a_file_that_went_away(images):
    train = Folder(images, "train", 16)
    (images / "train" / "c" / "2.jpeg").unlink()
    with pytest.raises(DataError, match=r"c.2.jpeg: no readable image \(FileNotFoundError"):
        gather(train.batches(range(21), 4))
    with pytest.raises(DataError, match="cannot read .*2.jpeg"):
        train.identity()


def test_mistakes_in_a_folder_name_the_remedy(images):
    with pytest.raises(DataError, match="nowhere holds no train/CLASS/.*: name the folder that does"):
        Folder(images / "nowhere", "train", 32)
    with pytest.raises(DataError, match="take a size from 1"):
        Folder(images, "train", 0)
    (images / "val" / "d").mkdir()
    with pytest.raises(DataError, match="d holds no .jpg, .jpeg or .png: fill it or remove it"):
        Folder(images, "val", 32)
    (images / "val" / "d" / "1.jpg").write_bytes(SMALL)
    with pytest.raises(DataError, match="d is no class of the training images"):
        Folder(images, "val", 32, Folder(images, "train", 32).class_names)
    folder(images / "nothing" / "train")
    with pytest.raises(DataError, match="holds no folders of images"):
        Folder(images / "nothing", "train", 32)
    train = Folder(images, "train", 32)
    for bad in ({"order": [21]}, {"order": [-1]}, {"order": [0], "keys": [1, 2]}, {"order": [0], "workers": 0}):
        with pytest.raises(ValueError):
            train.batches(batch_size=4, **bad)


def test_test_stands_for_val_and_classes_may_be_absent(images):
    names = Folder(images, "train", 32).class_names
    for file in (images / "val" / "a").iterdir():
        file.unlink()
    (images / "val" / "a").rmdir()
    (images / "val").rename(images / "test")
    test = Folder(images, "val", 32, names)
    assert test.root.name == "test" and test.labels.tolist() == [1, 1, 2, 2] and test.class_names == names


# ---- imagefolder:PATH


def test_imagefolder_as_a_data_set(images, parses, monkeypatch):  # noqa: F811
    first = data.load(f"imagefolder:{images}", quiet=True)
    assert first.x_train.shape == (21, 64, 64, 3) and first.x_test.shape == (6, 64, 64, 3)
    assert first.class_names == ("a", "b", "c") and first.y_train.dtype == np.uint8 and first.name.endswith("set")
    train, val = (Folder(images, split, 64) for split in ("train", "val"))
    assert agrees(first, *(gather(part.batches(range(len(part)), 4)) for part in (train, val)))
    assert datasets.fingerprint(first.x_train, first.y_train, first.x_test, first.y_test) == first.sha256
    small = data.load(f"imagefolder:{images}@24")
    assert small.x_train.shape == (21, 24, 24, 3)
    monkeypatch.setattr(folders, "_decode", None)  # now from the cache
    again = data.load("auto", auto=f"imagefolder:{images}/@64", data_dir="/nowhere")
    assert same(first, again) and isinstance(again.x_train, np.ndarray) and parses == []


def test_imagefolders_order_is_of_the_files_not_of_the_pixels(images, monkeypatch):
    a = data.load(f"imagefolder:{images}@16", quiet=True)
    large = data.load(f"imagefolder:{images}@24", quiet=True)
    train = Folder(images, "train", 16)
    contents = [(images / "train" / file).read_bytes() for file in train.files]
    assert [train.sha256(i) for i in range(21)] == [hashlib.sha256(content).digest() for content in contents]
    order = sorted(range(21), key=train.sha256)
    assert np.array_equal(a.y_train, train.labels[order]) and np.array_equal(a.y_train, large.y_train)
    assert np.array_equal(a.x_train, gather(train.batches(order, 8))[0])
    other_build(monkeypatch, folders)
    monkeypatch.setenv("FF_CACHE", str(images.parent / "other"))
    b = data.load(f"imagefolder:{images}@16", quiet=True)
    assert np.array_equal(b.x_train, a.x_train ^ 1) and np.array_equal(b.y_train, a.y_train)
    assert np.array_equal(b.x_test, a.x_test ^ 1) and np.array_equal(b.y_test, a.y_test)
    (images / "train" / train.files[5]).unlink()
    with pytest.raises(DataError, match="cannot read .*5.jpeg"):
        train.sha256(5)


def test_imagefolder_sees_a_changed_file(images):
    first = data.load(f"imagefolder:{images}@16", quiet=True)
    Image.fromarray(picture(99)).save(images / "train" / "a" / "0.jpg")
    assert data.load(f"imagefolder:{images}@16", quiet=True).sha256 != first.sha256
    (images / "train" / "a" / "0.jpg").unlink()
    assert len(data.load(f"imagefolder:{images}@16", quiet=True).x_train) == 20


def test_imagefolder_of_more_than_256_classes(tmp_path):
    place = tmp_path / "many-coarse"  # no relative of cifar100-coarse
    for k in range(300):
        content = make.png(np.array([[[k % 256, k // 256, 7]]], np.uint8))
        for split in ("train", "val"):
            (folder(place / split / f"{k:03d}") / "x.png").write_bytes(content)
    many = data.load(f"imagefolder:{place}@1", quiet=True)
    assert many.y_train.dtype == many.y_test.dtype == np.uint16 and len(many.class_names) == 300
    assert [int(x[0, 0, 0]) + 256 * int(x[0, 0, 1]) for x in many.x_train] == many.y_train.tolist()
    narrow = [many.y_train.astype(np.uint8), many.y_test.astype(np.uint8)]
    assert many.sha256 == datasets.fingerprint(many.x_train, many.y_train, many.x_test, many.y_test)
    assert many.sha256 != datasets.fingerprint(many.x_train, narrow[0], many.x_test, narrow[1])


def test_imagefolder_that_would_be_too_large(images, monkeypatch):
    monkeypatch.setattr(datasets, "MAX_FOLDER", 27 * 64 * 64 * 3 - 1)
    monkeypatch.setattr(folders, "_decode", None)  # it is told before anything is read
    with pytest.raises(DataError, match="append a smaller @SIZE, or train with ff_cnn/train.py") as error:
        data.load(f"imagefolder:{images}")
    assert "\n" not in str(error.value)


def test_imagefolder_names(images, tmp_path):
    odd = tmp_path / "me@home"
    images.rename(odd)
    assert data.load(f"imagefolder:{odd}", quiet=True).x_train.shape[1] == 64
    assert data.load(f"imagefolder:{odd}@16", quiet=True).x_train.shape[1] == 16
    for name, complaint in {
        "imagefolder:": "write imagefolder:PATH",
        "imagefolder:PATH": "PATH holds no train/CLASS",
        f"imagefolder:{odd}@0": "take a size from 1",
        f"imagefolder:{odd}@9999": "take a size from 1",
    }.items():
        with pytest.raises(DataError, match=complaint):
            data.load(name)
