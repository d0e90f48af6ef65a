"""Paths and files that are given for a checkpoint: each is named as what it is, with what to do."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import random
import socket
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from export.checkpoint import Checkpoint, read_checkpoint
from export.checkpoint_files import shown

WEIGHTS = {"0.weight": torch.arange(6.0).view(2, 3), "0.bias": torch.tensor([1.0, 2.0])}


def saved(content=None, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": WEIGHTS} if content is None else content, buffer, **options)
    return buffer.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(members: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def torchscript() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), buffer)
    return buffer.getvalue()


def onnx_model() -> bytes:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [value])
    return helper.make_model(graph).SerializeToString()


def safetensors() -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0\0\x80?"


def array(name: str) -> bytes:
    buffer = io.BytesIO()
    (np.savez if name == "npz" else np.save)(buffer, np.arange(3.0))
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 177867103\n"
IMAGE = b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(range(256))

# content -> words of the message
FILES = {
    "an LFS pointer": (LFS, "a Git LFS pointer.*git lfs pull"),
    "an LFS pointer with CRLF": (LFS.replace(b"\n", b"\r\n"), "a Git LFS pointer.*git lfs pull"),
    "HTML": (
        b"<!DOCTYPE html>\n<html><head><title>Not Found</title>",
        r"an HTML page \(title 'Not Found'\).*download",
    ),
    "HTML after blank lines": (b"\n\n  <HTML lang=en><body>x", "an HTML page"),
    "HTML after a comment": (b"<!-- x -->\n<!doctype html>\n<html>", "an HTML page"),
    "HTML with a mark": ("\ufeff<html>ü</html>".encode(), "an HTML page"),
    "HTML in UTF-16": ("<html>x</html>".encode("utf-16"), "an HTML page"),
    "HTML that is cut within a letter": (("<html>" + "a" * 4089 + "üü").encode(), "an HTML page"),
    "XML": (
        b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        r"an XML document \('AccessDenied'\).*Download",
    ),
    "JSON": (b'{"message": "rate limit"}', r"a JSON text \('rate limit'\)"),
    "a JSON list": (b'[{"id": 1}]', "a JSON text"),
    "a JSON log": (b'{"lr": 0.02, "epoch": 1}\n{"lr": 0.01, "epoch": 2}\n', "a JSON text"),
    "a config": (b"_base_ = ['a.py']\nmodel = dict()\n", "a text that begins with \"_base_ = .*Give the .pth file"),
    "a text": (b"hello\n", "a text that begins with 'hello'"),
    "a text in Chinese": ("你好\n".encode(), "a text that begins with '你好'"),
    "last_checkpoint": (b"/work/epoch_12.pth", "a text that names a checkpoint.*Give that file: /work/epoch_12.pth"),
    "last_checkpoint with a line's end": (b"work/epoch_12.pth\n", "Give that file: work/epoch_12.pth"),
    "blank lines": (b"\n\n \n", "an empty text"),
    "JPEG": (IMAGE, "a JPEG image"),
    "PNG": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a PNG image"),
    "GIF": (b"GIF89a\1\0\1\0\x80", "a GIF image"),
    "BMP": (b"BM\x36\0\0\0\0\0\0\0", "a BMP image"),
    "WebP": (b"RIFF\x24\0\0\0WEBPVP8 ", "a WebP image"),
    "TIFF": (b"II*\0\x08\0\0\0", "a TIFF image"),
    "MP4": (b"\0\0\0\x20ftypisom\0\0\2\0", "a video"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF"),
    "safetensors": (safetensors(), "a safetensors file.*safetensors.torch.load_file"),
    "ONNX": (onnx_model(), "an ONNX model"),
    "TorchScript": (torchscript(), "a TorchScript archive"),
    "TensorRT": (b"ftrt\xf0\0\0\0\1\0\0\0", "a TensorRT engine"),
    "HDF5": (b"\x89HDF\r\n\x1a\n\0\0", "an HDF5 file"),
    "TensorFlow Lite": (b"\x1c\0\0\0TFL3\x14\0", "a TensorFlow Lite model"),
    "NumPy": (array("npy"), "a NumPy array"),
    "NumPy's archive": (array("npz"), r"NumPy arrays \(.npz\)"),
    "a zip of a checkpoint": (zipped({"work/epoch_12.pth": saved()}), "holds work/epoch_12.pth.*Unpack it"),
    "a zip of others": (zipped({"a.txt": b"x", "b.txt": b"y"}), "a zip archive of a.txt, b.txt"),
    "a zip of many": (zipped({f"{i}.txt": b"x" for i in range(9)}), "3.txt and 5 more"),
    "an empty zip": (zipped({}), "an empty zip archive"),
    "a zip without a folder": (zipped({"data.pkl": b"N."}), "packed anew.*torch.save"),
    "a zip with a deeper folder": (zipped({"a/b/data.pkl": b"N."}), "packed anew.*torch.save"),
    "Keras": (zipped({"config.json": b"", "model.weights.h5": b""}), "Keras"),
    "torch.export": (zipped({"m/models/model.json": b"", "m/version": b"1"}), "an exported"),
    "a tar": (tarred({"epoch_12.pth": saved()}), "a tar archive.*tar -xf"),
    "PyTorch 0.1": (tarred({"sys_info": b"", "pickle": b"", "storages": b""}), "PyTorch 0.1.*--trust-checkpoint"),
    "gzip": (gzip.compress(saved()), "a gzip file.*Unpack it"),
    "bzip2": (bz2.compress(saved()), "a bzip2 file.*Unpack it"),
    "xz": (lzma.compress(saved()), "an xz file.*Unpack it"),
    "Zstandard": (b"\x28\xb5\x2f\xfd\x04\0", "a Zstandard file"),
    "7-Zip": (b"7z\xbc\xaf\x27\x1c\0\4", "a 7-Zip archive"),
    "RAR": (b"Rar!\x1a\7\0", "a RAR archive"),
    "ELF": (b"\x7fELF\2\1\1\0", "a program or library"),
    "a pickle": (pickle.dumps({"model": {"a": np.ones(3)}}), "a pickle that torch.save did not write"),
    "a pickle of tensors": (pickle.dumps(WEIGHTS), "a pickle that torch.save did not write.*save its state dict"),
    "a pickle of protocol 0": (pickle.dumps({"a": 1}, 0), "a text that begins with"),
    "nothing": (b"", "an empty file.*again"),
    "zeros": (bytes(5000), "nothing but zeros.*Download it again"),
    "noise": (random.Random(0).randbytes(5000), "a file of unknown kind that begins with the bytes cd 07 2c d8"),
    "one byte": (b"\x80", "a file of unknown kind"),
    "two bytes": (b"PK", "a text that begins with 'PK'"),
    "a zip that is cut": (saved()[:300], "truncated or damaged: the zip archive's directory, its end, is missing"),
    "a zip that is cut late": (saved()[:-3], "truncated or damaged"),
    "a legacy file that is cut": (saved(_use_new_zipfile_serialization=False)[:-3], "truncated or damaged: storage"),
    "a legacy file that is cut early": (saved(_use_new_zipfile_serialization=False)[:150], "truncated or damaged"),
    "a list": (saved([1, 2]), "a dictionary of weights, found list"),
    "a list of tensors": (saved([torch.ones(1)]), "a dictionary of weights, found list"),
    "a tensor": (saved(torch.ones(3)), "a dictionary of weights, found a single tensor"),
    "a number": (saved(3), "a dictionary of weights, found int"),
    "an empty dictionary": (saved({}), "a state dict, found an empty one"),
    "an empty state dict": (saved({"state_dict": {}, "meta": {}}), "a state dict, found an empty one"),
    "numbers": (saved({"state_dict": {"a": 1.0}}), r"a state dict, found no tensor in it \(a is a float\)"),
    "NumPy arrays": (saved({"state_dict": {"a": np.ones(3)}}), r"no tensor in it \(a is a numpy.*_reconstruct\)"),
    "an epoch": (saved({"epoch": 3}), "a state dict, found the keys epoch"),
    "an optimizer": (saved({"state": {}, "param_groups": [{"lr": 0.1}]}), "found the keys state, param_groups"),
    "another key": (saved({"net": WEIGHTS, "epoch": 3}), "found tensors under the key net.*as state_dict"),
    "numbers as keys": (saved({"state_dict": {0: torch.ones(1)}}), "names as keys, found keys of type int"),
    "only an average's counter": (saved({"ema_state_dict": {"steps": torch.tensor(3)}}), "only an average's counters"),
}  # fmt: skip


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_a_file_is_named_as_what_it_is(tmp_path, name, trust):
    content, words = FILES[name]
    path = tmp_path / "epoch_12.pth"
    path.write_bytes(content)
    if trust and "--trust-checkpoint" in words:
        pytest.skip("torch.load is tried, and has its own complaint")
    with pytest.raises(ValueError, match=rf"(?s)^checkpoint .*epoch_12\.pth: expected .*{words}") as caught:
        read_checkpoint(path, trust_pickle=trust)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count(". ") >= 1, "a remedy follows what was found"


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx", ".zip", ".txt", ""])
def test_the_suffix_does_not_matter(tmp_path, suffix):
    path = tmp_path / f"c{suffix}"
    path.write_bytes(saved())
    assert set(read_checkpoint(path).weights) == set(WEIGHTS)
    path.write_bytes(LFS)
    with pytest.raises(ValueError, match="Git LFS"):
        read_checkpoint(path)


URLS = {
    "https://download.openmmlab.com/x.pth": r"https://download.openmmlab.com/x.pth: .*a URL\. Download it first \(wget",
    "http://x/y.pth": r"http://x/y.pth: .*a URL\. Download it first",
    "HTTPS://X/y.pth": "a URL",
    "ftp://x/y.pth": "a URL",
    "s3://bucket/x.pth": r"s3://bucket/x.pth: .*a URL\. Download it first",
    "gs://bucket/x.pth": "a URL",
    "hf://owner/x": "a URL",
    "open-mmlab://mask_rcnn": "open-mmlab://mask_rcnn: .*a URL",
    "openmmlab://x": "a URL",
    "openmmlab:s3://x/y.pth": "a URL",
    "torchvision://resnet50": "a URL",
    "modelzoo://resnet50": "a URL",
    "mmdet://x": "a URL",
    "mmcls://x": "a URL",
    "pavi://x": "a URL",
    "petrel://x/y": "a URL",
    "file:///work/x.pth": r"file:///work/x.pth: .*a URL\. Give the path: /work/x.pth",
    "user@host:/work/x.pth": "a path on another one.*Copy it here",
    "host.example.com:/work/x.pth": "a path on another one",
    "C:\\work\\epoch_12.pth": "a path of Windows.*/mnt/c",
    "c:/work/epoch_12.pth": "a path of Windows",
    "\\\\server\\share\\x.pth": "a path of Windows",
    "work\\epoch_12.pth": "a path of Windows",
    "gone.pth": r"found nothing at gone.pth\. Check the path \(relative to ",
    "/gone/gone.pth": r"found nothing at /gone/gone.pth\. Check the path\.$",
    "a\0b.pth": r"found nothing at a\\x00b.pth",
    "a\nb.pth": r"found nothing at a\\nb.pth",
    "a\udc80b.pth": r"found nothing at a\\udc80b.pth",
    "~/gone_for_ever.pth": "found nothing at /.*gone_for_ever.pth",
    "~nobody_of_this_name/x.pth": "found nothing at ~nobody_of_this_name/x.pth",
}


@pytest.mark.parametrize("text", URLS)
def test_a_path_to_nothing_on_this_machine(text):
    with pytest.raises(FileNotFoundError, match=f"^checkpoint.*{URLS[text]}") as caught:
        read_checkpoint(Path(text))
    assert "expected a file" in str(caught.value)
    str(caught.value).encode()


def test_a_file_whose_name_looks_like_a_url_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("https:/x.pth", "C:\\work\\x.pth", "host.org:/x.pth"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(saved())
        assert set(read_checkpoint(Path(name)).weights) == set(WEIGHTS)


def test_the_home_directory_is_expanded_as_mmengine_does(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.pth").write_bytes(saved())
    assert set(read_checkpoint(Path("~/c.pth")).weights) == set(WEIGHTS)


def test_a_name_that_is_too_long():
    with pytest.raises(OSError, match="expected a file that can be read, found: File name too long"):
        read_checkpoint(Path("x" * 5000))


def test_a_part_of_the_path_that_is_a_file(tmp_path):
    (tmp_path / "c.pth").write_bytes(saved())
    with pytest.raises(FileNotFoundError, match=r"found nothing at .*c\.pth/d\.pth"):
        read_checkpoint(tmp_path / "c.pth" / "d.pth")


def test_links(tmp_path):
    (tmp_path / "c.pth").write_bytes(saved())
    (tmp_path / "good.pth").symlink_to(tmp_path / "c.pth")
    (tmp_path / "gone.pth").symlink_to("epoch_99.pth")
    (tmp_path / "loop.pth").symlink_to("loop.pth")
    assert set(read_checkpoint(tmp_path / "good.pth").weights) == set(WEIGHTS)
    with pytest.raises(FileNotFoundError, match=r"found nothing at .*gone\.pth, a link to epoch_99\.pth"):
        read_checkpoint(tmp_path / "gone.pth")
    with pytest.raises(OSError, match=r"loop\.pth: expected a file that can be read, found: Too many levels"):
        read_checkpoint(tmp_path / "loop.pth")


def test_directories(tmp_path):
    with pytest.raises(ValueError, match=r"expected a file, found an empty directory\. Give the \.pth"):
        read_checkpoint(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"found a directory \(notes\.txt\)\. Give the \.pth"):
        read_checkpoint(tmp_path)
    for epoch in (1, 2):
        (tmp_path / f"epoch_{epoch}.pth").touch()
    with pytest.raises(
        ValueError, match=r"found a directory\. Give one of its files: epoch_1\.pth, epoch_2\.pth\."
    ):
        read_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="a directory"):
        read_checkpoint(Path(""))


def test_devices_and_pipes(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "s"))
    cases = {
        "/dev/zero": "a device",
        "/dev/null": "a device",
        str(tmp_path / "pipe.pth"): "a pipe",
        str(tmp_path / "s"): "a socket",
    }
    for path, words in cases.items():
        with pytest.raises(
            ValueError, match=rf"expected a file, found {words}\. Write its content into a file"
        ):
            read_checkpoint(Path(path))
    listening.close()


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")]
)
def test_a_file_that_cannot_be_read(tmp_path, monkeypatch, error):
    path = tmp_path / "c.pth"
    path.write_bytes(saved())

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(
        type(error), match=rf"c\.pth: expected a file that can be read, found: {error.strerror}\. Check"
    ):
        read_checkpoint(path)


def test_shown_text_is_one_printable_line():
    assert shown("a\tb\x1b[31mü\n\0\udc80") == "a\\tb\\x1b[31mü\\n\\x00\\udc80"
    assert shown("a" * 400) == "a" * 300 + "..."


# --- files changed at random ---------------------------------------------------------------------------------------

SEEDS = {
    "zip": saved({"meta": {"CLASSES": ("a", "b")}, "state_dict": WEIGHTS}),
    "legacy": saved(
        {"meta": {"CLASSES": ("a", "b")}, "state_dict": WEIGHTS}, _use_new_zipfile_serialization=False
    ),
    "protocol 4": saved({"state_dict": WEIGHTS, "meta": {"x": np.arange(3)}}, pickle_protocol=4),
    "no checksums": None,
}


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Flip, cut, insert, repeat: one to four times."""
    content = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(content) or 1)
        kind = draw.randrange(6)
        if kind == 0 and draw.random() < 0.3:
            del content[at:]
        elif kind == 1:
            content[at:at] = draw.randbytes(draw.randint(1, 8))
        elif kind == 2:
            del content[at : at + draw.randint(1, 8)]
        elif content:
            content[at % len(content)] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
    return bytes(content)


@pytest.mark.parametrize("name", SEEDS)
def test_changed_files_are_read_or_refused(tmp_path, name):
    draw = random.Random(name)
    seed = SEEDS[name] or without_checksums()
    path = tmp_path / "c.pth"
    for _ in range(150):
        path.write_bytes(mutated(seed, draw))
        try:
            checkpoint = read_checkpoint(path)
        except (ValueError, OSError) as error:
            check_refusal(error)
        else:
            assert isinstance(checkpoint, Checkpoint)
            assert all(w.isfinite().all() for w in checkpoint.weights.values())


def test_changed_pickles_are_read_or_refused(tmp_path):
    """Without the archive around it, in which a checksum finds nearly every change."""
    draw = random.Random(0)
    with zipfile.ZipFile(io.BytesIO(SEEDS["zip"])) as archive:
        records = {n: archive.read(n) for n in archive.namelist()}
    path = tmp_path / "c.pth"
    for _ in range(300):
        edited = {n: mutated(d, draw) if n.endswith("data.pkl") else d for n, d in records.items()}
        path.write_bytes(zipped(edited))
        try:
            assert read_checkpoint(path).weights
        except ValueError as error:
            check_refusal(error)


def check_refusal(error: Exception) -> None:
    """A refusal names the file and can be printed on any terminal."""
    assert str(error).startswith("checkpoint"), error
    str(error).encode()


def without_checksums() -> bytes:
    torch.serialization.set_crc32_options(False)
    try:
        return saved({"state_dict": WEIGHTS})
    finally:
        torch.serialization.set_crc32_options(True)
