"""Which files a command line means, and what it is told when it means none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lensdist.data.reading.folders import Passed
from lensdist.inference.inputs import find
from lensdist.utils.errors import UserError

pytestmark = pytest.mark.unit


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*names: str) -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def found(*words: str, dest: str = "out") -> list[str]:
    return [str(one.path) for one in find(words, Path(dest))]


def test_a_folder_is_searched_in_natural_order_and_hidden_names_are_passed_over(here: Path) -> None:
    make("d/lens10.npy", "d/lens9.NPY", "d/2/a.fits", "d/10/a.fit", "d/2/b.npz", "d/2/c.fts")
    make("d/.hidden.npy", "d/.git/a.npy", "d/__MACOSX/a.npy", "d/2/__MACOSX/._a.npy", "d/note.txt")
    expected = ["d/2/a.fits", "d/2/b.npz", "d/2/c.fts", "d/10/a.fit", "d/lens9.NPY", "d/lens10.npy"]
    assert found("d") == expected
    assert found("d/") == expected
    assert [str(one.name) for one in find(["d"], Path("out"))][:1] == ["2/a.fits"]


PATTERNS = {
    "d/*.npy": ["d/1.npy", "d/10.npy"],
    "d/?.npy": ["d/1.npy"],
    "d/[01]*.npy": ["d/1.npy", "d/10.npy"],
    "d/**/*.npy": ["d/1.npy", "d/10.npy", "d/e/f/2.npy"],
    "d/**": ["d/1.npy", "d/10.npy", "d/e/a.fits", "d/e/f/2.npy"],
    "**/f/*": ["d/e/f/2.npy"],
    "*/e": ["d/e/a.fits", "d/e/f/2.npy"],  # a folder that matches is searched
    "d/e/../*.npy": ["d/e/../1.npy", "d/e/../10.npy"],
    "d/*/../e/a.fits": ["d/e/../e/a.fits"],
}


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_that_the_shell_did_not_expand(here: Path, pattern: str, absolute: bool) -> None:
    make("d/1.npy", "d/10.npy", "d/e/a.fits", "d/e/f/2.npy", "d/e/x.txt", "d/.h/3.npy")
    start = f"{here}/" if absolute else ""
    assert found(start + pattern) == [start + name for name in PATTERNS[pattern]]
    # Names lead to results: none may climb out of the results' folder.
    assert all(".." not in one.name.parts for one in find([start + pattern], Path("out")))


def test_names_are_below_the_input_or_the_fixed_part_of_a_pattern(here: Path) -> None:
    make("d/e/1.npy", "2.npy")
    names = [
        find([word], Path("out"))[0].name for word in ("d", "d/e", "d/*/1.npy", "d/**", "2.npy")
    ]
    assert [str(name) for name in names] == ["e/1.npy", "1.npy", "e/1.npy", "e/1.npy", "2.npy"]


def test_a_file_is_taken_once_however_it_is_named(here: Path) -> None:
    make("d/1.npy", "d/2.npy")
    (here / "same").symlink_to("d")
    words = ("d/2.npy", "d", "./d/1.npy", str(here / "d"), "same", "d/*.npy", "d/../d/2.npy")
    assert found(*words) == ["d/2.npy", "d/1.npy"]


def test_links_to_one_file_are_files_of_their_own(here: Path) -> None:
    make("store/object.npy")
    Path("d").mkdir()
    for name in ("a", "b"):  # as git-annex keeps equal files
        Path(f"d/{name}.npy").symlink_to("../store/object.npy")
    assert found("d") == ["d/a.npy", "d/b.npy"]


@pytest.mark.timeout(120)
def test_folders_linked_in_circles_are_searched_once(here: Path) -> None:
    make("d/e/1.npy")
    for name in ("x", "y", "z"):  # enough for `glob` never to come back
        Path(f"d/e/{name}").symlink_to("..")
    Path("d/e/self.npy").symlink_to("self.npy")  # named later, as a file that cannot be read
    assert found("d") == ["d/e/1.npy", "d/e/self.npy"]
    assert found("d/**/*.npy") == ["d/e/1.npy", "d/e/self.npy"]


def test_a_name_with_wildcards_that_exists_is_that_file(here: Path) -> None:
    make("a[1].npy", "a1.npy")
    assert found("a[1].npy") == ["a[1].npy"]


def test_earlier_results_below_the_input_are_no_input(here: Path) -> None:
    make("d/1.npy", "d/out/1.npy", "d/out/deep/1.npy")
    for word in ("d", "d/*", "d/**", "d/**/*.npy", "."):
        assert [Path(name) for name in found(word, dest="d/out")] == [Path("d/1.npy")]
    assert found("d/out", dest="d/out") == ["d/out/1.npy", "d/out/deep/1.npy"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nothing.npy"], "nothing.npy does not exist"),
        (["d/1.npy", "nothing"], "nothing does not exist"),
        ([""], "'' does not exist"),
        (["d/*.fits"], r"d/\*.fits matches nothing"),
        (["d/1.npy/*"], "matches nothing"),
        (["nowhere/**"], "cannot list nowhere"),
        (["d/*.txt"], "holds no image files"),
        (["empty"], "empty holds no image files: they end in .npy"),
        (["d/x.txt"], "d/x.txt is not an image file"),
        (["packed"], "packed is a packed set already: train on it"),
        (["."], "packed is a packed set"),
        (["**/*.npy"], "packed is a packed set"),
        (["bad\x1bc"], r"bad\\x1bc does not exist"),
    ],
)
def test_what_means_no_file_is_refused(here: Path, words: list[str], sentence: str) -> None:
    make("d/1.npy", "d/x.txt", "packed/manifest.json", "packed/image.npy", "empty/.keep")
    with pytest.raises(UserError, match=sentence):
        find(words, Path("out"))


def test_compressed_names_are_images_and_other_names_of_a_pattern_are_kept_to_be_refused(
    here: Path,
) -> None:
    make(
        "d/1.fits", "d/2.fits.gz", "d/3.FITS.FZ", "d/4.NPY", "d/5.fit.bz2", "d/6.npy.gz", "d/x.png"
    )
    images = ["d/1.fits", "d/2.fits.gz", "d/3.FITS.FZ", "d/4.NPY", "d/5.fit.bz2", "d/6.npy.gz"]
    assert found("d/*.fits*") == images[:2]
    assert found("d/*") == [*images, "d/x.png"]
    passed = Passed()
    assert [str(one.path) for one in find(["d"], Path("out"), passed)] == images
    assert passed == {"other file type (.png)": 1}


def test_a_folder_that_cannot_be_listed_is_refused(here: Path, monkeypatch: Any) -> None:
    make("d/1.npy", "d/e/2.npy")
    scandir = os.scandir

    def closed(path: Path) -> Any:  # root may list anything, and tests may be run by root
        if Path(path).name == "e":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UserError, match="cannot list d/e: Permission denied"):
        find(["d"], Path("out"))
