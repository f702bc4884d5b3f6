"""What every configuration and every record is, and what a seed is."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What every random generator takes: NumPy's and PyTorch's, and JSON in a browser."""


class Frozen(BaseModel):
    """Cannot be changed after it is made, and refuses unknown fields: a typo is an error that names the field."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Settings(Frozen):
    """Every configuration: no number in it is infinite or NaN, for neither has a stable form to be fingerprinted by."""

    model_config = ConfigDict(allow_inf_nan=False)
