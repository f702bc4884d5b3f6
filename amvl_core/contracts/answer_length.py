"""How many tokens a model may write for an answer. Imports no torch."""

from __future__ import annotations

import math

from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.records import DatasetRecord

PUBLISHED = 512
"""Of a published benchmark, whose targets are an option's letter or a few words: room to reason before them."""

MARGIN = 1.25
"""The same said in other words may take a quarter more tokens than the longest target. Only answers that do not end
by themselves cost what is added."""


def max_new_tokens(config: RunConfig, dataset: DatasetRecord) -> int:
    """`evaluation.max_new_tokens`, or where it is None what the targets of `dataset` take.

    That is the longest target of training and test with `MARGIN`, and what the method has besides; latent blocks within
    a reply are not counted. A dataset without target lengths is a published benchmark's questions: `PUBLISHED`.
    """
    if config.evaluation.max_new_tokens is not None:
        return config.evaluation.max_new_tokens
    longest = max((tokens for report in dataset.reports for tokens in report.target_tokens), default=0)
    return math.ceil(MARGIN * longest) + config.method.further_tokens(config.latent) if longest else PUBLISHED
