"""What every configuration and every record is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Cannot be changed after it is made, and refuses unknown fields: a typo is an error that names the field."""

    model_config = ConfigDict(frozen=True, extra="forbid")
