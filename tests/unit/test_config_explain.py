"""Mistakes: each told once, in a sentence, with its place."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from tests.unit.config_samples import Tree, errors, places, said, write

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("in_tmp")]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.mask_ration=.5", "unknown key; did you mean 'mask_ratio'?"),
        ("model.Mask-Ratio=.5", "unknown key; did you mean 'mask_ratio'?"),
        ("lr=1e-3", "unknown key; did you mean 'optim.lr'?"),
        ("model.NAME=x", "unknown key; did you mean 'name'?"),
        ("mask_ratio=.5", "unknown key; did you mean 'model.mask_ratio'?"),
        ("optm=1", "unknown key; did you mean 'optim'?"),
        ("learning_rate=1e-3", "unknown key; did you mean 'optim.lr'?"),
        (
            "num_processes=2",
            "unknown key; a launcher sets it, as in `accelerate launch --num_processes 2 …`",
        ),
        ("model.zzz=1", "unknown key; known here: depth, mask_ratio, activation, name"),
        ("mask_ration=.5", "unknown key; did you mean 'model.mask_ratio'?"),
        ("seed='3'", "must be a whole number, got '3'"),
        ("seed=1.0", "must be a whole number, got 1.0"),
        ("seed=true", "must be a whole number, got true"),
        ("seed=null", "must be a whole number, got null"),
        ("resume=1", "must be true or false, got 1"),
        ("resume=yes", "must be true or false, got 'yes'"),
        ("note=3", "must be a string, got 3; put it in quotes"),
        ("note=[a]", "must be a string, got ['a']"),
        ("note=" + "n" * 101, "must be a short note"),
        ("data=3", "must be a string, got 3; put it in quotes"),
        ("precision=bf6", "must be 'no', 'fp16' or 'bf16', got 'bf6'; did you mean 'bf16'?"),
        ("precision=false", "must be 'no', 'fp16' or 'bf16', got false"),
        ("model.activation=gleu", "must be 'gelu' or 'relu', got 'gleu'; did you mean 'gelu'?"),
        ("model.mask_ratio=1", "must be less than 1, got 1"),
        ("model=3", "must be a mapping, got 3; its keys are set one by one, as in model.depth=…"),
        ("crop=[1]", "must be a mapping, got [1]; its keys are set one by one, as in crop.size=…"),
        ("named=x", "must be a mapping, got 'x'"),
        ("crops={a: 1}", "must be a list, got a mapping; a list is given whole, as in [1, 2]"),
        ("channels=[1]", "must have at least 2 items, got [1]"),
        ("warmup=1.5", "must be a whole number or 'auto', got 1.5"),
        ("warmup=aut", "must be a whole number or 'auto', got 'aut'; did you mean 'auto'?"),
        ("scale=x", "must be a number or a list, got 'x'"),
        ("crop={size: 1, margin: 2}", "margin (2) must be smaller than size (1)"),
        ("extent=x", "must be a list, got 'x'"),
        ("scale=[1, x]", "scale[1]|must be a number, got 'x'"),
        ("crop={}", "crop.size|required but missing"),
        ("crops=[{size: 1}, {}]", "crops[1].size|required but missing"),
        (
            "crops=[{sise: 1, size: 2}]",
            "crops[0].sise|unknown key; did you mean 'size'?",
        ),
        ("named.x={size: x}", "named.x.size|must be a whole number, got 'x'"),
        ("extent=[1]", "extent[1]|required but missing"),
        ("extent=[1, x]", "extent[1]|must be a whole number, got 'x'"),
        (
            "optim={kind: adm}",
            "optim.kind|must be 'sgd' or 'adam', got 'adm'; did you mean 'adam'?",
        ),
        ("optim={nesterov: 1}", "optim.nesterov|must be true or false or 'auto', got 1"),
        ("phases=[{}, {betas: [1, x]}]", "phases[1].betas[1]|must be a number, got 'x'"),
    ],
)
def test_sentences(override: str, message: str) -> None:
    """A message names the key itself where that is not the key of the override."""
    key, _, text = message.rpartition("|")
    assert said(override) == [f"{key or override.partition('=')[0]} (command line): {text}"]


def test_lines_in_nested_files() -> None:
    path = write(
        "optim:\n  kind: sgd\n  lr:\n    -1\ncrops:\n  - size: 1\n  - margin: 1\n"
        "    size: x\n  -\n    margin: 1\nnamed:\n  x:\n    size: 3\n    margin: 5\n"
        "phases:\n- kind: adam\n- kind: sgd\n  bates: 1\n"
    )
    assert places(path) == [
        "optim.lr (a.yaml:3)",
        "crops[1].size (a.yaml:8)",
        "crops[2].size (a.yaml:10)",
        "named.x (a.yaml:12)",
        "phases[1].bates (a.yaml:18)",
    ]


def test_a_key_missing_at_the_top_names_the_file() -> None:
    class Top(BaseModel):
        must: int
        other: int = 0

    assert errors(write("\n\nother: 1\n"), schema=Top) == ["must (a.yaml): required but missing"]
    assert errors(None, schema=Top) == ["must (command line): required but missing"]


def test_a_dotted_key_in_a_file_is_told_apart() -> None:
    assert errors(write("optim.lr: 3\n")) == [
        "optim.lr (a.yaml:1): a dot does not nest keys in a file; "
        "write each part on its own line, indented"
    ]


def test_everything_is_told_at_once_by_file_and_line() -> None:
    write("seed: x\n", "z.yaml")
    path = write(
        "defaults: z.yaml\nmodel:\n  depth: 0\n  deph: 1\nprecision: fp8\nnote: a\nnote: b\n"
        "resume: *x\n" + "# \n" * 4 + "extent: 1\n"
    )
    assert places(path, ["crop.sizes=1", "oops", "optim.lr=-1"]) == [
        "model.depth (a.yaml:3)",
        "model.deph (a.yaml:4)",
        "precision (a.yaml:5)",
        "note (a.yaml:7)",
        "resume (a.yaml:8)",  # an alias is refused once, and not as no boolean too
        "extent (a.yaml:13)",
        "seed (z.yaml:1)",
        "command line",
        "crop.size (command line)",
        "crop.sizes (command line)",
        "optim.lr (command line)",
    ]


def test_a_message_stays_one_line() -> None:
    path = write('"a\\nb": 1\ncrop: {size: 1, margin: 2}\nseed: "x\\ny"\n')
    assert len(errors(path)) == 3


def test_a_model_inside_itself() -> None:
    assert "did you mean 'child'" in errors(None, ["chidl.name=x"], schema=Tree)[0]
    assert errors(None, ["child.child.nam=x"], schema=Tree) == [
        "child.child.nam (command line): unknown key; did you mean 'name'?"
    ]
