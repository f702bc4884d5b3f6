"""BLINK's published leaderboard, recomputed from its published predictions, and what each extractor makes of texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest

from amvl_core.eval import lmms_eval, vlmevalkit
from amvl_core.eval.benchmarks import BENCHMARKS
from amvl_core.eval.benchmarks.benchmark import Outcome
from amvl_core.eval.benchmarks.blink import SEVEN, SIZES, task_of
from amvl_core.eval.extract import Extractor, unwrapped
from amvl_core.eval.significance import weighted_mean
from tests.shared import unpacked

# github.com/zeyofu/BLINK_Benchmark, README, "Mini-Leaderboard", column Val (1,901)
LEADERBOARD = {
    "GPT4o": "60.0",
    "GPT4Turbo": "54.6",
    "GPT4V": "51.1",
    "GeminiProVision": "45.2",
    "llava-v1.6-34b": "46.8",
    "OPUS": "44.1",
    "Yi_VL_34B": "41.7",
    "QwenVLMax": "40.3",
    "llava-v1.5-13b-xtuner": "42.0",
    "Yi_VL_6B": "38.7",
    "llava-v1.5-7b-xtuner": "39.4",
    "llava_v1.5_13b": "42.7",
    "instructblip_13b": "42.2",
    "cogvlm-chat": "41.5",
    "instructblip_7b": "39.7",
    "flamingov2": "39.2",
    "llava-internlm2-7b": "37.7",
    "llava_v1.5_7b": "37.1",
    "MiniGPT-4-v2": "34.2",
}


def answers(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / "val_answers.json").read_text())
    return found


def published(predictions: Mapping[str, str], answers: Mapping[str, str]) -> list[Outcome]:
    """The official scoring of published predictions, idx -> "(A)": right where the two texts are equal.

    A prediction that repeats the option ("(C) Point C") is wrong, and so is one that is missing.
    """
    return [Outcome(idx, task_of(idx), "", "", predictions.get(idx) == right) for idx, right in answers.items()]


@pytest.mark.parametrize("model", LEADERBOARD)
def test_leaderboard_to_the_last_digit(model: str) -> None:
    folder = unpacked("blink")
    predictions = json.loads((folder / "saved_val_predictions" / f"{model}.json").read_text())
    units = BENCHMARKS["blink"].metrics["overall"](published(predictions, answers(folder)))
    # The leaderboard rounds the paper's two digits once more: Claude 3 Opus is 44.046 -> 44.05 -> 44.1.
    paper = Decimal(100 * weighted_mean(units)).quantize(Decimal("0.01"), ROUND_HALF_UP)
    assert (len(units), str(paper.quantize(Decimal("0.1"), ROUND_HALF_UP))) == (1901, LEADERBOARD[model])


def test_every_published_model_and_question_is_in_the_table() -> None:
    folder = unpacked("blink")
    assert {file.stem for file in (folder / "saved_val_predictions").glob("*.json")} == set(LEADERBOARD)
    outcomes = published({}, answers(folder))
    assert {task: sum(o.task == task for o in outcomes) for task in SIZES} == SIZES
    assert not any(o.score for o in outcomes)


ABCD = dict.fromkeys("ABCD", "")

EXTRACTORS: dict[str, tuple[Extractor, str]] = {
    "lmms-eval, first letter": (lmms_eval.first_letter, "20.6"),
    "lmms-eval, V*": (lmms_eval.vstar, "47.3"),
    "lmms-eval, multiple choice": (lmms_eval.mcq_abcd, "57.6"),
    "VLMEvalKit": (vlmevalkit.infer_option, "26.6"),
    "ours": (unwrapped, "54.3"),
}


def texts(model: str) -> list[dict[str, str]]:
    """A model's published texts on the seven tasks, with the answers and what the official judge model read."""
    folder = unpacked("blink") / "saved_outputs" / model
    items = [item for file in sorted(folder.glob("*.json")) for item in json.loads(file.read_text())["val"]]
    assert len(items) == sum(SIZES[task] for task in SEVEN) == 950
    return items


@pytest.mark.parametrize("name", EXTRACTORS)
def test_the_same_texts_under_each_harness(name: str) -> None:
    extractor, documented = EXTRACTORS[name]
    right = [f"({extractor(item['full_prediction'], ABCD).answer})" == item["answer"] for item in texts("GPT4o")]
    assert f"{100 * sum(right) / len(right):.1f}" == documented


@pytest.mark.parametrize(("model", "answered", "agreed"), [("GPT4o", 844, 823), ("llava-v1.6-34b", 950, 950)])
def test_our_own_extractor_against_the_official_judge(model: str, answered: int, agreed: int) -> None:
    # Without a judge and without the options' texts, ours abstains where several letters are discussed and none is
    # stated; where it reads a letter, it is the judge's. The bounds are what was measured.
    read = [(unwrapped(item["full_prediction"], ABCD).answer, item["prediction"]) for item in texts(model)]
    assert sum(ours is not None for ours, _ in read) >= answered
    assert sum(f"({ours})" == judge[:3] for ours, judge in read) >= agreed
