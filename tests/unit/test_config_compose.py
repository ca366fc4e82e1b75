"""Files that build on files, and the command line over all."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from lensdist.config import load
from tests.unit.config_samples import Config, Crop, Model, Optim, errors, places, said, write

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("in_tmp")]


def test_defaults_are_merged_in_order_and_the_file_wins() -> None:
    write("seed: 1\nnote: one\nmodel: {depth: 1, name: one}\nchannels: [1, 2, 3]\n", "one.yaml")
    write("defaults: sub/deep.yaml\nnote: two\nmodel: {depth: 2}\n", "base/two.yaml")
    write("defaults: [../../one.yaml]\nresume: true\ncrop: {size: 3}\n", "base/sub/deep.yaml")
    path = write(
        "model: {mask_ratio: .5}\ndefaults:\n- one.yaml\n- base/two.yaml\nchannels: [4, 5]\n"
        "crop: null\n"
    )
    config = load(path, schema=Config)
    assert config.note == "two"  # two.yaml is over deep.yaml, which is over one.yaml
    assert config.crop is None
    assert config.channels == [4, 5]
    assert config.model == Model(depth=2, name="one", mask_ratio=0.5)
    assert (config.seed, config.resume) == (1, True)


def test_a_mistake_in_a_base_names_the_base_and_one_that_is_overridden_is_none() -> None:
    base = write("\nmodel:\n  depth: 0\n", "configs/base.yaml")
    path = write("defaults: base.yaml\nseed: x\n", "configs/a.yaml")
    assert places(path) == ["seed (configs/a.yaml:2)", "model.depth (configs/base.yaml:3)"]
    assert load(path, ["seed=1", "model.depth=2"], schema=Config).model.depth == 2
    write("defaults: base.yaml\nmodel: {depth: 3}\n", "configs/a.yaml")
    assert load(path, schema=Config).model.depth == 3
    assert places(base) == ["model.depth (configs/base.yaml:3)"]


def test_unreadable_defaults() -> None:
    """Nothing is said of keys that a missing file may hold, such as `crop.size`."""
    write("seed: 1\n", "base.yaml")
    write("seed: [\n", "broken.yaml")
    path = write("crop: {margin: 1}\ndefaults:\n  - base.yml\n  - broken.yaml\n  - gone/x.yaml\n")
    assert "did you mean 'base.yaml'?" in errors(path)[0]
    assert places(path, ["oops"]) == [
        "defaults (a.yaml:3)", "defaults (a.yaml:5)", "broken.yaml:2", "command line"
    ]  # fmt: skip


def test_an_override_does_not_move_the_mapping_around_it() -> None:
    path = write("seed: 1\ncrop: {margin: 3}\n")
    assert places(path, ["crop.size=2"]) == ["crop (a.yaml:2)"]


@pytest.mark.parametrize("entry", ["3", "{a: b}", "[a.yaml, 3]", "[[a.yaml]]", "null", "''"])
def test_defaults_must_be_file_names(entry: str) -> None:
    write("seed: 1\n", "a.yaml")
    assert places(write(f"defaults: {entry}\n", "b.yaml")) == ["defaults (b.yaml:1)"]


def test_defaults_in_a_circle() -> None:
    write("seed: 1\ndefaults: sub/b.yaml\n")
    write("defaults: [../c.yaml]\n", "sub/b.yaml")
    write("defaults: [./sub/../a.yaml]\n", "c.yaml")
    (line,) = errors(Path("a.yaml"))
    assert line.startswith("defaults (c.yaml:1): ")
    assert line.endswith("a.yaml -> sub/b.yaml -> c.yaml -> a.yaml")


def test_bases_named_over_and_over_are_read_and_told_once() -> None:
    for level in range(40):  # 2^40 reads if every mention were followed
        write(f"defaults: [{level + 1}.yaml, {level + 1}.yaml]\n", f"{level}.yaml")
    write("seed: 7\nseed: 8\n", "40.yaml")
    started = time.perf_counter()
    assert places(Path("0.yaml")) == ["seed (40.yaml:2)"]
    assert time.perf_counter() - started < 20


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("a=1e-4", 1e-4),
        ("a=null", None),
        ("a=[1, no, 'x,y', 1e-3]", [1, "no", "x,y", 1e-3]),
        ("a={b: {c: 1}}", {"b": {"c": 1}}),
        ("a.b.c=1", {"b": {"c": 1}}),
        ("a.0.b=1", {"0": {"b": 1}}),
        ("a='3'", "3"),
        ('a=""', ""),
        ("a=x=y", "x=y"),
        ("a= 3 ", 3),
        ("a=trial #2", "trial #2"),  # YAML alone would cut it off as a comment
        ("a=#2", "#2"),
        ("a=key: value", "key: value"),
        ("a=- x", "- x"),
        ("a=/data/x:y", "/data/x:y"),
        ("a=%d|>@`", "%d|>@`"),
    ],
)
def test_overrides(override: str, value: object) -> None:
    class Any_(BaseModel):
        a: Any = 0

    read = load(None, ["a=1", override], schema=Any_).a
    assert read == value
    assert type(read) is type(value)


def test_overrides_beat_the_file_and_later_ones_earlier_ones() -> None:
    path = write("optim: {kind: adam, lr: 1}\ncrop: null\n")
    config = load(path, ["optim.lr=2", "crop.size=5", "optim.lr=3", "scale=[1]"], schema=Config)
    assert config.optim == Optim(lr=3)
    assert config.crop == Crop(size=5)
    assert config.scale == [1.0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "no '='"),
        ("=3", "no key before '='"),
        ("a..b=3", "an empty part in the key"),
        (".seed=3", "an empty part in the key"),
        ("defaults=x.yaml", "in a file only"),
        ("scale=[1,2", "not valid YAML: "),
        ("scale=[1] 2", "not valid YAML: "),
        ("channels.0=3", "give the whole list, as in channels=[1, 2]"),
        ("crops.0.size=3", "give the whole list, as in crops=[1, 2]"),
        ("channels[0]=3", "give the whole list, as in channels=[1, 2]"),
    ],
)
def test_malformed_overrides(override: str, message: str) -> None:
    path = write("channels: [1, 2]\ncrops: [{size: 1}]\n")
    (line,) = errors(path, [override])
    assert line.startswith(f"command line: {override!r}: ")
    assert message in line


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=", "no value given; write null or '' if meant"),  # seed=$UNSET
        ("note=!!python/name:os.system x", "tag tag:yaml.org,2002:python/name:os.system refused"),
        ("note=*x", "alias *x refused; write the value out"),
        ("note=&x 1", "anchor &x refused; write values out"),
        ("note=\udcff", "holds bytes that are not Unicode text"),
        ("model={depth: 1, depth: 2}", "given twice"),
        ("channels.0=3", "must be a list, got a mapping; a list is given whole, as in [1, 2]"),
    ],
)
def test_bad_values_of_overrides(override: str, message: str) -> None:
    (line,) = said(override)
    assert "(command line): " in line
    assert message in line
