import pytest

from amvl_core.eval.batches import in_order, longest_first


def test_long_questions_come_first_and_every_one_once() -> None:
    lengths = [5, 30, 7, 30, 6, 100]
    batches = longest_first(lengths, max_rows=3, max_tokens=60)
    assert batches == [[5], [1, 3], [2, 4, 0]]
    assert sorted(number for batch in batches for number in batch) == list(range(6))


def test_a_batch_is_bounded_by_rows_and_by_tokens_with_padding() -> None:
    lengths = list(range(1, 60))
    batches = longest_first(lengths, max_rows=4, max_tokens=100)
    assert all(len(batch) <= 4 for batch in batches)
    assert all(len(batch) * lengths[batch[0]] <= 100 for batch in batches)
    assert max(map(len, batches)) == 4 and len(batches[0]) == 1


def test_a_question_longer_than_the_budget_is_asked_alone() -> None:
    assert longest_first([500, 2], max_rows=8, max_tokens=100) == [[0], [1]]
    assert longest_first([], max_rows=8, max_tokens=100) == []


@pytest.mark.parametrize(
    ("lengths", "batches"),
    [([5, 5, 5, 5], [[0, 1], [2, 3]]), ([5, 9, 1, 1, 1], [[0], [1], [2, 3], [4]]), ([99, 1, 1], [[0], [1, 2]])],
)
def test_a_given_order_is_kept_within_the_bounds(lengths: list[int], batches: list[list[int]]) -> None:
    assert in_order(lengths, max_rows=2, max_tokens=10) == batches
