"""Folders as people have them, and the refusal of those whose meaning is not clear."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lensdist.data.packing import layouts
from lensdist.utils.errors import UserError
from tests.unit import data_files


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def test_common_task_with_its_macosx_twin(tmp_path: Path) -> None:
    found = layouts.find(data_files.common(tmp_path, train=12, val=2))
    assert found.kind == "classify"
    assert found.labels == ["no", "sphere", "vort"]
    assert found.skipped == {"__MACOSX": 42}
    assert [e.split for e in found.entries].count("test") == 6
    assert [e.split for e in found.entries].count(None) == 36
    assert found.entries[10].name == "dataset/train/no/10.npy"  # numbers, not letters, sort
    assert found.entries[36].name == "dataset/val/no/0.npy"


def test_the_anchor_is_found_below_any_folders_above(tmp_path: Path) -> None:
    found = layouts.find(data_files.common(tmp_path / "train" / "no" / "HR"))
    assert found.labels == ["no", "sphere", "vort"]
    assert found.entries[0].name.endswith("dataset/train/no/0.npy")
    assert len(layouts.find(tmp_path).entries) == len(found.entries)


def test_model_ii_has_the_canonical_order_and_128_bit_names(tmp_path: Path) -> None:
    found = layouts.find(data_files.model_ii(tmp_path, n=3))
    assert found.labels == ["no_sub", "cdm", "axion"]
    assert [e.label for e in found.entries] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert {e.split for e in found.entries} == {None}


def test_pairs_by_number(tmp_path: Path) -> None:
    found = layouts.find(data_files.pairs(tmp_path))
    assert (found.kind, found.labels) == ("pairs", [])
    assert found.entries[10].files == ("Dataset/LR/sample10.npy", "Dataset/HR/sample10.npy")


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    found = layouts.find(touch(tmp_path, "10.npy", "9.fits", "8.npz", "readme.txt", ".hidden.npy"))
    assert found.kind == "images"
    assert [e.name for e in found.entries] == ["8.npz", "9.fits", "10.npy"]
    assert [e.label for e in found.entries] == [-1, -1, -1]
    assert found.skipped == {"other file type (.txt)": 1, "hidden": 1}
    assert found.skipped.lines()[1] == "passed over 1: other file type (.txt), e.g. readme.txt"


@pytest.mark.parametrize(
    ("names", "given", "labels", "members"),
    [
        # A class is the parent folder, and no match elsewhere in the path.
        (["no_sub_vs/cdm/axion_1.npy", "no_sub_vs/axion/cdm_1.npy"], None, ["cdm", "axion"],
         [(0, None), (1, None)]),
        (["b/1.npy", "a10/1.npy", "a9/1.npy"], None, ["a9", "a10", "b"],
         [(0, None), (1, None), (2, None)]),
        (["b/1.npy", "a9/1.npy"], ["b", "a9"], ["b", "a9"], [(0, None), (1, None)]),
        (["no_sub/1.npy", "no_sub/2.npy"], None, ["no_sub"], [(0, None), (0, None)]),
        (["train/1.npy", "train/2.npy", "test/1.npy"], None, [],
         [(-1, None), (-1, None), (-1, "test")]),
        (["train/a/1.npy", "valid/a/1.npy", "test/a/1.npy"], None, ["a"],
         [(0, "train"), (0, "val"), (0, "test")]),
        (["no/1.npy", "vort/1.npy", "sphere/.keep"], ["no", "vort"], ["no", "vort"],
         [(0, None), (1, None)]),
    ],
)  # fmt: skip
def test_folders_give_classes_and_splits(
    tmp_path: Path, names: list[str], given: Any, labels: list[str], members: list[Any]
) -> None:
    found = layouts.find(touch(tmp_path, *names), labels=given)
    assert found.labels == labels
    assert [(e.label, e.split) for e in found.entries] == members
    if not given:
        assert layouts.find(tmp_path, layout="images").kind == "images"


@pytest.mark.parametrize(
    ("names", "labels", "why"),
    [
        (["readme.txt"], None, "no image files"),
        (["manifest.json", "images.npy"], None, "packed set already"),
        (["train/a/1.npy", "training/a/1.npy", "val/a/1.npy"], None, "one split: train"),
        (["b/1.npy", "a/1.npy"], ["b"], "'a', which --labels"),
        (["b/1.npy", "a/1.npy"], ["a", "b", "c"], "class 'c'"),
        (["1.npy"], ["a"], "--labels"),
        (["train/no/1.npy", "train/vort/1.npy", "val/no/1.npy"], None, "val split .* 'vort'"),
        (["train/1.npy", "val/no/1.npy"], None, "train split .* 'no'"),
        (["no/1.npy", "vort/1.npy", "sphere/.keep"], None, "sphere holds no images"),
        (["no/train/1.npy", "no/val/1.npy", "vort/train/1.npy"], None, "val split .* 'vort'"),
        (
            ["train/no/1.npy", "val/no/1.npy", "extra/no/1.npy"],
            None,
            "extra/no/1.npy is in none.*--splits",
        ),
        (["a\n/1.npy", "b/1.npy"], None, r"'a\\n'"),
        (["HR/s7.npy", "LR/s7.npy", "LR/s8.npy"], None, r"LR/s8\.npy"),
        (["HR/s7.npy", "LR/s7.npy", "LR/s07.npy"], None, r"s0?7\.npy and .*s0?7\.npy"),
        (["HR/s7.npy", "LR/s7.npy", "LR/s.npy"], None, r"no partner.*LR/s\.npy"),
    ],
)
def test_folders_without_a_meaning_are_refused(
    tmp_path: Path, names: list[str], labels: Any, why: str
) -> None:
    with pytest.raises(UserError, match=why):
        layouts.find(touch(tmp_path, *names), labels=labels)


def test_thousands_of_folders_are_not_taken_for_classes(tmp_path: Path) -> None:
    touch(tmp_path, *(f"system{i}/1.npy" for i in range(1001)))
    with pytest.raises(UserError, match="1,001"):
        layouts.find(tmp_path)
    assert len(layouts.find(tmp_path, layout="images").entries) == 1001


def test_images_outside_class_folders_are_strays(tmp_path: Path) -> None:
    touch(tmp_path, "train/no/1.npy", "val/no/1.npy", "train/stray.npy", "stray.npy")
    refused = layouts.find(tmp_path).refused
    assert sorted(file for file, _ in refused) == ["stray.npy", "train/stray.npy"]


def test_symbolic_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "real", "cdm/1.npy")
    touch(tmp_path / "set", "axion/1.npy")
    (tmp_path / "set/cdm").symlink_to(tmp_path / "real/cdm")
    (tmp_path / "set/axion/up").symlink_to(tmp_path / "set")
    found = layouts.find(tmp_path / "set")
    assert [e.name for e in found.entries] == ["cdm/1.npy", "axion/1.npy"]
    assert found.skipped == {"folder linked twice": 1}


def test_a_folder_that_cannot_be_listed_stops_the_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "no/1.npy", "vort/1.npy")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("vort"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything, so modes do not test
    with pytest.raises(UserError, match="vort: Permission denied"):
        layouts.find(tmp_path)


def test_empty_folders_are_counted_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "no/1.npy", "vort/1.npy", "no/deep/note.txt")
    found = layouts.find(tmp_path)
    assert found.skipped == {"other file type (.txt)": 1, "folder without images": 1}
    assert found.skipped.examples["folder without images"] == ["no/deep"]


def test_a_set_of_many_kinds_of_other_files_is_told_in_few_lines(tmp_path: Path) -> None:
    touch(tmp_path, "1.npy", *(f"a.x{i}" for i in range(100)), "b\x1b\n.y")
    found = layouts.find(tmp_path)
    assert sum(found.skipped.values()) == 101
    assert len(found.skipped) < 25
    assert all(line.isprintable() for line in found.skipped.lines())
