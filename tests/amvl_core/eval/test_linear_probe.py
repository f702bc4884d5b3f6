"""Probes against least squares and fits that leave one question out, and on vectors that hold what is known."""

from __future__ import annotations

import numpy as np
import pytest

from amvl_core.eval.linear_probe import FOLDS, MAX_TEXTS, PENALTIES, accuracy, fold, probed, regressions

COLOURS = ("red", "green", "blue", "pink")
QUESTIONS, SLOTS, WIDTH = 400, 3, 8


def least_squares(x: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    """Intercept and weights [1 + D, C], by rows that hold the weights to 0."""
    (n, width), classes = x.shape, y.shape[1]
    held = np.hstack([np.zeros((width, 1)), penalty**0.5 * np.eye(width)])
    design = np.vstack([np.hstack([np.ones((n, 1)), x]), held])
    return np.linalg.lstsq(design, np.vstack([y, np.zeros((width, classes))]), rcond=None)[0]


@pytest.mark.parametrize(("n", "width"), [(40, 6), (10, 25)], ids=["more questions", "more features"])
def test_every_ridge_is_least_squares_with_rows_for_the_penalty(n: int, width: int) -> None:
    """Worst seen: 2e-14, and 5e-12 where one question is left out."""
    rng = np.random.default_rng(0)
    x, y, asked = rng.normal(3, 2, (n, width)), rng.normal(size=(n, 4)), rng.normal(size=(7, width))
    z, z_asked = (x - x.mean(0)) / x.std(0), (asked - x.mean(0)) / x.std(0)
    for penalty, (scores, left_out) in zip(PENALTIES, regressions(x, y, asked), strict=True):
        weights = least_squares(z, y, penalty)
        np.testing.assert_allclose(scores, weights[0] + z_asked @ weights[1:], rtol=0, atol=1e-12)
        for number in range(n):
            others = np.delete(np.arange(n), number)
            weights = least_squares(z[others], y[others], penalty)
            np.testing.assert_allclose(left_out[number], weights[0] + z[number] @ weights[1:], rtol=0, atol=1e-10)


def test_a_step_is_read_from_the_slot_that_holds_it_and_from_nothing_else() -> None:
    """Slot 2 holds step 1 linearly beside noise, the prompt holds step 2. Elsewhere the probe guesses: of four equal
    texts no more than 0.25 and three standard deviations of 400 draws.
    """
    rng = np.random.default_rng(1)
    steps = [list(rng.choice(COLOURS, 2)) for _ in range(QUESTIONS)]
    slots, prompt = rng.normal(size=(QUESTIONS, SLOTS, WIDTH)), rng.normal(size=(QUESTIONS, WIDTH))
    places = rng.normal(size=(len(COLOURS), WIDTH))
    for number, (first, second) in enumerate(steps):
        slots[number, 1] = places[COLOURS.index(first)] + 0.01 * rng.normal(size=WIDTH)
        prompt[number] = 1000 + 0.001 * places[COLOURS.index(second)]  # whatever its scale
    (one, two), left_out = probed(prompt, slots, steps, [f"image {i}" for i in range(QUESTIONS)])
    guessed = 0.25 + 3 * (0.25 * 0.75 / QUESTIONS) ** 0.5
    assert left_out == []
    assert (one.step, one.n, one.texts, one.slots[1]) == (1, QUESTIONS, 4, 1.0)
    assert max(one.prompt, one.slots[0], one.slots[2], *two.slots) < guessed
    assert (two.step, two.prompt) == (2, 1.0)
    assert one.majority == max(sum(first == colour for first, _ in steps) for colour in COLOURS) / QUESTIONS


def test_questions_about_one_image_are_in_one_fold() -> None:
    """The three questions about an image have one vector and one random text: any of them gives that of the others."""
    rng = np.random.default_rng(2)
    images = np.repeat(np.arange(60), 3)
    vectors, labels = rng.normal(size=(60, 400))[images], rng.integers(0, 2, 60)[images]
    folds = np.array([fold(f"image {number}") for number in images])
    assert set(folds) == set(range(FOLDS))
    assert accuracy(vectors, labels, folds) < 0.7
    assert accuracy(vectors, labels, np.tile([0, 1, 2], 60)) == 1.0
    texts = [[COLOURS[label]] for label in labels]
    (found,), _ = probed(vectors, vectors[:, None], texts, [f"image {number}" for number in images])
    assert found.prompt == found.slots[0] == accuracy(vectors, labels, folds)


@pytest.mark.parametrize(
    "texts",
    [["red"] * 200, [str(i % (MAX_TEXTS + 1)) for i in range(200)], ["red", "blue"]],
    ids=["one text", "many texts", "few questions"],
)
def test_what_is_no_choice_is_left_out(texts: list[str]) -> None:
    vectors = np.random.default_rng(3).normal(size=(len(texts), 4))
    steps = [["red" if i % 2 else "blue", text] for i, text in enumerate(texts)]
    found, left_out = probed(vectors, vectors[:, None], steps, [str(i) for i in range(len(texts))])
    assert left_out == ([2] if len(texts) > 2 else [1, 2])
    assert [one.step for one in found] == ([1] if len(texts) > 2 else [])
    assert probed(vectors, vectors[:, None], [[] for _ in texts], [str(i) for i in range(len(texts))]) == ([], [])
