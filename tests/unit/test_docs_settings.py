"""docs/settings.md, made again."""

from __future__ import annotations

import pytest

from lensdist.config.settings import markdown
from lensdist.tasks.registry import built_in
from tests.conftest import ROOT

pytestmark = pytest.mark.unit


def test_the_page_of_settings_is_current() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    command = "lensdist settings --markdown > docs/settings.md"
    assert page == markdown(list(built_in())), f"run: {command}"
