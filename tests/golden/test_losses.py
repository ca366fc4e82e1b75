"""Every preset still learns what it learned: 20 steps of each against losses on file, to 1e-6."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.golden.losses import FILES, groups, in_child

pytestmark = pytest.mark.unit
AGAIN = "if the change is meant: python -m tests.golden.losses"


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files as they come out today."""
    dest = tmp_path_factory.mktemp("losses")
    done = in_child(dest)
    assert done.returncode == 0, done.stderr[-2000:]
    return dest


def test_every_preset_has_losses_on_file() -> None:
    on_file = {file.name: file.read_text().split("\n")[0] for file in FILES.glob("*.txt")}
    wanted = {
        f"{first.replace('/', '-')}.txt": f"# {' '.join(all_)}" for first, all_ in groups().items()
    }
    assert on_file == wanted, AGAIN


@pytest.mark.timeout(1500)  # the first of them trains all presets
@pytest.mark.parametrize("name", sorted(file.name for file in FILES.glob("*.txt")))
def test_losses_scores_and_weights_are_those_on_file(name: str, now: Path) -> None:
    before, after = ((folder / name).read_text().splitlines() for folder in (FILES, now))
    assert len(before) == len(after), AGAIN
    for old, new in zip(before, after, strict=True):
        assert all(map(_alike, old.split(), new.split())), f"{old}\nbecame\n{new}\n{AGAIN}"


def _alike(old: str, new: str) -> bool:
    try:
        return math.isclose(float(old), float(new), rel_tol=1e-6, abs_tol=1e-9)
    except ValueError:
        return old == new
