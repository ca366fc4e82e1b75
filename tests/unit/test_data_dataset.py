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
from lensdist.data.packing.writer import PackedWriter, Sample
from lensdist.utils.errors import UserError
from tests.unit.data_files import add_all

RNG = np.random.default_rng(0)
IMAGES = RNG.random((40, 2, 6, 6))
LABELS = np.arange(40) % 2


def write(dest: Path, images: Any = IMAGES, kind: Any = "classify", **more: Any) -> Manifest:
    """Write 40 samples; `more` are fields of `Sample`, and arguments of the writer."""
    given = {key: more.pop(key) for key in ("dtype", "source") if key in more}
    names = ["a", "b"] if kind == "classify" else []
    settings = {"labels": names, "seed": 1, "source": {"test": True}, "kind": kind, **given}
    with PackedWriter(dest, **settings) as writer:
        add_all(writer, images, LABELS[: len(images)] if names else None, **more)
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


def test_statistics_are_those_of_good_pixels_of_the_train_split(tmp_path: Path) -> None:
    bad = np.zeros(IMAGES.shape, bool)
    bad[:, 0, :3] = True
    about = write(tmp_path / "p", np.where(bad, np.nan, IMAGES), badpix=bad).statistics
    rows = PackedSet(tmp_path / "p").indices("train")
    train = IMAGES[rows].astype(np.float32).astype(np.float64)
    for key in ("min", "max", "mean", "std"):
        expected = [getattr(train[:, 0, 3:], key)(), getattr(train[:, 1], key)()]
        np.testing.assert_allclose(getattr(about, key), expected, rtol=1e-12)


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


def test_the_fingerprint_names_the_data_and_not_its_source(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two", source={"of": "another"})
    assert one.fingerprint == two.fingerprint == Manifest.load(tmp_path / "one").fingerprint
    # Sets that were packed before must keep their name.
    assert one.fingerprint.startswith("b838688065c2a66c")
    assert write(tmp_path / "other", IMAGES + 1).fingerprint != one.fingerprint
    for name in ("images.npy", "labels.npy", "split.npy", "files.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert np.load(tmp_path / "one" / "images.npy").shape == IMAGES.shape


def test_supplied_splits_are_kept_by_the_writer(tmp_path: Path) -> None:
    write(tmp_path / "p", kind="images", split=["test"] * 10 + [None] * 30)
    packed = PackedSet(tmp_path / "p")
    np.testing.assert_array_equal(packed.indices("test"), np.arange(10))
    assert len(packed.indices("val")) == 3


NEGATIVE = np.where(np.arange(40)[:, None, None, None] == 7, -1.0, IMAGES)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"images": IMAGES * np.nan}, UserError),
        ({"images": IMAGES * 1e300}, UserError),  # finite, but not in float32
        ({"images": IMAGES[0]}, ValueError),
        ({"images": IMAGES * 2, "dtype": "float16"}, UserError),
        ({"kind": "pairs"}, ValueError),
        ({"target": IMAGES}, ValueError),
        ({"kind": "pairs", "target": IMAGES, "truth": IMAGES[:, :1]}, ValueError),
        ({"kind": "pairs", "target": IMAGES, "truth": [*IMAGES[:39], None]}, ValueError),
        ({"kind": "pairs", "target": IMAGES * np.inf}, UserError),
        ({"weight": NEGATIVE}, UserError),
        ({"weight": IMAGES * 1e300}, UserError),
        ({"images": [*IMAGES[:39], IMAGES[0, :1]]}, ValueError),
        ({"images": []}, UserError),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    tmp_path: Path, change: dict[str, Any], error: type[Exception]
) -> None:
    images = change.pop("images", IMAGES)
    with pytest.raises(error):
        write(tmp_path / "p", images, **change)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("label", [-2, 1])
def test_labels_are_checked_and_a_block_left_without_finish_leaves_nothing(
    tmp_path: Path, label: int
) -> None:
    with PackedWriter(tmp_path / "p", labels=["a"], seed=1, source={}) as writer:
        writer.add(Sample(IMAGES[0], 0, "0"))
        with pytest.raises(ValueError, match="label"):
            writer.add(Sample(IMAGES[0], label, "1"))
    assert not list(tmp_path.iterdir())


def test_files_of_a_user_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("full", "file"):
        with pytest.raises(UserError, match=name):
            write(tmp_path / name)
    write(tmp_path / "empty")
    write(tmp_path / "link")
    assert PackedSet(tmp_path / "elsewhere").manifest.count == 40
    assert (tmp_path / "full" / "thesis.tex").read_text() == "x"


def replaced(path: Path, old: bytes, new: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(old, new))


def edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


DAMAGE = {
    "labels.npy": lambda path: path.unlink(),
    "images.npy has 1000 bytes": lambda path: path.write_bytes(path.read_bytes()[:1000]),
    "images.npy holds": lambda path: replaced(path, b"(40, 2, 6, 6)", b"(20, 4, 6, 6)"),
    "images.npy cannot": lambda path: replaced(path, b"<f4", b"|O4"),
    "manifest.json.*fingerprint": lambda path: edited(path, labels=["b", "a"]),
    "manifest.json.*files": lambda path: replaced(path, b"images.npy", b"../images.npy"),
    "manifest.json.*format 99": lambda path: edited(path, format=99),
    "manifest.json": lambda path: path.write_text("{"),
}


@pytest.mark.parametrize("told", DAMAGE)
def test_damage_is_named_at_opening(tmp_path: Path, told: str) -> None:
    write(tmp_path / "p")
    name = "manifest.json" if "json" in told else told.split()[0]
    DAMAGE[told](tmp_path / "p" / name)
    with pytest.raises(UserError, match=told):
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
            add_all(writer, block + start)
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
