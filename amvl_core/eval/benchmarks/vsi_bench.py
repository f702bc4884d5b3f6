"""VSI-Bench (nyu-visionx/VSI-Bench): 5,130 questions about 288 videos of rooms, answered by a letter or a number.

The published table of questions with the videos unpacked beside it (`arkitscenes/`, `scannet/`, `scannetpp/`). A
number scores its mean relative accuracy. The official overall score is the mean of the eight tasks, of which relative
direction is the mean of its three levels; papers that print one average often mean the question-weighted one. Both
harnesses ask about 32 frames at equal distances, but in different words, so the benchmark has two names here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from amvl_core.contracts.sample import Video
from amvl_core.data.video import Clip, VideoError, uniform
from amvl_core.eval import lmms_eval, numerals, vlmevalkit
from amvl_core.eval.benchmarks import files
from amvl_core.eval.benchmarks.benchmark import (
    BadRowError,
    Benchmark,
    Metric,
    Outcome,
    Question,
    SkippedQuestion,
    convert,
    letter,
    mean,
    right_or_wrong,
)
from amvl_core.eval.extract import NOTHING, Extraction, Extractor, final_answer, unwrapped
from amvl_core.eval.significance import Unit

FRAMES = 32
SIZES = {
    "object_counting": 565,
    "object_abs_distance": 834,
    "object_size_estimation": 953,
    "room_size_estimation": 288,
    "object_rel_distance": 710,
    "object_rel_direction_easy": 217,
    "object_rel_direction_medium": 378,
    "object_rel_direction_hard": 373,
    "route_planning": 194,
    "obj_appearance_order": 618,
}
NUMERIC = ("object_counting", "object_abs_distance", "object_size_estimation", "room_size_estimation")
DIRECTIONS = tuple(f"object_rel_direction_{level}" for level in ("easy", "medium", "hard"))
TASKS = {
    **{name: (name,) for name in (*NUMERIC, "object_rel_distance")},
    "object_rel_direction": DIRECTIONS,
    **{name: (name,) for name in ("route_planning", "obj_appearance_order")},
}
"""The eight tasks in the published order, and the types of question in each."""

FREQUENCY = "most frequent answer"
_FREQUENCIES = (62.1, 32.0, 29.9, 33.1, 25.1, 47.9, 28.4, 25.2)
"""As printed. The mean of these is 35.5; it would be the printed 34.0 with 36.2 for relative direction."""

OPENING = "These are frames of a video."
LETTER = "Answer with the option's letter from the given choices directly."
WORDS = {
    "lmms-eval": ("Options:\n", "Please answer the question using a single word or phrase."),
    "VLMEvalKit": ("", "Answer briefly and directly in one float number."),
}
"""What stands before the options, and what asks for a number."""

FILES = files.Published(
    (".jsonl", ".parquet"),
    "the folder with test.jsonl (or its Parquet file) and the videos unpacked beside it, or that file",
    lambda name: name.startswith("test") and "debiased" not in name and "pruned" not in name,
    single=True,
)


def _read(harness: str, uri: str) -> Iterator[Question | SkippedQuestion]:
    """The questions video by video, so that each is decoded once."""
    rows = sorted(FILES.rows(uri), key=lambda found: _video(found[2]))
    return convert(iter(rows), partial(_question, harness, lru_cache(maxsize=1)(_clip)))


def _video(row: Mapping[str, Any]) -> str:
    return f"{row.get('dataset')}/{row.get('scene_name')}.mp4"


def _clip(file: str, name: str) -> Clip | VideoError:
    try:
        return uniform(files.beside(file, name, "missing_video"), FRAMES)
    except VideoError as error:
        return error


def _question(harness: str, clip: Callable[[str, str], Clip | VideoError], file: str, row: dict[str, Any]) -> Question:
    kind, video = row["question_type"], _video(row)
    if kind not in SIZES:
        raise BadRowError("unknown_question_type", str(kind))
    if isinstance(shown := clip(file, video), VideoError):
        raise BadRowError(shown.reason, f"{video}: {shown.detail}")
    listed, number = WORDS[harness]
    if kind in NUMERIC:
        options: dict[str, str] = {}
        answer = str(float(row["ground_truth"])).removesuffix(".0")
        lines = [OPENING, row["question"], number]
    else:
        options = dict(_option(text) for text in row["options"])
        answer = letter(row["ground_truth"])
        lines = [OPENING, row["question"], listed + "\n".join(row["options"]), LETTER]
    return Question(
        item_id=f"vsi_bench/{row['id']}",
        task=kind,
        images=shown.frames,
        prompt="\n".join(lines),
        answer=answer,
        options=options,
        group=video,
        videos=(Video(FRAMES, shown.fps),),
        asked=row["question"],
    )


def _option(text: str) -> tuple[str, str]:
    """`A. left` as (A, left)."""
    name, _, said = text.partition(".")
    return letter(name), said.strip()


def grade(answer: str, gold: str, options: Mapping[str, str]) -> float:
    """The mean relative accuracy of a number; of a letter, whether it is right."""
    return (
        right_or_wrong(answer, gold, options)
        if options
        else numerals.mean_relative_accuracy(float(answer), float(gold))
    )


def _own(text: str, options: Mapping[str, str], gold: str) -> Extraction:
    return unwrapped(text, options) if options else _number(numerals.only(final_answer(text)))


def _reading(choice: Extractor, number: Callable[[str], float | None]) -> Extractor:
    return lambda text, options: choice(text, options) if options else _number(number(text))


def _number(value: float | None) -> Extraction:
    return NOTHING if value is None else Extraction(repr(value))


def _mean_of(*tasks: str) -> Metric:
    """The mean of these tasks. A video has questions of many types, so the types are no strata of the bootstrap."""
    shares = {kind: 1 / len(TASKS[task]) for task in tasks for kind in TASKS[task]}

    def metric(outcomes: Sequence[Outcome]) -> list[Unit]:
        chosen = [o for o in outcomes if o.task in shares]
        sizes = Counter(o.task for o in chosen)
        return [Unit(o.item_id, o.score, shares[o.task] / sizes[o.task], o.group) for o in chosen]

    return metric


def _benchmark(name: str, harness: str) -> Benchmark:
    return Benchmark(
        name=name,
        size=sum(SIZES.values()),
        read=partial(_read, harness),
        check=FILES.find,
        readings={
            "lmms-eval": _reading(lmms_eval.first_word, numerals.lmms_eval),
            "VLMEvalKit": _reading(vlmevalkit.match_option, numerals.vlmevalkit),
        },
        metrics={"overall": _mean_of(*TASKS), "question-weighted": mean(), **{task: _mean_of(task) for task in TASKS}},
        own=_own,
        grade=grade,
        published={
            "overall": {FREQUENCY: 34.0},
            **{task: {FREQUENCY: score} for task, score in zip(TASKS, _FREQUENCIES, strict=True)},
        },
    )


VSI_BENCH = _benchmark("vsi_bench", "lmms-eval")
VSI_BENCH_VLMEVALKIT = _benchmark("vsi_bench_vlmevalkit", "VLMEvalKit")
