"""`python -m flows check DATA`: what preparation would make of data, without Ray and without training."""

import math
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from amvl_core.contracts.answer_length import max_new_tokens
from amvl_core.contracts.config import RunConfig, override
from amvl_core.contracts.records import DatasetRecord, SourceReport
from amvl_core.contracts.sample import Conversation, Split, StoredSample
from amvl_core.contracts.sources import ArchiveSource
from amvl_core.data.encode import TokenCounter
from data_prep import intake, listing
from data_prep.duplicate_keys import Keys
from data_prep.filters import Drop
from data_prep.intake import KEEPS
from data_prep.shards import SCHEMA_VERSION, ShardRow
from data_prep.sources import list_rows
from data_prep.sources.archive import open_archive
from data_prep.sources.pictures import image_size
from data_prep.sources.raw_row import Rejected
from data_prep.units import LENGTH_STEP, Tally, Work
from flows.parameters import resolve
from flows.run import FILE_WIDTH, parse

LOOKED_INTO = 1000
"""Rows of each split of a source whose images and texts are read: the least that `data.seed` draws of a larger one."""


class _Looking(Work):
    """Preparation of a few rows that remembers how large they are."""

    def __init__(self, config: RunConfig, folders: tuple[str, ...]) -> None:
        super().__init__(config.data, TokenCounter.from_model(config.model), folders)
        self.prompts, self.targets = Counter[int](), Counter[int]()
        self.samples, self.pixels = Counter[int](), Counter[int]()
        self.trained: list[StoredSample] = []
        """Training samples without their images."""

    def row(self, conversation: Conversation, keys: Keys, tally: Tally) -> ShardRow | Drop:
        """As of the preparation."""
        for data in conversation.images:
            with suppress(Rejected):  # a drop below
                self.pixels[math.prod(image_size(data))] += 1
        found = super().row(conversation, keys, tally)
        if isinstance(found, ShardRow):
            target = self.target_tokens(found.sample)
            self.targets[target] += 1
            self.prompts[found.num_tokens - target] += 1
            self.samples[found.num_tokens] += 1
            if conversation.split == "train":
                self.trained.append(replace(found.sample, images=()))
        return found


def check_data(data: list[str], params: list[str], preset: str) -> int:
    """Prints what a run on `data` would keep, and proposes budgets; 1 where it would stop. Raises AmvlError."""
    config = resolve(preset, **parse(params, data))
    console = Console() if Console().is_terminal else Console(width=FILE_WIDTH)
    with tempfile.TemporaryDirectory() as folder:
        sources = tuple(
            source.model_copy(update={f"{split}_limit": _limit(source, split) for split in listing.SPLITS})
            if isinstance(source, ArchiveSource)
            else source
            for source in config.data.sources
        )
        looked = config.model_copy(update={"data": config.data.model_copy(update={"sources": sources})})
        work = _Looking(looked, tuple(f"{folder}/{number}" for number in range(len(sources))))
        reports = listing.complete(work.data, list(_reports(work)))
    for source in config.data.sources:
        console.print("\n".join(_listed(config, source)), highlight=False, soft_wrap=True, markup=False)
    console.print("\n".join(intake.report_lines(reports)), highlight=False, soft_wrap=True, markup=False)
    console.print(_lengths(work))
    record = DatasetRecord(
        uri="", fingerprint="", schema_version=SCHEMA_VERSION, shards=[], kept=0, dropped={}, reports=reports
    )
    wrong = list(_refusals(config, reports, work.trained))
    said = [*_proposals(config, work, reports, record), *(f"warning: {line}" for line in intake.warnings(reports))]
    said += [f"warning: {line}" for line in intake.cut_targets(config, record)]
    said += [f"a run would stop before training: {line}" for line in wrong] or ["a run would train on what is kept"]
    said.append("duplicates, and training samples that give away a test sample, are not looked for here")
    console.print("\n".join(said), highlight=False, soft_wrap=True, markup=False)
    return 1 if wrong else 0


def _refusals(config: RunConfig, reports: list[SourceReport], trained: list[StoredSample]) -> Iterator[str]:
    """Why a run would stop before training, a line each."""
    kept = Counter[Split]()
    for report in reports:
        kept[report.split] += report.kept
    if not kept["train"]:
        yield "no training row is kept"
    if not config.data.accept_losses:
        yield from intake.refusals(reports)
    elif not kept["test"]:
        yield "no test row is kept, so there is nothing to evaluate on"
    yield from intake.untrainable(config, lambda: trained, len(trained))


def _limit(source: ArchiveSource, split: Split) -> int:
    given: int | None = getattr(source, f"{split}_limit")
    return LOOKED_INTO if given is None else min(given, LOOKED_INTO)


def _listed(config: RunConfig, source: object) -> Iterator[str]:
    """How a source is read, and how many rows it has; more than are looked into are only counted."""
    if not isinstance(source, ArchiveSource):
        return
    kind = type(source).model_fields["kind"].default
    with open_archive(source.uri) as archive:
        rows = Counter(row.split for row in list_rows(source, kind, archive, config.data.seed))
    counts = ", ".join(f"{rows[split]:,} {split}" for split in listing.SPLITS)
    more = any(rows[split] > LOOKED_INTO for split in listing.SPLITS)
    yield f"{source.uri} is read as {kind}, rows: {counts}" + (
        f"; {LOOKED_INTO:,} of each split are looked into, drawn by data.seed" if more else ""
    )


def _reports(work: Work) -> Iterator[SourceReport]:
    for number in range(len(work.data.sources)):
        found: dict[Split, SourceReport] = {}
        for unit in listing.units(work.data, number, ()):
            report = work.run(unit).report
            found[unit.split] = found[unit.split].merged(report) if unit.split in found else report
        yield from found.values()


def _lengths(work: _Looking) -> Table:
    table = Table(title="Kept samples", title_justify="left")
    for name in ("", "least", "median", f"{KEEPS:.0%}", "most"):
        table.add_column(name, justify="right" if name else "left")
    rows = {"prompt, tokens": work.prompts, "target, tokens": work.targets, "sample, tokens": work.samples}
    for name, counts in {**rows, "image as it is, pixels": work.pixels}.items():
        if counts:
            table.add_row(name, *(f"{_quantile(counts, share):,}" for share in (0, 0.5, KEEPS, 1)))
    return table


def _proposals(config: RunConfig, work: _Looking, reports: list[SourceReport], record: DatasetRecord) -> Iterator[str]:
    """Values of the budgets that fit these data."""
    lengths = Counter[int]()
    for tokens, count in work.samples.items():
        lengths[-(-tokens // LENGTH_STEP) * LENGTH_STEP] += count
    for report in reports:
        lengths.update(report.too_long)
    if lengths:
        most, longest = _quantile(lengths, KEEPS), max(lengths)
        share = sum(count for tokens, count in lengths.items() if tokens <= most) / lengths.total()
        yield (
            f"data.max_tokens={most} keeps {share:.0%} of the samples, {longest} all (it is {config.data.max_tokens})"
        )
    if work.targets:
        follows = override(config, {"evaluation": {"max_new_tokens": None}})
        given = config.evaluation.max_new_tokens
        yield (
            f"evaluation.max_new_tokens={max_new_tokens(follows, record)} is the default for the targets that are kept"
            + (f" (it is {given})" if given is not None else "")
        )
    if work.pixels:
        unit = work.budget.unit**2
        least, total = config.data.min_pixels, work.pixels.total()
        most = max(-(-_quantile(work.pixels, KEEPS) // unit) * unit, least)
        kept = sum(count for size, count in work.pixels.items() if least <= size <= most)
        larger = sum(count for size, count in work.pixels.items() if size > config.data.max_pixels)
        smaller = sum(count for size, count in work.pixels.items() if size < least)
        yield (
            f"data.max_pixels={most} keeps {kept / total:.0%} of the images at their size, {most // unit:,} tokens at "
            f"most; it is {config.data.max_pixels}, {larger / total:.0%} are scaled down, {smaller / total:.0%} are "
            f"scaled up to data.min_pixels ({least})"
        )


def _quantile(counts: Counter[int], share: float) -> int:
    passed, wanted = 0, share * counts.total()
    for value in sorted(counts):
        passed += counts[value]
        if passed >= wanted:
            return value
    return max(counts)
