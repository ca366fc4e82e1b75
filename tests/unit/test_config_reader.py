"""What YAML means here, and what is refused."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensdist.config import load
from lensdist.utils.errors import UserError
from lensdist.utils.yaml_reader import scalar
from tests.unit.config_samples import Activation, Config, Model, Optim, errors, said, write

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("in_tmp")]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-1.", -1.0),
        ("3.", 3.0),
        ("12", 12),
        ("+12", 12),
        ("007", 7),
        ("0o17", 15),
        ("0x1F", 31),
        (".inf", math.inf),
        ("-.Inf", -math.inf),
        (".NaN", math.nan),
        ("null", None),
        ("~", None),
        ("", None),
        ("true", True),
        ("FALSE", False),
        *(
            (w, w)
            for w in ("no", "yes", "on", "off", "No", "y", "nan", "inf", "1e", "e5", ".", "-")
        ),
        *((w, w) for w in ("12:30:45", "2024-01-01", "1_000", "0b1", "1.2.3", "=", "<<", "tRue")),
        ("١٢", "١٢"),  # Python's int() would read digits of any script
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    read = scalar(text)
    assert read == value or read != read  # NaN
    assert type(read) is type(value)


@pytest.mark.parametrize("text", ["1e999", "9" * 400, "9" * 5000])
def test_numbers_that_would_become_infinite_are_refused(text: str) -> None:
    assert said(f"crop.size={text}")[0].startswith(
        "crop.size (command line): too large for a number"
    )


def test_a_file_is_read() -> None:
    path = write(
        "---\nprecision: no\nseed: 3\ndata: /some/where\n"
        "model: {mask_ratio: 5e-1, activation: relu}\n"
        "optim:\n  kind: adam\n  lr: 1\n  betas: [0, 1e-1]\ncrops:\n- size: 3\n- {size: 4}\n"
        "named: {x: {size: 5}}\nphases: [{kind: sgd, nesterov: true}]\n"
    )
    config = load(path, schema=Config)
    assert config.precision == "no"
    assert config.data == Path("/some/where")
    assert config.model == Model(mask_ratio=0.5, activation=Activation.relu)
    assert config.optim == Optim(lr=1.0, betas=(0.0, 0.1))
    assert type(config.optim.lr) is float
    assert [crop.size for crop in config.crops] == [3, 4]
    assert config.named["x"].size == 5
    assert config.phases == [Optim(kind="sgd", nesterov=True)]


def test_byte_order_mark_and_windows_line_ends() -> None:
    path = write("\ufeffseed: 1\r\nmodel:\r\n  depth: 0\r\n")
    assert errors(path) == ["model.depth (a.yaml:3): must be greater than or equal to 1, got 0"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a.yaml: empty; must be a mapping of keys to values"),
        ("- 1\n", "a.yaml:1: must be a mapping of keys to values at the top"),
        ("word\n", "a.yaml:1: must be a mapping of keys to values at the top"),
        ("seed: 1\n---\nseed: 2\n", "a.yaml:2: a second document; one file holds one"),
        ("seed: 1\n...\n---\n", "a.yaml:3: a second document; one file holds one"),
        (b"seed: 1\nnote: \xff\n", "a.yaml:2: not UTF-8 text"),
        ("seed: 1".encode("utf-16"), "a.yaml:1: not UTF-8 text"),
        ("seed: 1\nnote: \x00\n", "a.yaml:2: not valid YAML: character U+0000 is not allowed"),
        ("seed: 1\nseed: 2\n", "seed (a.yaml:2): given twice, first on line 1"),
        (
            "model:\n  depth: 1\n\n  'depth': 1\n",
            "model.depth (a.yaml:4): given twice, first on line 2",
        ),
        ("note: !!python/name:os.system\n", "refused; values are plain YAML only"),
        ("note: !!str 3\n", "tag tag:yaml.org,2002:str refused"),
        ("model: !mine {depth: 1}\n", "model (a.yaml:1): tag !mine refused"),
        ("crops: [*a, {size: 1}]\n", "crops[0] (a.yaml:1): alias *a refused; write the value out"),
        ("note: &x 3\n", "note (a.yaml:1): anchor &x refused; write values out"),
        ("seed: 1\n3: x\n", "a.yaml:2: key 3 is not a string; put it in quotes"),
        ("model:\n  true: x\n", "model (a.yaml:2): key true is not a string"),
        ("? [a, b]\n: x\n", "a.yaml:1: key of this mapping is not a string"),
        ("scale: [1, 2\nseed: 2\n", "a.yaml:2: not valid YAML: while parsing a flow sequence"),
        ("seed: 1\n\tnote: x\n", "a.yaml:2: not valid YAML:"),
        ("note: '\nx", "a.yaml:2: not valid YAML: while scanning a quoted scalar"),
        ('note: "\\ud800"\n', "note (a.yaml:1): holds bytes that are not Unicode text"),
        ("note: " + "[" * 5000, "a.yaml:1: nested more than 50 deep"),
        ("note: " + "{" * 5000, "a.yaml:1: nested more than 50 deep"),
        ("- " * 5000, "a.yaml:1: nested more than 50 deep"),
        ("? " * 5000, "a.yaml:1: nested more than 50 deep"),
    ],
)
def test_refused_yaml(text: str | bytes, message: str) -> None:
    lines = errors(write(text))
    assert len(lines) == 1
    assert message in lines[0]


def test_size_is_limited() -> None:
    seed = "seed: 1\n#"
    assert load(write(seed + "x" * (2**20 - len(seed))), schema=Config).seed == 1
    assert errors(write(seed + "x" * (2**20 - len(seed) + 1))) == [
        "a.yaml: larger than 1,048,576 bytes"
    ]


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    write("seed: 1\n", "configs/debug.yaml")
    assert errors(Path("configs/debgu.yaml")) == [
        "configs/debgu.yaml: no such file; did you mean 'configs/debug.yaml'?"
    ]
    assert errors(Path("configs")) == ["configs: not a regular file"]
    os.mkfifo("pipe")
    assert errors(Path("pipe")) == ["pipe: not a regular file"]  # and does not wait for a writer


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40) | st.text("[]{}-?:,#&*!|>'\"%@ \n\tab1.e", max_size=40))
def test_no_text_does_worse_than_a_user_error(tmp_path_factory: Any, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for given_ in ((path, ()), (None, (text,)), (None, (f"note={text}",))):
        try:
            load(*given_, schema=Config)
        except UserError as error:
            assert str(error)  # noqa: PT017
