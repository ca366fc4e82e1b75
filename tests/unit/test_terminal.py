"""What strangers wrote is shown on a terminal, never carried out."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from lensdist.metrics.report import lines, table, write_results
from lensdist.utils.files import printable
from lensdist.utils.streams import counter, tolerant

pytestmark = pytest.mark.unit

HOSTILE = "cdm\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp\x7f\udcff"


def test_every_control_character_becomes_visible() -> None:
    shown = printable(HOSTILE + "\r\n\tend")
    assert shown.isprintable()
    assert shown.startswith(r"cdm\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp\x7f\udcff\r\n\tend")
    assert printable("naïve λ=3 🔭") == "naïve λ=3 🔭"
    assert printable(shown) == shown


def test_what_commands_print_is_escaped_but_for_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with tolerant():
        print(f"{HOSTILE}\nsecond\tcolumn")
        print(HOSTILE, file=sys.stderr)
        sys.stdout.writelines([HOSTILE])
        sys.stderr.write("\r 5 of 9\x1b[K")
    print("\x1b[0m", end="")  # as before, outside
    found = capsys.readouterr()
    assert found.out.removesuffix("\x1b[0m").replace("\n", "").replace("\t", "").isprintable()
    assert found.out.count("\n") == 2
    assert found.err.endswith("\n\r 5 of 9\x1b[K")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_counter_counts_on_a_terminal_only(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    show = counter()
    for done in range(1, 1001):
        show("packed", done, 1000)
    lines = stream.getvalue().split("\r")[1:]
    assert lines[-1:] == (["packed 1,000 of 1,000\n"] if terminal else [])
    assert len(lines) < 100  # five a second at most


def test_labels_in_tables_are_text(tmp_path: Path) -> None:
    preset = "best\n| x |<script>alert(1)</script>[go](javascript:1)`*a*` _b_ small_reference"
    made = table([{"preset": preset, "accuracy": 0.9, "accuracy_ci": [0.89, 0.91]}])
    assert len(made.splitlines()) == 3
    assert "<script>" not in made
    assert r"\](javascript" in made
    assert r"best \| x \|&lt;script&gt;" in made
    assert r"\`\*a\*\` \_b\_ small_reference" in made
    assert "0.900 [0.890, 0.910]" in made
    (shown,) = lines({"labels": ["a\nb\x1b"], "auc_per_class": [0.5]})
    assert shown.startswith(r"auc a\nb\x1b")
    page = write_results(tmp_path, [], "t", figures=[tmp_path / "a (b) <c>" / "roc.png"])
    assert "](a%20%28b%29%20%3Cc%3E/roc.png)" in page.read_text()


def test_a_dollar_in_a_label_is_not_a_formula(tmp_path: Path) -> None:
    from lensdist.metrics.figures import confusion

    labels = (r"$\frac{$", "a$b$", "c")
    counts = [[3, 0, 1], [0, 4, 0], [1, 1, 2]]
    assert confusion(tmp_path / "c.png", counts, labels).stat().st_size > 1000
