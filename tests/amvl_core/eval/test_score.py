import pytest

from amvl_core.eval.extract import last_line
from amvl_core.eval.score import MAX_CANDIDATES, closed_answers, is_correct, majority_answers


@pytest.mark.parametrize(
    ("raw", "answer", "right"),
    [
        ("red", "red", True),
        (" Red.\n", "red", True),
        ("The circle is left.\nyes", "yes", True),
        ("(B)", "B", True),
        ("", "", False),
        ("yes no", "yes", False),
        ("2", (2.0).__str__(), False),
    ],
)
def test_exact_match_of_the_last_line(raw: str, answer: str, right: bool) -> None:
    assert is_correct(last_line(raw), answer) is right


def test_the_commonest_answer_of_each_task() -> None:
    pairs = [("a", "yes"), ("a", "Yes"), ("a", "no"), ("b", "2"), ("b", "1")]
    assert majority_answers(pairs) == {"a": "yes", "b": "1"}


def test_a_task_with_few_answers_has_a_closed_set_of_them() -> None:
    many = [("name", f"n{i}") for i in range(MAX_CANDIDATES + 1)]
    few = [("a", "yes"), ("a", "No."), ("a", "Yes"), ("a", "no"), ("one", "x"), ("one", "X")]
    assert closed_answers([*few, *many]) == {"a": ["No.", "yes"]}
    assert len(closed_answers(many[1:])["name"]) == MAX_CANDIDATES
