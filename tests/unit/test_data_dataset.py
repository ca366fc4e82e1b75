"""The packed set: what the writer took is what `gather` gives, whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lensdist.data.dataset import PackedSet
from lensdist.data.manifest import Manifest
from lensdist.data.packing.writer import PackedWriter
from lensdist.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.random((40, 2, 6, 6))
LABELS = np.arange(40) % 2


def write(dest: Path, images: Any = IMAGES, **more: Any) -> Manifest:
    with PackedWriter(dest, labels=["a", "b"], seed=1, source={"test": True}, **more) as writer:
        writer.add_batch(images, LABELS, [f"{i}" for i in range(40)])
        return writer.finish()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> PackedSet:
    path = tmp_path_factory.mktemp("sets") / "packed"
    write(path)
    return PackedSet(path)


def test_gather_gives_what_was_written_in_the_order_asked_for(packed: PackedSet) -> None:
    rows = np.array([39, 0, 7, 7])
    batch = packed.gather(rows)
    assert set(batch) == {"image", "label"}
    np.testing.assert_array_equal(batch["image"], IMAGES[rows].astype(np.float32))
    np.testing.assert_array_equal(batch["label"], LABELS[rows])
    assert batch["label"].dtype == torch.int64
    assert len(packed) == 40
    with pytest.raises((IndexError, RuntimeError)):
        packed.gather(np.array([40]))


def test_splits_cover_the_set_once(packed: PackedSet) -> None:
    parts = [packed.indices(split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [32, 4, 4]
    assert sorted(np.concatenate(parts)) == list(range(40))
    assert packed.manifest.counts["val"] == {"a": 2, "b": 2}


def test_statistics_are_those_of_the_train_split(packed: PackedSet) -> None:
    train = IMAGES[packed.indices("train")].astype(np.float32).astype(np.float64)
    about = packed.manifest.statistics
    for key in ("min", "max", "mean", "std"):
        expected = getattr(train, key)(axis=(0, 2, 3))
        np.testing.assert_allclose(getattr(about, key), expected, rtol=1e-12)


def test_statistics_leave_bad_pixels_out(tmp_path: Path) -> None:
    bad = np.zeros(IMAGES.shape, bool)
    bad[:, 0, :3] = True
    with PackedWriter(tmp_path / "p", labels=["a", "b"], seed=1, source={}) as writer:
        writer.add_batch(np.where(bad, np.nan, IMAGES), LABELS, [""] * 40, badpix=bad)
        about = writer.finish().statistics
    packed = PackedSet(tmp_path / "p")
    train = IMAGES[packed.indices("train")].astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(about.mean[0], train[:, 0, 3:].mean(), rtol=1e-12)
    np.testing.assert_allclose(about.std[1], train[:, 1].std(), rtol=1e-12)


@pytest.mark.parametrize("stored", ["float32", "float16"])
@pytest.mark.parametrize("wanted", [torch.float32, torch.float16, None])
def test_out_is_used_again_where_it_fits(tmp_path: Path, stored: Any, wanted: Any) -> None:
    write(tmp_path / "p", dtype=stored)
    packed = PackedSet(tmp_path / "p")
    first = packed.gather(np.arange(35), dtype=wanted)
    address = first["image"].data_ptr()
    assert first["image"].dtype == (wanted or getattr(torch, stored))
    rows = np.arange(39, 4, -1)
    second = packed.gather(rows, out=first, dtype=wanted)
    assert second["image"].data_ptr() == address
    expected = torch.from_numpy(IMAGES[rows].astype(stored)).to(second["image"].dtype)
    torch.testing.assert_close(second["image"], expected, rtol=0, atol=0)
    assert packed.gather(np.arange(3), out=first)["image"].shape[0] == 3
    assert packed.gather(np.arange(0), dtype=wanted)["image"].shape[0] == 0


def test_resident_gathers_the_same(packed: PackedSet) -> None:
    rows = np.array([3, 1, 20])
    resident = packed.resident("cpu")
    for key, value in packed.gather(rows).items():
        torch.testing.assert_close(resident.gather(rows)[key], value)
    assert packed.nbytes == IMAGES.size * 4 + 40 * 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_resident_on_a_gpu_gathers_there(packed: PackedSet) -> None:
    batch = packed.resident("cuda").gather(np.array([3, 1]))
    assert batch["image"].is_cuda
    torch.testing.assert_close(batch["image"].cpu(), packed.gather(np.array([3, 1]))["image"])


def test_one_at_a_time_and_in_batches_write_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "batched")
    with PackedWriter(tmp_path / "single", labels=["a", "b"], seed=1, source={}) as writer:
        for i in range(40):
            writer.add(IMAGES[i], label=int(LABELS[i]), name=f"{i}")
        writer.finish()
    for name in ("images.npy", "labels.npy", "split.npy", "files.jsonl"):
        assert (tmp_path / "batched" / name).read_bytes() == (
            tmp_path / "single" / name
        ).read_bytes()
    one, two = (Manifest.load(tmp_path / name) for name in ("batched", "single"))
    assert one.fingerprint == two.fingerprint  # `source` differs, the data does not
    assert np.load(tmp_path / "single" / "images.npy").shape == IMAGES.shape


def test_supplied_splits_are_kept_by_the_writer(tmp_path: Path) -> None:
    with PackedWriter(tmp_path / "p", labels=[], seed=1, source={}, kind="images") as writer:
        for i in range(40):
            writer.add(IMAGES[i], label=-1, name="", split="test" if i < 10 else None)
        writer.finish()
    packed = PackedSet(tmp_path / "p")
    np.testing.assert_array_equal(packed.indices("test"), np.arange(10))
    assert len(packed.indices("val")) == 3


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"images": IMAGES * np.nan}, UserError),
        ({"images": IMAGES * 1e300}, UserError),  # finite, but not in float32
        ({"images": IMAGES[0]}, ValueError),
        ({"images": IMAGES * 2, "dtype": "float16"}, UserError),
        ({"images": IMAGES, "kind": "pairs"}, ValueError),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    tmp_path: Path, change: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        write(tmp_path / "p", **change)
    assert not list(tmp_path.iterdir())


def test_labels_and_shapes_are_checked(tmp_path: Path) -> None:
    with PackedWriter(tmp_path / "p", labels=["a"], seed=1, source={}) as writer:
        writer.add(IMAGES[0], label=0, name="0")
        with pytest.raises(ValueError, match="label"):
            writer.add(IMAGES[0], label=1, name="1")
        with pytest.raises(ValueError, match="a sample, not"):
            writer.add(IMAGES[0, :1], label=0, name="1")


def test_a_block_left_without_finish_leaves_nothing(tmp_path: Path) -> None:
    with PackedWriter(tmp_path / "p", labels=["a"], seed=1, source={}) as writer:
        writer.add(IMAGES[0], label=0, name="0")
    assert not list(tmp_path.iterdir())


def test_files_of_a_user_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("full", "file"):
        with pytest.raises(UserError, match="exists already"):
            write(tmp_path / name)
    write(tmp_path / "empty")
    write(tmp_path / "link")
    assert PackedSet(tmp_path / "elsewhere").manifest.count == 40
    assert (tmp_path / "full" / "thesis.tex").read_text() == "x"


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    with (
        PackedWriter(tmp_path / "p", labels=["a"], seed=1, source={}) as writer,
        pytest.raises(UserError, match="no sample"),
    ):
        writer.finish()


def damage(path: Path, what: str) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    if what == "missing":
        (path / "labels.npy").unlink()
    elif what == "short":
        with (path / "images.npy").open("r+b") as file:
            file.truncate(1000)
    elif what == "header":
        data = (path / "images.npy").read_bytes()
        (path / "images.npy").write_bytes(data.replace(b"(40, 2, 6, 6)", b"(20, 4, 6, 6)"))
    elif what == "dtype":
        data = (path / "images.npy").read_bytes()
        (path / "images.npy").write_bytes(data.replace(b"<f4", b"|O4"))
    elif what == "edited":
        manifest["labels"] = ["b", "a"]
        (path / "manifest.json").write_text(json.dumps(manifest))
    elif what == "traversal":
        manifest["files"]["../images.npy"] = manifest["files"]["images.npy"]
        (path / "manifest.json").write_text(json.dumps(manifest))
    elif what == "version":
        manifest["format"] = 99
        (path / "manifest.json").write_text(json.dumps(manifest))
    else:
        (path / "manifest.json").write_text("{")


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("missing", "labels.npy"),
        ("short", "images.npy has 1000 bytes"),
        ("header", "images.npy holds"),
        ("dtype", "images.npy cannot be opened"),
        ("edited", "fingerprint"),
        ("traversal", "not a valid manifest"),
        ("version", "format 99"),
        ("junk", "not a valid manifest"),
    ],
)
def test_damage_is_named_at_opening(tmp_path: Path, what: str, names: str) -> None:
    write(tmp_path / "p")
    damage(tmp_path / "p", what)
    with pytest.raises(UserError, match=names):
        PackedSet(tmp_path / "p")


def test_no_packed_set_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lensdist pack"):
        PackedSet(tmp_path)


# Mapped pages of a file do not count as data, so a limit below the set's size is a real test that
# neither opening nor gathering copies the set; resident, which does copy it, must fail under it.
_LIMITED = """
import resource, sys
import numpy as np
from lensdist.data.dataset import PackedSet
packed = PackedSet(sys.argv[1])
packed.gather(np.arange(64))  # starts torch's threads and allocators before the limit falls
used = 1024 * int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1])
resource.setrlimit(resource.RLIMIT_DATA, (used + packed.nbytes // 4,) * 2)
total = 0.0
for start in range(0, len(packed), 64):
    total += float(packed.gather(np.arange(start, min(start + 64, len(packed))))["image"].sum())
print(total)
try:
    packed.resident("cpu")
except (MemoryError, RuntimeError):
    print("resident does not fit")
"""


def test_a_set_larger_than_memory_is_read_through(tmp_path: Path) -> None:
    n, block = 4096, RNG.random((256, 1, 64, 64)).astype(np.float32)
    with PackedWriter(tmp_path / "big", labels=[], seed=0, source={}, kind="images") as writer:
        for start in range(0, n, 256):
            writer.add_batch(block + start, [-1] * 256, [""] * 256)
        writer.finish()
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(tmp_path / "big")],
        capture_output=True,
        text=True,
        check=True,
    )
    total, resident = done.stdout.splitlines()
    expected = sum(float((block + start).sum(dtype=np.float64)) for start in range(0, n, 256))
    assert float(total) == pytest.approx(expected, rel=1e-4)
    assert resident == "resident does not fit"
