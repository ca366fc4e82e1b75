"""The base of every configuration model, and bounded types of numbers."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Numbers beyond these bounds are typing errors, and computing with them would overflow.
Count = Annotated[int, Field(ge=1, le=10**12)]
Epochs = Annotated[float, Field(gt=0, le=1e9)]
Width = Annotated[int, Field(ge=1, le=2**18)]
"""The width of a layer, or pixels a side."""
Positive = Annotated[float, Field(gt=0, le=1e30)]


class Strict(BaseModel):
    """A model that refuses unknown keys and non-finite numbers, and cannot be changed."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=False, allow_inf_nan=False, defer_build=True
    )
