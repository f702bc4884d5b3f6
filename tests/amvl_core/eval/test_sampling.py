"""The estimators against every choice of draws and against answers of known probability, and drawn tokens too."""

from __future__ import annotations

import random
from itertools import combinations, permutations
from math import comb
from typing import Any

import pytest
import torch

from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.records import GREEDY, LATENTS, TOKENS
from amvl_core.eval.sampling import COUNTS, DRAWS, SOURCES, SamplingWorker, check_drawn, pass_at, score_samples, vote_at


@pytest.mark.parametrize("right", range(DRAWS + 1))
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_pass_at_counts_every_choice_of_draws(right: int, count: int) -> None:
    chosen = list(combinations([True] * right + [False] * (DRAWS - right), count))
    assert pass_at(DRAWS, right, count) == pytest.approx(sum(map(any, chosen)) / len(chosen), abs=1e-15)


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_the_vote_is_that_of_every_order_with_ties_drawn(count: int) -> None:
    """In every order of the draws the first answers vote; of equally common texts one is taken, whichever."""
    answers = [("red", True), ("red", True), ("blue", False), ("blue", False), ("pink", False)]
    found = []
    for order in permutations(answers):
        texts = [text for text, _ in order[:count]]
        winners = [text for text in set(texts) if texts.count(text) == max(map(texts.count, texts))]
        found.append(sum(text == "red" for text in winners) / len(winners))
    assert vote_at(answers, count) == pytest.approx(sum(found) / len(found), abs=1e-15)


ERROR = 3 * 0.5 / 150**0.5
"""Three standard deviations of the mean of 150 values within 0 to 1, at most."""


def rows_of(share: dict[tuple[str, float], float], questions: int) -> list[dict[str, Any]]:
    """A source is right with its probability, and else says one of two wrong words."""
    rng, rows = random.Random(0), []
    for source in SOURCES:
        for number in range(questions):
            for _ in range(1 if source[0] == GREEDY else DRAWS):
                right = rng.random() < share[source]
                said = "Red." if right else rng.choice(["blue", "pink"])
                rows.append({
                    "source": source[0], "scale": source[1], "sample_id": f"q{number}", "group": f"image {number}",
                    "prediction": said, "score": float(right),
                })  # fmt: skip
    return rows


def test_answers_of_known_probability_score_what_they_must() -> None:
    """1 - (1 - p)^n, and the exact share of the votes; worst seen: 0.09 off."""
    share = {source: 0.3 + 0.05 * number for number, source in enumerate(SOURCES)}
    scores = score_samples(rows_of(share, 150))
    expected = [(kind, scale, count) for kind, scale in SOURCES for count in (COUNTS if kind != GREEDY else (1,))]
    assert [(score.source, score.scale, score.answers) for score in scores] == expected
    for score in scores:
        p, n = share[score.source, score.scale], score.answers
        passed = 1 - (1 - p) ** n
        voted = 0.0
        for red in range(n + 1):
            for blue in range(n - red + 1):
                counts = (red, blue, n - red - blue)
                ways = comb(n, red) * comb(n - red, blue) * p**red * ((1 - p) / 2) ** (n - red)
                voted += ways * (red == max(counts)) / counts.count(max(counts))
        assert score.n == 150
        assert score.passed == pytest.approx(passed, abs=ERROR) and score.voted == pytest.approx(voted, abs=ERROR)


def test_every_source_is_asked_alike_with_keys_of_each_draw() -> None:
    """A stand-in for the model says how it was asked."""

    class Prompts:
        def draw(self, number: int) -> int:
            return number

    class Answerer:
        def predict(self, number: int, most: int, none: list[list[str]], **how: float) -> list[Any]:
            assert (most, none) == (9, [[], []])
            return [type("Answer", (), {"text": f"{number} {how}"})() for _ in none]

    worker = SamplingWorker.__new__(SamplingWorker)
    worker.answerer = Answerer()  # type: ignore[assignment]
    rows = worker.work(([{"sample_id": "a"}, {"sample_id": "b"}], Prompts(), None, 9))
    asked = [(row["source"], row["scale"], row["draw"], row["raw_output"]) for row in rows if row["sample_id"] == "b"]
    assert asked[0] == (GREEDY, 0.0, 0, "0 {}")
    assert asked[1:] == [
        (kind, scale, draw, f"{draw} {{'{'tau' if kind == LATENTS else 'temperature'}': {scale}}}")
        for kind, scale in SOURCES[1:]
        for draw in range(DRAWS)
    ]
    assert {kind for kind, _ in SOURCES} == {GREEDY, LATENTS, TOKENS}
    assert len(rows) == 2 * len(asked)


def test_keys_of_draws_differ_and_do_not_depend_on_the_batch() -> None:
    from amvl_core.eval.predict import Prompts

    both, alone = Prompts(torch.zeros(2), [3, 4]), Prompts(torch.zeros(1), [4])
    assert both.draw(0).keys[1] == alone.draw(0).keys[0]
    assert len({key for number in range(DRAWS) for key in both.draw(number).keys}) == 2 * DRAWS


def test_latents_that_have_no_distribution_are_refused() -> None:
    check_drawn("amvl")
    for method in ("sft", "coconut"):
        with pytest.raises(ConfigError, match=f"the latents of {method} have no distribution"):
            check_drawn(method)
