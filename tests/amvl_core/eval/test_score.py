import pytest

from amvl_core.eval.extract import last_line
from amvl_core.eval.score import Item, is_correct, majority_answers, score


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


def test_scores_per_task_and_over_all_items() -> None:
    majority = majority_answers([("a", "yes"), ("a", "Yes"), ("a", "no"), ("b", "2"), ("b", "1")])
    assert majority == {"a": "yes", "b": "1"}
    items = [Item("a", "yes", True), Item("a", "no", False), Item("b", "2", True), Item("a", "yes", True)]
    scores, overall = score(items, majority)
    assert [(s.task, s.n, s.correct) for s in scores] == [("a", 3, 2), ("b", 1, 1)]
    assert (overall.n, overall.correct, overall.accuracy) == (4, 3, 0.75)
    assert (scores[0].majority, scores[1].majority, overall.majority) == (2 / 3, 0.0, 0.5)
