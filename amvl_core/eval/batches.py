"""Which questions are answered together. This is a pure function of their lengths, so a resumed run cuts the same.

A batch has at most `max_rows` questions and at most `max_tokens` tokens with padding. A longer question is alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def longest_first(lengths: Sequence[int] | np.ndarray, max_rows: int, max_tokens: int) -> list[list[int]]:
    """Batches of question numbers, of like length. The longest come first, so that the last ones are short."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [[int(order[i]) for i in batch] for batch in in_order(np.asarray(lengths)[order], max_rows, max_tokens)]


def in_order(lengths: Sequence[int] | np.ndarray, max_rows: int, max_tokens: int) -> list[list[int]]:
    """Batches of question numbers, in the order given."""
    batches: list[list[int]] = []
    longest = 0
    for number, length in enumerate(lengths):
        longest = max(longest, int(length))
        if batches and len(batches[-1]) < max_rows and (len(batches[-1]) + 1) * longest <= max_tokens:
            batches[-1].append(number)
        else:
            batches.append([number])
            longest = int(length)
    return batches
