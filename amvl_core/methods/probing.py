"""What the faithfulness suite asks of a latent method: its models with their latents changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from amvl_core.contracts.sample import StoredSample


class ProbeAnswer(NamedTuple):
    """What one variant gives on one item: the generated text, and log p of the reference answer's tokens in nats."""

    sample_id: str
    variant: str
    raw_output: str
    log_likelihood: float


class Held(NamedTuple):
    """What the slots of each item's first block hold, [B, K, D], and the final state at the token before it, [B, D'].

    They are what the unchanged model puts there at inference, from the question alone.
    """

    slots_BKD: Tensor
    prompt_BD: Tensor


class Prober(Protocol):
    """A latent model under every change of its latents; made from a model, its processor and its method's fields."""

    def __call__(
        self,
        items: Sequence[StoredSample],
        donor: StoredSample,
        max_new_tokens: int,
        seed: int,
        only: Sequence[str] = (),
    ) -> list[ProbeAnswer]:
        """Every variant (`only` these, where given) on every item, in order of variants, the unchanged model first.

        Item i is given the latents of item i + 1 in the swap, and the last one those of `donor`.
        """

    def held(self, items: Sequence[StoredSample]) -> Held:
        """What linear probes read of each item (`amvl_core/eval/linear_probe.py`)."""


class AnalysingProber(Prober, Protocol):
    """That of a method with an `Analysis`."""

    def analyse(self, kind: str, items: Sequence[StoredSample], seed: int, rows: int) -> list[dict[str, Any]]:
        """One part of the method's analysis (`Analysis.parts`), `rows` sequences at a time: its table's rows."""


def sums(value_N: Tensor, sample_N: Tensor, samples: int) -> list[float]:
    """The sum of each sample's values, [B]."""
    return [float(value) for value in value_N.new_zeros(samples).index_add(0, sample_N, value_N)]
