"""Which questions are answered together: a pure function of their lengths, so that a run that goes on cuts the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def longest_first(lengths: Sequence[int] | np.ndarray, max_rows: int, max_tokens: int) -> list[list[int]]:
    """Numbers of questions, each batch of at most `max_rows` and at most `max_tokens` tokens with padding.

    Questions of like length stand together, and the long ones first: the last batches to finish are short ones. A
    question that is longer than `max_tokens` is a batch of its own.
    """
    batches: list[list[int]] = []
    for number in np.argsort(-np.asarray(lengths), kind="stable"):
        batch = batches[-1] if batches else []
        if batch and len(batch) < max_rows and (len(batch) + 1) * int(lengths[batch[0]]) <= max_tokens:
            batch.append(int(number))
        else:
            batches.append([int(number)])
    return batches
