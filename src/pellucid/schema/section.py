"""What every mapping of a recipe has in common, and the kinds of numbers that stand in it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Threads = Annotated[int, Field(ge=1, le=4096)]
MOST_DRAWN = 10_000_000  # images of a drawn split: their names and labels are held in memory
MOST_EPOCHS = 1_000_000


class Section(BaseModel):
    """A mapping of the recipe: unknown keys are errors, values are not converted between types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
