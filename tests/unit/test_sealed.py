"""JSON and YAML from anywhere: within bounds, and each refusal is one sentence."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from lensdist.metrics.report import collect
from lensdist.phases import completed
from lensdist.runs.accelerate_settings import from_file
from lensdist.utils.errors import UserError
from lensdist.utils.sealed import parse_json, read_json, sealed, unsealed
from lensdist.utils.yaml_reader import read_plain

pytestmark = pytest.mark.unit

FACTS = {"labels": ["a", "ü"], "best": 0.1 + 0.2, "step": 3, "none": None}


def test_a_seal_is_of_what_is_said_not_of_its_layout() -> None:
    text = json.dumps(sealed(FACTS), indent=3, sort_keys=True)
    assert unsealed(parse_json(text)) == FACTS
    with pytest.raises(ValueError, match="altered"):
        unsealed({**sealed(FACTS), "step": 4})
    with pytest.raises(ValueError, match="altered"):
        unsealed(FACTS, required=True)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" * 51 + "]" * 51,
        '{"a": 1e400}',
        '{"a": -Infinity}',
        '{"a": NaN}',
        '{"a": ' + "9" * 5000 + "}",
        '{"a": ' + "9" * 400 + "}",
        '{"a": 1, "a": 2}',
        '{"a": "\\ud800"}',
        '{"\\udc00": 1}',
        "",
        "{",
    ],
)
def test_json_that_no_two_parsers_agree_on_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        parse_json(text.encode())


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with (tmp_path / "sparse").open("wb") as f:
        f.truncate(10 * 2**30)
    for name in ("pipe", "folder", "sparse"):
        with pytest.raises(ValueError, match=r"regular file|larger than"):
            read_json(tmp_path / name)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (LAUGHS, "anchor &a refused"),
        ("a: " + "[" * 10_000, "nested more than 50 deep"),
        ("a: " + "x" * 2**21, "larger than"),
        ("a: 1\na: 2\n", "given twice"),
        ("a: !!python/object/apply:os.system ['touch hacked']\n", "refused"),
        ("- 1\n", "must be a mapping"),
    ],
)
def test_yaml_of_strangers_is_bounded_everywhere(tmp_path: Path, text: str, sentence: str) -> None:
    run, begun = tmp_path / "run", time.monotonic()
    run.mkdir()
    (run / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=sentence) as refused:
        read_plain(run / "config.yaml")
    assert str(run / "config.yaml") in str(refused.value)
    assert "\n" not in str(refused.value)
    assert sentence in collect([run])[0]["problem"]
    with pytest.raises(UserError, match=sentence):
        from_file(run / "config.yaml")
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize(
    "record",
    [
        {"files": {"/etc/passwd": "0"}},
        {"files": {"../x": "0"}},
        {"files": {"a\0b": "0"}},
        {"files": {"config.yaml": 3}},
        {"files": ["config.yaml"]},
        {"files": {}, "steps": "9"},
        {"files": {}, "steps": True},
        {"files": {}, "config": []},
        {"files": {}, "data": {}},
        {"files": {}, "code": "x"},
    ],
)
def test_a_sealed_record_may_still_be_a_stranger_s(
    tmp_path: Path, record: dict[str, object]
) -> None:
    (tmp_path / "config.yaml").write_text("task: mae\n")
    (tmp_path / "COMPLETE.json").write_text(json.dumps(sealed(record)))
    with pytest.raises(UserError, match="cannot be read"):
        completed(tmp_path)


def test_a_pipe_that_a_record_names_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "COMPLETE.json").write_text(json.dumps(sealed({"files": {"pipe": "0"}})))
    with pytest.raises(UserError, match="Not a regular file"):
        completed(tmp_path)
