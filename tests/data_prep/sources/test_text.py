from __future__ import annotations

import pytest

from data_prep.sources.text import boxed, numbered, paragraphs, thoughts, without_action


@pytest.mark.parametrize(
    ("trace", "steps"),
    [
        ("THOUGHT 0: a\nTHOUGHT 1: b", ["a", "b"]),
        ("THOUGHT 0: a THOUGHT 1: b", ["a", "b"]),
        ("Before.\n\nTHOUGHT 0:\n  a\n\n", ["Before.", "a"]),
        ("AFTERTHOUGHT 1: no marker", ["AFTERTHOUGHT 1: no marker"]),
        ("THOUGHT 0: THOUGHT 1: b", ["b"]),
        (" \n", []),
    ],
)
def test_thoughts(trace: str, steps: list[str]) -> None:
    assert thoughts(trace) == steps


def test_without_action() -> None:
    assert without_action("Look.\n\nACTION 0:\n```python\nx\n```") == ("Look.", "```python\nx\n```")
    assert without_action(" Look at ACTIONS. ") == ("Look at ACTIONS.", "")


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("1. One.\n2. Two: 3. Three.\n3. Four", ["One.", "Two: 3. Three.", "Four"]),
        ("1. One. 2. Two. 3. Three.", ["One.", "Two.", "Three."]),
        ("1. It has 2. 5 legs. 2. Yes.", ["It has 2. 5 legs.", "Yes."]),
        ("1. Only", ["Only"]),
        ("2. Not from one", ["2. Not from one"]),
        ("No number.\nAt all.", ["No number.\nAt all."]),
        ("  ", []),
    ],
)
def test_numbered(text: str, steps: list[str]) -> None:
    assert numbered(text) == steps


def test_paragraphs() -> None:
    assert paragraphs("a\nb\n \n\nc\n") == ["a\nb", "c"]
    assert paragraphs("") == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"It is red. So \boxed{B}.", ("It is red.", "B")),
        (r"\boxed{A} or rather \boxed{ \frac{1}{2} }", ("", r"\frac{1}{2}")),
        ("First\nthe answer is \\boxed{B}", ("First", "B")),
        (r"It is \boxed{B", None),
        ("It is B.", None),
    ],
)
def test_boxed(text: str, found: tuple[str, str] | None) -> None:
    assert boxed(text) == found
