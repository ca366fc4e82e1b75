"""A finished run is believed only while it is what it was when it finished."""

from __future__ import annotations

from pathlib import Path

import pytest

from lensdist.phases import COMPLETE, check_finished, completed
from lensdist.utils.errors import UserError
from lensdist.utils.files import sha256, to_json, write_atomic

pytestmark = pytest.mark.unit


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").write_text('{"task": "mae"}')
    (tmp_path / "config.yaml").write_text("task: mae\n")
    files = {n: sha256(tmp_path / n) for n in ("export/config.json", "config.yaml")}
    write_atomic(tmp_path / COMPLETE, to_json({"steps": 9, "files": files}))
    return tmp_path


def test_a_finished_run_is_believed_and_an_unfinished_one_is_not(run: Path) -> None:
    record = completed(run)
    assert record is not None
    assert record["steps"] == 9
    assert completed(run / "export") is None
    assert completed(run / "absent") is None


def test_a_run_that_is_not_finished_lends_no_model(run: Path, tmp_path: Path) -> None:
    for path in (run, run / "export"):
        check_finished(path)
    check_finished(tmp_path / "nothing")
    (run / COMPLETE).unlink()
    for path in (run, run / "export"):
        with pytest.raises(UserError, match="is not finished; run its command again first"):
            check_finished(path)
    (tmp_path / "alone").mkdir()
    check_finished((run / "export").rename(tmp_path / "alone" / "export"))


@pytest.mark.parametrize("name", ["config.yaml", "export/config.json"])
def test_an_altered_or_missing_file_is_named(run: Path, name: str) -> None:
    (run / name).write_bytes((run / name).read_bytes() + b" ")
    with pytest.raises(UserError, match=f"{name} was altered"):
        completed(run)
    (run / name).unlink()
    with pytest.raises(UserError, match=f"marked complete but {name}"):
        completed(run)


@pytest.mark.parametrize("content", ["", "[]", "{}", "{", '{"files": 3}'])
def test_a_torn_record_is_an_error_not_an_unfinished_run(run: Path, content: str) -> None:
    (run / COMPLETE).write_text(content)
    with pytest.raises(UserError, match="cannot be read"):
        completed(run)
