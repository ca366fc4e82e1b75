"""Files that build on files, and the command line over all."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from lensdist.config import load
from tests.unit.config_samples import Config, Crop, Model, Optim, errors, said, write

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # so that messages show short names


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


def test_a_mistake_in_a_base_names_the_base() -> None:
    write("\nmodel:\n  depth: 0\n  mask_ration: 1\n", "configs/base.yaml")
    path = write("defaults: base.yaml\nseed: x\n", "configs/a.yaml")
    assert errors(path) == [
        "seed (configs/a.yaml:2): must be a whole number, got 'x'",
        "model.depth (configs/base.yaml:3): must be greater than or equal to 1, got 0",
        "model.mask_ration (configs/base.yaml:4): unknown key; did you mean 'mask_ratio'?",
    ]


def test_an_overridden_mistake_is_none() -> None:
    write("model: {depth: 0}\n", "base.yaml")
    path = write("defaults: base.yaml\nmodel: {depth: 2}\n")
    assert load(path, schema=Config).model.depth == 2
    assert load(Path("base.yaml"), ["model.depth=3"], schema=Config).model.depth == 3


def test_unreadable_defaults() -> None:
    write("seed: 1\n", "base.yaml")
    write("seed: [\n", "broken.yaml")
    path = write("seed: 1\ndefaults:\n  - base.yml\n  - broken.yaml\n  - gone/x.yaml\n")
    assert errors(path) == [
        "defaults (a.yaml:3): 'base.yml': no such file; did you mean 'base.yaml'?",
        "defaults (a.yaml:5): 'gone/x.yaml': no such file",
        "broken.yaml:2: not valid YAML: while parsing a flow node, expected the node content, "
        "but found '<stream end>'",
    ]


def test_without_a_base_nothing_is_said_of_keys_that_it_may_hold() -> None:
    path = write("defaults: gone.yaml\ncrop: {margin: 3}\n")
    assert errors(path, ["oops"]) == [
        "defaults (a.yaml:1): 'gone.yaml': no such file",
        "command line: 'oops': no '='; overrides are written key=value",
    ]


def test_an_override_does_not_move_the_mapping_around_it() -> None:
    path = write("seed: 1\ncrop: {margin: 3}\n")
    assert errors(path, ["crop.size=2"]) == [
        "crop (a.yaml:2): margin (3) must be smaller than size (2)"
    ]


@pytest.mark.parametrize("entry", ["3", "{a: b}", "[a.yaml, 3]", "[[a.yaml]]", "null", "''"])
def test_defaults_must_be_file_names(entry: str) -> None:
    write("seed: 1\n", "a.yaml")
    lines = errors(write(f"defaults: {entry}\n", "b.yaml"))
    assert lines == ["defaults (b.yaml:1): must be a file name or a list of file names"]


def test_defaults_in_a_circle() -> None:
    write("seed: 1\ndefaults: sub/b.yaml\n")
    write("defaults: [../c.yaml]\n", "sub/b.yaml")
    write("defaults: [./sub/../a.yaml]\n", "c.yaml")
    assert errors(Path("a.yaml")) == [
        "defaults (c.yaml:1): files build on each other in a circle: "
        "a.yaml -> sub/b.yaml -> c.yaml -> a.yaml"
    ]
    write("defaults: self.yaml\n", "self.yaml")
    assert errors(Path("self.yaml"))[0].endswith("self.yaml -> self.yaml")


def test_bases_named_over_and_over_cost_nothing() -> None:
    for level in range(40):  # 2^40 reads if every mention were followed
        write(f"defaults: [{level + 1}.yaml, {level + 1}.yaml]\n", f"{level}.yaml")
    write("seed: 7\n", "40.yaml")
    started = time.perf_counter()
    assert load(Path("0.yaml"), schema=Config).seed == 7
    assert time.perf_counter() - started < 5


def test_a_fault_shared_by_two_bases_is_told_once() -> None:
    write("seed: 1\nseed: 2\n", "root.yaml")
    write("defaults: root.yaml\n", "b.yaml")
    write("defaults: root.yaml\n", "c.yaml")
    assert errors(write("defaults: [b.yaml, c.yaml]\n")) == [
        "seed (root.yaml:2): given twice, first on line 1"
    ]


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("a=1e-4", 1e-4),
        ("a=null", None),
        ("a=[1, no, 'x,y', 1e-3]", [1, "no", "x,y", 1e-3]),
        ("a={b: {c: 1}}", {"b": {"c": 1}}),
        ("a.b.c=1", {"b": {"c": 1}}),
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
        ("seed", "'seed': no '='; overrides are written key=value"),
        ("=3", "'=3': no key before '='"),
        ("a..b=3", "'a..b=3': an empty part in the key"),
        (".seed=3", "'.seed=3': an empty part in the key"),
        ("defaults=x.yaml", "'defaults=x.yaml': defaults can be set in a file only"),
        ("scale=[1,2", "'scale=[1,2': not valid YAML: "),
        ("scale=[1] 2", "'scale=[1] 2': not valid YAML: "),
        (
            "channels.0=3",
            "of a list cannot be set one by one; give the whole list, as in channels=",
        ),
        ("crops.0.size=3", "cannot be set one by one; give the whole list, as in crops=[1, 2]"),
        ("channels[0]=3", "cannot be set one by one; give the whole list, as in channels=[1, 2]"),
    ],
)
def test_malformed_overrides(override: str, message: str) -> None:
    path = write("channels: [1, 2]\ncrops: [{size: 1}]\n")
    (line,) = errors(path, [override])
    assert line.startswith("command line: ")
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


def test_keys_that_look_like_indices_are_fine_in_a_mapping() -> None:
    assert load(None, ["named.0.size=3"], schema=Config).named == {"0": Crop(size=3)}
