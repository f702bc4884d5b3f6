"""NLVR v1 (github.com/lil-lab/nlvr): a sentence about three boxes of objects, true or false.

`<split>/<split>.json` holds JSON lines; an example `n-m` has the images
`<split>/images/<directory>/<split>-n-m-k.png`, k = 0 ... 5, one per order of its boxes. Development examples are
trained on, the published test examples are tested on, as the publication scores them: each image counts. All
examples with the same `n` were made together, so a training row whose `n` is in the test split is dropped.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Sequence

from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, Conversation, Split
from amvl_core.contracts.sources import NlvrSource
from data_prep.filters import TEST_OVERLAP, Drop
from data_prep.sources.archive_members import Archive
from data_prep.sources.jsonfiles import json_lines
from data_prep.sources.raw_row import RawRow, malformed

FILES: tuple[tuple[Split, str], tuple[Split, str]] = (("train", "dev"), ("test", "test"))
PERMUTATIONS = 6


def rows(source: NlvrSource, archive: Archive) -> Iterator[RawRow]:
    """Every example with each of its images. Raises DataError if a split's JSON lines are missing."""
    examples = {split: list(_examples(source, archive, name)) for split, name in FILES}
    names = set(archive.names())
    held_out = {_prefix(fields) for _, _, fields in examples["test"] if fields is not None}
    for split, name in FILES:
        for number, folder, fields in examples[split]:
            if fields is None:
                detail = f"line {number} of {name}.json is no JSON or lacks fields"
                yield malformed(f"{source.name}/{name}-line-{number}", split, detail)
                continue
            stem = f"{name}-{fields['identifier']}"
            drop = None
            if split == "train" and _prefix(fields) in held_out:
                drop = Drop(TEST_OVERLAP, f"test examples were made together with {stem}")
            images = [f"{folder}/images/{fields['directory']}/{stem}-{k}.png" for k in range(PERMUTATIONS)]
            # An excerpt may hold some orders only; an example without any image is kept to be counted as dropped.
            present = [image for image in images if image in names] or images[:1]
            for image in present:
                sample_id = f"{source.name}/{posixpath.splitext(posixpath.basename(image))[0]}"
                yield RawRow(sample_id, split, (image,), fields, drop)


def _examples(source: NlvrSource, archive: Archive, name: str) -> Iterator[tuple[int, str, dict[str, str] | None]]:
    member = archive.only(f"{name}/{name}.json")
    if member is None:
        raise DataError(f"{source.uri} has no {name}/{name}.json; it is not the NLVR data set")
    for number, value in json_lines(archive, member):
        yield number, posixpath.dirname(member), _fields(value)


def _fields(fields: object) -> dict[str, str] | None:
    wanted = ("identifier", "directory", "sentence", "label")
    if not isinstance(fields, dict) or not all(isinstance(fields.get(key), str) for key in wanted):
        return None
    return {key: fields[key] for key in wanted}


def _prefix(fields: dict[str, str]) -> str:
    return fields["identifier"].partition("-")[0]


def convert(source: NlvrSource, row: RawRow, images: Sequence[bytes]) -> Conversation:
    """One sentence about one image; the answer is `true` or `false`."""
    return Conversation(
        sample_id=row.sample_id,
        source=source.name,
        split=row.split,
        task="nlvr",
        images=tuple(images),
        question=f"{IMAGE_PLACEHOLDER}{row.fields['sentence'].strip()}\nIs this true or false?",
        steps=(),
        answer=row.fields["label"],
    )
