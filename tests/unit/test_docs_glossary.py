"""docs/glossary.md: each term once, and each place exists."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.unit


def test_each_term_is_explained_once_and_lies_where_the_glossary_says() -> None:
    lines = (ROOT / "docs" / "glossary.md").read_text().splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| **")]
    assert len(rows) >= 30
    assert all(len(row) == 4 for row in rows)
    terms = [term for row in rows for term in re.findall(r"\*\*(.+?)\*\*", row[0])]
    assert sorted(terms, key=str.lower) == terms
    assert len(set(terms)) == len(terms)
    for _, _, places, _ in rows:
        paths = re.findall(r"`([^`]+)`", places)
        assert paths
        assert [path for path in paths if not (ROOT / path).exists()] == []
