"""A frozen vision encoder whose patch features a method aligns its latents with. Imports no torch."""

from __future__ import annotations

from typing import Any, NamedTuple

from pydantic import Field, SerializationInfo, field_serializer, field_validator

from amvl_core.contracts import storage
from amvl_core.contracts.credentials import Uri
from amvl_core.contracts.frozen import Settings

BASE = "base"
"""The source of the base model's own vision encoder."""
TINY = "tiny:"
"""Begins the source of an encoder that is built offline; its kind follows."""
TINY_KINDS = ("dinov3", "dinov2", "siglip", "clip")
STORED = "features:"
"""Begins the source of features that were computed elsewhere; the folder follows."""


class EncoderConfig(Settings):
    """Where an encoder comes from, and the size of what it is shown."""

    name: str = Field(description="what tables and logged terms call it")
    source: Uri = Field(
        description="a Hub id or a folder of a DINOv3, DINOv2, SigLIP, SigLIP2 or CLIP model; `base`: the base model's "
        "own vision encoder; `tiny:KIND`: one that is built offline; `features:URI`: features that were computed "
        "elsewhere (docs/valr.md)"
    )
    size: int = Field(224, ge=8, description="an image is resized to this many pixels on each side")

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not name.replace("_", "").replace("-", "").isalnum():
            raise ValueError(f"{name!r} is no name: give letters, digits, - and _ (it is part of metrics' names)")
        return name

    @field_validator("source")
    @classmethod
    def _known(cls, source: str) -> str:
        if source.startswith(TINY) and source.removeprefix(TINY) not in TINY_KINDS:
            raise ValueError(f"{source!r} cannot be built; give {TINY} and one of {', '.join(TINY_KINDS)}")
        if source in ("", STORED):
            raise ValueError(f"{source!r} names no encoder; give a Hub id, a folder, or {STORED} and a folder")
        if source == BASE or source.startswith(TINY):
            return source
        kind = STORED if source.startswith(STORED) else ""
        return kind + storage.local_folder(source.removeprefix(kind))  # workers work in folders of their own

    @field_serializer("source")
    def _named(self, source: str, info: SerializationInfo) -> Any:
        """As it is, or what a fingerprint has in its place: it gives a function as the context."""
        return info.context(self) if info.context else source

    @property
    def stored(self) -> str | None:
        """The folder of features that were computed elsewhere, where this is no model."""
        return self.source.removeprefix(STORED) if self.source.startswith(STORED) else None


class Patches(NamedTuple):
    """What an encoder gives for an image: `rows` x `columns` patches of `width` numbers each."""

    rows: int
    columns: int
    width: int

    @property
    def number(self) -> int:
        """P."""
        return self.rows * self.columns
