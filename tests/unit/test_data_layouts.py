"""Folders as people have them, and the sentence for those whose meaning cannot be told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lensdist.data.packing import layouts
from lensdist.errors import UserError
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
    assert not found.split


def test_a_class_is_the_parent_folder_and_no_match_elsewhere(tmp_path: Path) -> None:
    touch(tmp_path, "no_sub_vs_axion/cdm/axion_1.npy", "no_sub_vs_axion/axion/cdm_1.npy")
    found = layouts.find(tmp_path)
    assert found.labels == ["cdm", "axion"]
    assert {e.name: e.label for e in found.entries} == {
        "no_sub_vs_axion/cdm/axion_1.npy": 0,
        "no_sub_vs_axion/axion/cdm_1.npy": 1,
    }


def test_other_classes_are_sorted_and_labels_override(tmp_path: Path) -> None:
    touch(tmp_path, "b/1.npy", "a10/1.npy", "a9/1.npy")
    assert layouts.find(tmp_path).labels == ["a9", "a10", "b"]
    assert layouts.find(tmp_path, labels=["b", "a10", "a9"]).labels == ["b", "a10", "a9"]
    with pytest.raises(UserError, match="'a9', which --labels leaves out"):
        layouts.find(tmp_path, labels=["b", "a10"])
    with pytest.raises(UserError, match="no images of class 'c'"):
        layouts.find(tmp_path, labels=["b", "a10", "a9", "c"])


def test_pairs_by_number(tmp_path: Path) -> None:
    found = layouts.find(data_files.pairs(tmp_path))
    assert found.kind == "pairs"
    assert found.entries[10].name == "Dataset/LR/sample10.npy"
    assert found.entries[10].target == "Dataset/HR/sample10.npy"
    assert found.labels == []


def test_a_missing_partner_is_named(tmp_path: Path) -> None:
    data_files.pairs(tmp_path)
    (tmp_path / "Dataset/HR/sample7.npy").unlink()
    with pytest.raises(UserError, match=r"Dataset/LR/sample7\.npy"):
        layouts.find(tmp_path)


def test_two_files_of_one_number_are_named(tmp_path: Path) -> None:
    data_files.pairs(tmp_path)
    touch(tmp_path, "Dataset/LR/sample07.npy")
    with pytest.raises(UserError, match="same number"):
        layouts.find(tmp_path)


def test_a_pair_without_a_number_is_named(tmp_path: Path) -> None:
    data_files.pairs(tmp_path)
    touch(tmp_path, "Dataset/LR/sample.npy")
    with pytest.raises(UserError, match="no number"):
        layouts.find(tmp_path)


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    found = layouts.find(touch(tmp_path, "10.npy", "9.fits", "8.npz", "readme.txt", ".hidden.npy"))
    assert found.kind == "images"
    assert [e.name for e in found.entries] == ["8.npz", "9.fits", "10.npy"]
    assert [e.label for e in found.entries] == [-1, -1, -1]
    assert found.skipped == {"other file type (.txt)": 1, "hidden": 1}
    assert found.skipped.lines()[1] == "passed over 1: other file type (.txt), e.g. readme.txt"


def test_flat_split_folders_are_unlabelled_and_split(tmp_path: Path) -> None:
    found = layouts.find(touch(tmp_path, "train/1.npy", "train/2.npy", "test/1.npy"))
    assert found.kind == "images"
    assert [e.split for e in found.entries] == [None, None, "test"]


def test_train_val_and_test_are_all_kept(tmp_path: Path) -> None:
    found = layouts.find(touch(tmp_path, "train/a/1.npy", "valid/a/1.npy", "test/a/1.npy"))
    assert [e.split for e in found.entries] == ["train", "val", "test"]


def test_one_class_folder_alone_is_a_class(tmp_path: Path) -> None:
    found = layouts.find(touch(tmp_path, "no_sub/1.npy", "no_sub/2.npy"))
    assert found.labels == ["no_sub"]
    assert layouts.find(tmp_path, layout="images").kind == "images"


def test_a_class_absent_from_one_split_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "train/no/1.npy", "train/vort/1.npy", "val/no/1.npy")
    with pytest.raises(UserError, match=r"test split .* class 'vort'"):
        layouts.find(tmp_path)


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "no/1.npy", "vort/1.npy")
    (tmp_path / "sphere").mkdir()
    with pytest.raises(UserError, match="sphere holds no images"):
        layouts.find(tmp_path)
    assert layouts.find(tmp_path, labels=["no", "vort"]).labels == ["no", "vort"]


def test_split_folders_below_classes_are_not_classes(tmp_path: Path) -> None:
    touch(tmp_path, "no/train/1.npy", "no/val/1.npy", "vort/train/1.npy", "vort/val/1.npy")
    with pytest.raises(UserError, match="above class folders"):
        layouts.find(tmp_path)


def test_images_beside_split_folders_are_strays_and_other_folders_errors(tmp_path: Path) -> None:
    touch(tmp_path, "train/no/1.npy", "val/no/1.npy", "train/stray.npy", "stray.npy")
    assert sorted(layouts.find(tmp_path).strays) == ["stray.npy", "train/stray.npy"]
    touch(tmp_path, "extra/no/1.npy")
    with pytest.raises(UserError, match="'extra'"):
        layouts.find(tmp_path)


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


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["readme.txt"], "no image files"),
        (["manifest.json", "images.npy"], "packed set already"),
        (["train/a/1.npy", "training/a/1.npy", "val/a/1.npy"], "two folders for one split"),
    ],
)
def test_folders_without_a_meaning(tmp_path: Path, names: list[str], why: str) -> None:
    with pytest.raises(UserError, match=why):
        layouts.find(touch(tmp_path, *names))


def test_thousands_of_folders_are_not_taken_for_classes(tmp_path: Path) -> None:
    touch(tmp_path, *(f"system{i}/1.npy" for i in range(1001)))
    with pytest.raises(UserError, match="images in 1,001 folders, which do not look like classes"):
        layouts.find(tmp_path)
    assert len(layouts.find(tmp_path, layout="images").entries) == 1001


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


def test_labels_go_with_classes_only(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--labels"):
        layouts.find(touch(tmp_path, "1.npy"), labels=["a"])
