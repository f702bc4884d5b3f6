"""Memory of an evaluation: whole models, which ZeRO does not share, on one GPU or on several of a machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from amvl_core.contracts.answer_length import PUBLISHED
from amvl_core.contracts.config import RunConfig
from infra.plan import memory
from infra.plan.machines import GIB, RESERVE_GIB, Machines
from infra.plan.shapes import TextShape


@dataclass(frozen=True)
class EvaluationPlan:
    """Memory in GiB on the fullest of the `gpus` of one model; whether they are of one machine and hold it.

    `fitting_tokens` is an `evaluation.batch_tokens` with which it fits there, and `fitting_gpus` is a number of GPUs
    with which it fits, if there is one.
    """

    needed_gib: float
    gpus: int
    fits: bool
    fitting_tokens: int | None
    fitting_gpus: int | None


def plan(
    config: RunConfig, text: TextShape, parameters: int, width: int, longest: int, machines: Machines
) -> EvaluationPlan:
    """Of a model with so many `parameters` of `width` bytes, asked prompts of at most `longest` tokens."""
    settings, gpus = config.evaluation, config.cluster.evaluation_gpus

    def needed(batch_tokens: int, gpus: int) -> float:
        """With as many questions at once as the settings allow."""
        tokens = max(longest, min(batch_tokens, settings.batch_size * longest))
        written = settings.batch_size * (settings.max_new_tokens or PUBLISHED)
        return memory.evaluation(text, parameters, width, tokens, written, gpus) / GIB + RESERVE_GIB

    def smaller() -> Iterator[int]:
        """`evaluation.batch_tokens` and its halves, the largest first."""
        tokens = settings.batch_tokens
        while tokens >= longest:
            yield tokens
            tokens //= 2

    most = min(machines.gpus_per_node, config.cluster.num_workers)
    own = needed(settings.batch_tokens, gpus)
    fitting_tokens = (tokens for tokens in smaller() if needed(tokens, gpus) <= machines.memory_gib)
    fitting_gpus = (
        count for count in range(1, most + 1) if needed(settings.batch_tokens, count) <= machines.memory_gib
    )
    return EvaluationPlan(
        needed_gib=round(own, 2),
        gpus=gpus,
        fits=gpus <= machines.gpus_per_node and own <= machines.memory_gib,
        fitting_tokens=next(fitting_tokens, None),
        fitting_gpus=next(fitting_gpus, None),
    )
