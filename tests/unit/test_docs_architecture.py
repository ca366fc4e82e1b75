"""The picture of the layers in docs/architecture.md, drawn again from the imports."""

from __future__ import annotations

import importlib.util

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.unit


def test_the_picture_is_what_the_imports_are() -> None:
    spec = importlib.util.spec_from_file_location("draw_layers", ROOT / "docs" / "draw_layers.py")
    assert spec is not None
    assert spec.loader is not None
    draw_layers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw_layers)
    text = draw_layers.DOCUMENT.read_text()
    assert draw_layers.replaced(text) == text, "run: python docs/draw_layers.py --write"
    assert text.count("-->") > 20
