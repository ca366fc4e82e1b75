"""The base of every configuration model."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Unknown keys are errors, values are final, and types are not guessed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)
