"""Strictness, the choice of a schema, and configurations written and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, computed_field

from lensdist.config import dump, load, save
from lensdist.utils import files
from lensdist.utils.errors import UserError
from tests.unit.config_samples import (
    Activation,
    Config,
    Crop,
    Optim,
    Tree,
    errors,
    write,
)

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("in_tmp")]


def test_strictness_does_not_depend_on_the_model() -> None:
    class Lax(BaseModel):
        model_config = ConfigDict(extra="allow", strict=False)
        x: int = Field(0, strict=False)

    class Outer(BaseModel):
        lax: Lax = Lax()

    assert errors(None, ["lax.x='1'", "lax.y=1"], schema=Outer) == [
        "lax.x (command line): must be a whole number, got '1'",
        "lax.y (command line): unknown key; known here: x",
    ]


def test_a_function_may_choose_the_schema() -> None:
    seen = {}

    def choose(raw: dict[str, Any]) -> type[Config]:
        seen.update(raw)
        raw.clear()  # its own copy
        if seen["task"] not in ("mae", "sr"):
            raise UserError(f"task: no task is called {seen['task']!r}")
        return Config

    write("seed: 1\nmodel: {depth: 2}\n", "base.yaml")
    path = write("defaults: base.yaml\ntask: sr\n")
    assert load(path, ["model.depth=3"], schema=choose).model.depth == 3
    assert seen == {"task": "sr", "seed": 1, "model": {"depth": 3}}
    assert errors(path, ["model.depth=0"], schema=choose)[0].startswith("model.depth (command li")
    write("task: sx\n")
    assert errors(path, ["oops"], schema=choose) == [
        "task (a.yaml:1): no task is called 'sx'",
        "command line: 'oops': no '='; overrides are written key=value",
    ]

    def fail(raw: dict[str, Any]) -> type[Config]:
        raise UserError("no task given")

    assert errors(path, schema=fail) == ["a.yaml: no task given"]


class Everything(BaseModel):
    none: int | None = None
    whole: int = 0
    number: float = 0.0
    flag: bool = False
    text: str = ""
    path: Path = Path("x")
    choice: Activation = Activation.gelu
    pair: tuple[float, str] = (0.0, "")
    texts: list[str] = []
    nested: list[list[float]] = []
    mapping: dict[str, list[str]] = {}
    loose: dict[str, int | float | bool | str | None] = {}
    union: int | Literal["auto"] = "auto"
    optim: Optim = Optim()
    crop: Crop | None = None
    tree: Tree | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        return 2 * self.whole


unicode = st.text(st.characters(exclude_categories=["Cs"]))
odd = """no yes on off y n null ~ true 1e-4 1E5 .5 1. 0o7 0x1 007 08 1_000 12:30 2024-01-01 = << - ?
: [] {} # & * ! | > ' " % @ ` .inf .nan --- ... nan -1 +1 1e 0b1 !!str"""
words = st.sampled_from(odd.split())
texts = unicode | words | words.map(" {}".format) | words.map("{0}\n {0}: {0} #{0}".format)
numbers = st.floats(allow_nan=False)
everything = st.builds(
    Everything,
    none=st.none() | st.integers(),
    whole=st.integers(-(10**300), 10**300),
    number=numbers,
    flag=st.booleans(),
    text=texts,
    path=texts.filter(lambda t: "\0" not in t).map(Path),
    choice=st.sampled_from(Activation),
    pair=st.tuples(numbers, texts),
    texts=st.lists(texts),
    nested=st.lists(st.lists(numbers)),
    mapping=st.dictionaries(texts, st.lists(texts)),
    loose=st.dictionaries(texts, st.integers() | numbers | st.booleans() | texts | st.none()),
    union=st.integers() | st.just("auto"),
    optim=st.builds(Optim, kind=st.sampled_from(("sgd", "adam")), nesterov=st.booleans()),
    crop=st.none() | st.builds(Crop, size=st.integers(5), margin=st.integers(0, 4)),
    tree=st.none() | st.builds(Tree, name=texts, child=st.builds(Tree, name=texts)),
)


@settings(max_examples=100, deadline=None)
@given(everything)
def test_what_is_dumped_is_read_back(tmp_path_factory: Any, config: Everything) -> None:
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump(config), encoding="utf-8", newline="")
    read = load(path, schema=Everything)
    assert read == config
    assert repr(read) == repr(config)  # 1 == 1.0 == True, and they are not the same


def test_dump_is_made_for_people() -> None:
    text = dump(Config(data=Path("/d"), precision="no", scale=[1e-4, 1e20], crops=[Crop(size=3)]))
    assert "precision: 'no'\n" in text  # quoted, for readers of YAML 1.1
    assert "data: /d\n" in text
    assert "scale: [0.0001, 1.0e+20]\n" in text
    assert "crops:\n- size: 3\n  margin: 0\n" in text
    assert list(yaml.safe_load(text)) == list(Config.model_fields)
    assert yaml.safe_load(text)["scale"] == [1e-4, 1e20]  # other tools read the same


def test_save_is_replayed(tmp_path: Path) -> None:
    write("optim: {kind: adam, lr: 1e-4}\n", "base.yaml")
    config = load(write("defaults: base.yaml\nseed: 4\n"), ["crop.size=3"], schema=Config)
    run = tmp_path / "run"
    run.mkdir()
    save(config, run / "config.yaml")
    assert load(run / "config.yaml", schema=Config) == config
    save(Config(), run / "config.yaml")
    assert load(run / "config.yaml", schema=Config) == Config()
    assert [path.name for path in run.iterdir()] == ["config.yaml"]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "config.yaml"
    save(Config(seed=1), path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(Config(seed=2), path)
    assert load(path, schema=Config).seed == 1
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]
