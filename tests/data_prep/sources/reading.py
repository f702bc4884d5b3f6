"""What a source gives, without Ray: the way of a row through listing, reading and converting."""

from __future__ import annotations

from contextlib import nullcontext

from amvl_core.contracts.sample import Conversation
from amvl_core.contracts.sources import Source
from data_prep.filters import Drop
from data_prep.sources import convert, list_rows
from data_prep.sources.archive import open_archive
from data_prep.sources.raw_row import RawRow, images_of, read_images


def listed(source: Source, seed: int = 0) -> list[RawRow]:
    assert source.kind != "microworld"
    with open_archive(source.uri) as archive:
        return list(list_rows(source, source.kind, archive, seed))


def outcomes(source: Source) -> dict[str, Conversation | Drop]:
    """Every row by its sample id: converted, or why it cannot be."""
    assert source.kind != "microworld"
    found: dict[str, Conversation | Drop] = {}
    with open_archive(source.uri) as archive:
        rows = list(list_rows(source, source.kind, archive, 0))
        payload = read_images(archive, rows) if archive.sequential else None
    # Another process converts: it knows of the archive what the rows say.
    with open_archive(source.uri) if payload is None else nullcontext() as archive:
        for row in rows:
            assert row.sample_id not in found, "sample ids must be unique"
            images = row.drop or images_of(row, payload, archive)
            found[row.sample_id] = images if isinstance(images, Drop) else convert(source, source.kind, row, images)
    return found


def converted(source: Source) -> list[Conversation]:
    return [found for found in outcomes(source).values() if isinstance(found, Conversation)]


def drops(source: Source) -> dict[str, str]:
    """The reasons of those that are dropped, by sample id."""
    return {name: found.reason for name, found in outcomes(source).items() if isinstance(found, Drop)}
