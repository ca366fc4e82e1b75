"""Damage to a packed set: found when it is opened, or before what was learned from it counts."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lensdist import train
from lensdist.data import verification
from lensdist.data.dataset import PackedSet
from lensdist.data.manifest import FileInfo, Manifest
from lensdist.data.packing.writer import PackedWriter
from lensdist.utils.errors import RunError, UserError
from tests.conftest import settings
from tests.unit.data_files import add_all

pytestmark = pytest.mark.faults

N = 12


def write(dest: Path, seed: int = 0) -> Path:
    images = np.random.default_rng(seed).random((N, 1, 3, 3))
    with PackedWriter(dest, labels=["a", "b"], seed=1, source={"from": "here"}) as writer:
        names = [f"a/{i}.npy" for i in range(N)]
        add_all(writer, images, np.arange(N) % 2, names, mass=range(N), weight=images)
        writer.finish()
    return dest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "set")


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def refused(folder: Path) -> bool:
    try:
        PackedSet(folder)
    except UserError:
        return True
    return False


def test_every_flipped_bit_is_refused_or_changes_nothing(folder: Path) -> None:
    before, missed = Manifest.load(folder).model_dump(), []
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        step = 7 if path.name in ("labels.npy", "split.npy") else 211  # each bit in turn
        for bit in range(0, 8 * len(whole), step):
            flip(path, bit)
            if not refused(folder) and path.name != "report.json":  # which nobody reads
                missed += [] if Manifest.load(folder).model_dump() == before else [(path, bit)]
            path.write_bytes(whole)
    assert not missed
    assert not refused(folder)


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "files.jsonl", "manifest.json"])
@pytest.mark.parametrize("how", ["longer", "shorter", "empty", "gone", "swapped", "pipe", "folder"])
def test_a_file_that_is_not_the_one_packed(folder: Path, name: str, how: str) -> None:
    path, other = folder / name, write(folder.with_name("other"), seed=1)
    data = path.read_bytes()
    path.unlink()
    if how == "swapped":
        # Names and labels of both sets are alike; of the manifest, what it says of the images.
        shutil.copy(other / name, path)
        assert refused(folder) or path.read_bytes() == data
        return
    if how == "pipe":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    elif how != "gone":
        path.write_bytes({"longer": data + b"\0", "shorter": data[:-2], "empty": b""}[how])
    assert refused(folder)


def test_a_link_to_the_same_bytes_is_as_good(folder: Path) -> None:
    (folder / "images.npy").rename(folder.with_name("elsewhere.npy"))
    (folder / "images.npy").symlink_to(folder.with_name("elsewhere.npy"))
    (folder / "notes.txt").write_text("a file of the user's own")
    PackedSet(folder)


def forge(folder: Path, name: str = "", data: bytes = b"", **changes: Any) -> None:
    """A set whose every hash is right, as somebody would make it who knows how."""
    path = folder / "manifest.json"
    facts = {**json.loads(path.read_text()), **changes}
    if name:
        (folder / name).write_bytes(data)
        found = FileInfo(bytes=len(data), sha256=verification.sha256(folder / name))
        facts["files"][name] = found.model_dump()
    about = Manifest.model_validate(facts)
    about = about.model_copy(update={"fingerprint": about.hash()})
    about = about.model_copy(update={"seal": about.hash(sealed=True)})
    path.write_text(about.model_dump_json())


def npy(array: np.ndarray[Any, Any]) -> bytes:
    header = np.lib.format.header_data_from_array_1_0(array)
    return npy_of(str(header), array.tobytes())


def npy_of(header: str, data: bytes = b"") -> bytes:
    text = (header + "\n").encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


HEADER = "{'descr': '%s', 'fortran_order': False, 'shape': %s}"


@pytest.mark.parametrize("verify", ["auto", "off"])
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("labels.npy", npy(np.full(N, 2, np.int16))),
        ("labels.npy", npy(np.full(N, -2, np.int16))),
        ("labels.npy", npy(np.zeros(N, np.int64))),
        ("split.npy", npy(np.full(N, 3, np.uint8))),
        ("split.npy", npy(np.zeros(N, np.uint8))),  # all test images into training
        ("split.npy", npy(np.zeros(N + 1, np.uint8))),
        ("mass.npy", npy(np.full(N, np.inf))),
        ("images.npy", npy_of(HEADER % ("|O", (N,)), b"cos\nsystem\n")),
        ("images.npy", npy_of(HEADER % ("<f4", (-1, 1, 3, 3)), bytes(36 * N))),
        ("images.npy", npy_of(HEADER % ("<f4", (2**62, 2**62, 3, 3)), bytes(36 * N))),
        ("images.npy", npy_of("(" * 9000, bytes(36 * N))),
        ("images.npy", npy_of(HEADER % (">f4", (N, 1, 3, 3)), bytes(36 * N))),
        ("images.npy", b"PK\x03\x04" + bytes(200)),
        ("images.npy", b""),
    ],
)
def test_values_are_checked_whatever_the_hashes_say(
    folder: Path, name: str, data: bytes, verify: Any
) -> None:
    forge(folder, name, data)
    with pytest.raises(UserError, match=name if name != "split.npy" else "split"):
        PackedSet(folder, verify)


@pytest.mark.parametrize(
    "text",
    [
        '{"source": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}",
        "[" * 100_000,
        '{"count": ' + "9" * 10_000 + "}",
        "null",
        "\xff",
    ],
)
def test_a_manifest_that_is_none(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text, "latin-1")
    assert refused(folder)


@pytest.mark.parametrize(
    "changes",
    [{"count": 10**30}, {"image_shape": (1, 3, 10**30)}, {"seed": 10**5000}, {"labels": []}],
)
def test_a_manifest_of_impossible_numbers(folder: Path, changes: dict[str, Any]) -> None:
    path = folder / "manifest.json"
    facts = json.loads(path.read_text())
    words = {k: "9" * 5000 if k == "seed" else json.dumps(v) for k, v in changes.items()}
    text = json.dumps(facts | dict.fromkeys(changes, "@"))
    for word in words.values():
        text = text.replace('"@"', word, 1)
    path.write_text(text)
    assert refused(folder)
    if "seed" not in changes:
        forge(write(folder.with_name("forged")), **changes)
        assert refused(folder.with_name("forged"))


def test_a_set_from_before_there_were_seals_is_read(folder: Path) -> None:
    path = folder / "manifest.json"
    facts = json.loads(path.read_text())
    del facts["seal"], facts["report"]
    path.write_text(json.dumps(facts))
    PackedSet(folder)
    path.write_text(path.read_text().replace('"count": 12', '"count": 13'))
    assert refused(folder)


def test_a_large_array_is_hashed_once_and_again_when_it_changes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(verification, "_REMEMBERED", 1)
    PackedSet(folder)
    cache, images = tmp_path / "cache" / "lensdist", folder / "images.npy"
    assert cache.stat().st_mode & 0o777 == 0o700
    assert len(list(cache.iterdir())) == 2  # images and weights
    before = images.stat()
    # Not hashed: a set that is believed opens even where its hash is asked for in vain.
    info = Manifest.load(folder).files["images.npy"]
    assert verification._known(images, info)
    assert not verification._known(images, info.model_copy(update={"sha256": "0" * 64}))
    flip(images, 8 * 200)
    os.utime(images, ns=(before.st_atime_ns, before.st_mtime_ns))  # hides nothing
    assert refused(folder)
    PackedSet(folder, "off")
    flip(images, 8 * 200)
    cache.chmod(0o777)  # anybody may have put there what is found
    assert not verification._known(images, info)
    PackedSet(folder)


def test_what_is_hashed_in_the_background_is_told_before_it_counts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "_AT_ONCE", 1)
    PackedSet(folder, background=True).verification.check(wait=True)
    flip(folder / "images.npy", 8 * 200)
    packed = PackedSet(folder, background=True)
    with pytest.raises(RunError, match=r"images\.npy was changed"):
        packed.verification.check(wait=True)
    assert refused(folder)  # what is not a run waits


def test_a_run_on_damage_found_late_is_not_complete(
    tiny_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(verification, "_AT_ONCE", 1)
    data, run = tmp_path / "set", tmp_path / "run"
    shutil.copytree(tiny_set, data)
    flip(data / "images.npy", 8 * 5000)
    assert train.main([*settings("mae", data, run), "train.max_steps=1"]) == 1
    assert "images.npy was changed or damaged" in capsys.readouterr().err
    assert not (run / "COMPLETE.json").exists()
    assert train.main([*settings("mae", data, run), "data.verify=full"]) == 2
