"""What came in: kept and dropped rows for people to read, and losses that a run warns of or stops at."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from amvl_core.contracts import storage
from amvl_core.contracts.answer_length import max_new_tokens
from amvl_core.contracts.config import RunConfig, override
from amvl_core.contracts.errors import ConfigError, DataError
from amvl_core.contracts.records import DatasetRecord, SourceReport
from amvl_core.contracts.sample import StoredSample
from amvl_core.data.reader import ShardReader
from data_prep import filters
from data_prep.report import PAGE_NAME

WARNED, REFUSED = 0.1, 0.5
"""Shares of the rows of one split of a source."""

FEWEST_TESTED = 30
"""With fewer questions the 95 % interval of an accuracy near one half is wider than 35 points: it shows nothing."""

KEEPS = 0.95
"""The share of samples, or of images, that a proposed budget keeps as they are."""

NO_LOSS = (filters.DUPLICATE, filters.CONTAMINATED, filters.TEST_OVERLAP)
"""Rows that are left out on purpose: what they say is still there, or must not be in training."""

REMEDIES = {
    filters.MISSING_IMAGE: "put the images where the rows say; the example names the nearest that is there",
    filters.MALFORMED_ROW: "the example names the field; docs/data.md has the format",
    filters.PLACEHOLDER_MISMATCH: "write one <image> for each image, where it goes",
    filters.NO_ANSWER: "give each row an answer, or remove it",
    filters.NO_QUESTION: "give each row a question, or remove it",
    filters.RESERVED_TEXT: "remove the control token from the text",
    filters.UNREADABLE_IMAGE: "write these images again, or copy them again",
    filters.INCOMPLETE_REASONING: "remove the empty steps",
    filters.DEGENERATE_BOX: "boxes are [x1, y1, x2, y2] in pixels of the image as it is in its file",
}


def lines(record: DatasetRecord) -> list[str]:
    """Kept and dropped for each source and split, each reason with one example, and where the page is."""
    return [*report_lines(record.reports), f"all drops and samples: {storage.join(record.uri, PAGE_NAME)}"]


def report_lines(reports: list[SourceReport]) -> list[str]:
    """The same without the page."""
    said = []
    for report in reports:
        said.append(f"{report.source}, {report.split}: {report.kept:,} of {report.read:,} rows kept")
        for reason, count in sorted(report.dropped.items(), key=lambda item: -item[1]):
            said.append(f"  {count:,} dropped: {reason}{_example(report, reason)}")
        said += [f"  note, {count:,} x: {note}" for note, count in report.notes.items()]
    return said


def warnings(reports: list[SourceReport]) -> list[str]:
    """A line for each split of a source that lost more than `WARNED`, with the largest reason and its remedy.

    Another for each of which so much is contaminated, though that is no loss, and for each without a row.
    """
    remedy = "no row was read; write rows into it, or set train_limit=0 where it is only to test"
    said = [f"{report.source}, {report.split}: {remedy}" for report in reports if not report.read]
    said += [_loss(report) for report in reports if _share(report) > WARNED]
    return said + [_contaminated(report) for report in reports if _num_contaminated(report) > WARNED * report.read]


def check(record: DatasetRecord) -> None:
    """Raises DataError where so much is lost that a training would not be of the data that was given."""
    if wrong := list(refusals(record.reports)):
        raise DataError(
            "\n".join(
                [
                    "the run stops before training:",
                    *(f"  {line}" for line in wrong),
                    "mend the data, or set data.accept_losses=true to train on what is left",
                ]
            )
        )


def check_trainable(config: RunConfig, record: DatasetRecord) -> None:
    """Raises DataError where no training sample has what the latents of a stage's method are trained on."""
    for line in untrainable(config, ShardReader(record, "train").without_images, record.rows("train")):
        raise DataError(f"the run stops before training: {line}")


def untrainable(config: RunConfig, samples: Callable[[], Iterable[StoredSample]], count: int) -> Iterator[str]:
    """A line for each stage whose method trains its latents on what none of the `count` training `samples` has."""
    for name, stage in config.stages.items():
        missing = map(stage.method.lacks, samples())
        lack = next(missing, None)
        if lack is not None and all(missing):
            yield (
                f"stages.{name} ({stage.method.kind}) trains its latents on {lack}, and none of the {count:,} "
                "training samples has that; add a source that has (data.sources)"
            )


def cut_targets(config: RunConfig, record: DatasetRecord) -> list[str]:
    """A warning where `evaluation.max_new_tokens` is below targets of the test split.

    Raises ConfigError where it is below most of them: a right answer would be cut, and the scores would say nothing.
    """
    given = config.evaluation.max_new_tokens
    lengths = sum(
        (Counter(report.target_tokens) for report in record.reports if report.split == "test"), Counter[int]()
    )
    cut = sum(count for tokens, count in lengths.items() if given is not None and tokens > given)
    if not cut:
        return []
    follows = override(config, {"evaluation": {"max_new_tokens": None}})
    said = (
        f"evaluation.max_new_tokens ({given}) is less than {cut:,} of the {lengths.total():,} test targets take (the "
        f"longest {max(lengths)}): right answers are cut; leave it out, it is {max_new_tokens(follows, record)} then"
    )
    if 2 * cut > lengths.total():
        raise ConfigError(said)
    return [said]


def refusals(reports: list[SourceReport]) -> Iterator[str]:
    """Why a run stops before training, a line each; nothing where it does not."""
    yield from (_loss(report) for report in reports if _share(report) > REFUSED)
    tested = sum(report.kept for report in reports if report.split == "test")
    if tested < FEWEST_TESTED:
        yield f"{tested} test rows are left; fewer than {FEWEST_TESTED} cannot tell two models apart"


def fitting_tokens(report: SourceReport) -> tuple[int, float] | None:
    """The least `data.max_tokens` that keeps `KEEPS` of the samples, and the share it keeps; None: no row is too long.

    The steps are those of `too_long`.
    """
    lost = sum(report.too_long.values())
    if not lost:
        return None
    fitting, total = sum(report.target_tokens.values()), sum(report.target_tokens.values()) + lost
    for most, count in sorted(report.too_long.items()):
        fitting += count
        if fitting >= KEEPS * total:
            return most, fitting / total
    raise AssertionError("the longest keeps all")


def _example(report: SourceReport, reason: str) -> str:
    return next((f", such as {one.sample_id}: {one.detail}" for one in report.examples.get(reason, [])), "")


def _share(report: SourceReport) -> float:
    return sum(_losses(report).values()) / report.read if report.read else 0.0


def _losses(report: SourceReport) -> dict[str, int]:
    return {reason: count for reason, count in report.dropped.items() if reason not in NO_LOSS}


def _loss(report: SourceReport) -> str:
    losses = _losses(report)
    reason = max(losses, key=lambda name: losses[name])
    found = fitting_tokens(report) if reason == filters.TOO_LONG else None
    remedy = f"data.max_tokens={found[0]} keeps {found[1]:.0%}" if found else REMEDIES.get(reason, "see the example")
    return (
        f"{report.source}, {report.split}: {sum(losses.values()):,} of {report.read:,} rows are dropped "
        f"({_share(report):.0%}), most as {reason} ({losses[reason]:,}): {remedy}"
    )


def _num_contaminated(report: SourceReport) -> int:
    return report.dropped.get(filters.CONTAMINATED, 0)


def _contaminated(report: SourceReport) -> str:
    count = _num_contaminated(report)
    return (
        f"{report.source}, {report.split}: {count:,} of {report.read:,} rows are dropped ({count / report.read:.0%}) "
        "as contaminated: they show or ask what a test split or a benchmark does"
        f"{_example(report, filters.CONTAMINATED)}; split the data by image, or set data.drop_contaminated=false to "
        "train on them"
    )
