"""The base of every configuration model, and kinds of numbers."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Beyond these a number is a slip of the keyboard, and what is computed with it overflows.
Count = Annotated[int, Field(ge=1, le=10**12)]
Epochs = Annotated[float, Field(gt=0, le=1e9)]
Width = Annotated[int, Field(ge=1, le=2**18)]
"""Of a layer, or pixels a side."""
Positive = Annotated[float, Field(gt=0, le=1e30)]


class Strict(BaseModel):
    """Unknown keys are errors, values are final and finite, and types are not guessed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)
