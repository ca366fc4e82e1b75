"""A schema with everything that configurations are made of, for the tests of `lensdist.config`."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, field_validator, model_validator

from lensdist.config import load
from lensdist.utils.errors import UserError


class Activation(enum.Enum):
    gelu = "gelu"
    relu = "relu"


class Model(BaseModel):
    depth: int = Field(6, ge=1)
    mask_ratio: float = Field(0.75, gt=0, lt=1)
    activation: Activation = Activation.gelu
    name: str = "vit"


class Optim(BaseModel):
    kind: Literal["sgd", "adam"] = "adam"
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    nesterov: bool | Literal["auto"] = False


class Crop(BaseModel):
    size: int
    margin: int = 0

    @model_validator(mode="after")
    def _fits(self) -> Crop:
        if self.margin >= self.size:
            raise ValueError(f"margin ({self.margin}) must be\nsmaller than size ({self.size})")
        return self


class Config(BaseModel):
    task: str = "mae"
    precision: Literal["no", "fp16", "bf16"] = "no"
    seed: int = 0
    resume: bool = False
    data: Path | None = None
    note: str = ""
    model: Model = Model()
    optim: Optim = Optim()
    crop: Crop | None = None
    crops: list[Crop] = []
    named: dict[str, Crop] = {}
    phases: list[Optim] = []
    warmup: int | Literal["auto"] = "auto"
    scale: float | list[float] = 1.0
    channels: Annotated[list[int], Field(min_length=2)] = [1, 2]
    extent: tuple[int, int] | None = None

    @field_validator("note")
    @classmethod
    def _short(cls, note: str) -> str:
        if len(note) > 100:
            raise ValueError("must be a short note")
        return note


class Tree(BaseModel):
    name: str = ""
    child: Tree | None = None


def write(text: str | bytes, name: str = "a.yaml") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def errors(path: Path | None, overrides: Sequence[str] = (), schema: Any = Config) -> list[str]:
    with pytest.raises(UserError) as caught:
        load(path, overrides, schema=schema)
    return str(caught.value).split("\n")


def said(*overrides: str) -> list[str]:
    return errors(None, overrides)


def places(path: Path | None, overrides: Sequence[str] = (), schema: Any = Config) -> list[str]:
    """Only the key and the place of each mistake: `seed (a.yaml:2)`."""
    return [line.partition(": ")[0] for line in errors(path, overrides, schema)]
