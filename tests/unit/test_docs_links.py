"""Links and paths in the documents: whatever they name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lensdist.config.presets import presets
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

FAULTS = ROOT / "docs" / "faults.md"
HISTORY = ROOT / "docs" / "log.md"  # names files of earlier trees
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted({*(ROOT / "docs").glob("*.md")} - {HISTORY}),
]
FOLDERS = "lensdist|slurm|experiments|benchmarks|tests|configs|docs"
PATH = re.compile(rf"(?<![\w/.-])(?:{FOLDERS})/[\w*{{}},./-]*\w(?:/|\.\w+)?")
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
MODULE = re.compile(r"python -m ((?:lensdist|slurm|experiments|benchmarks|tests)[\w.]*)")
PRESET = re.compile(r"lensdist[. ](?:train|cli profile|profile|estimate) (\w+/[\w-]+)")


def _exists(path: str) -> bool:
    """Return whether a path exists; `{a,b}` and `*` are the shell's, and NAME is any name."""
    if found := re.fullmatch(r"(.*)\{(.*)\}(.*)", path):
        before, names, after = found.groups()
        return all(_exists(f"{before}{name}{after}") for name in names.split(","))
    return any(ROOT.glob(re.sub(r"\b[A-Z]{3,}\b", "*", path).rstrip("/")))


def test_what_looks_for_paths_finds_them() -> None:
    text = "`tests/gone.py`, docs/slurm.md, mae/best and configs/{mae,sr}/small.yaml; runs/docs/x."
    assert PATH.findall(text) == ["tests/gone.py", "docs/slurm.md", "configs/{mae,sr}/small.yaml"]
    assert not _exists("tests/gone.py")
    assert _exists("configs/{mae,sr}/small.yaml")
    assert not _exists("configs/{mae,gone}/small.yaml")
    assert _exists("benchmarks/NAME.py")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_and_path_exists(document: Path) -> None:
    text = document.read_text()
    missing = [path for path in PATH.findall(text) if not _exists(path)]
    missing += [
        link
        for link in LINK.findall(text)
        if "://" not in link and not (document.parent / link).exists()
    ]
    for module in MODULE.findall(text):
        path = module.replace(".", "/")
        if not (_exists(f"{path}.py") or _exists(path)):
            missing.append(module)
    assert not missing
    assert set(PRESET.findall(text)) <= set(presets())


def test_every_test_of_a_fault_exists() -> None:
    missing, found = [], 0
    for row in FAULTS.read_text().splitlines():
        file = ""
        for path, name in re.findall(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`", row):
            file = path or file  # `::name` is in the file before
            if name:
                found += 1
                if f"def {name}(" not in (ROOT / file).read_text():
                    missing.append(f"{file}::{name}")
    assert not missing
    assert found > 50
