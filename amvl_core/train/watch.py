"""The watches of every stage, and what happens to a step whose gradient is not finite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from amvl_core.contracts.config import StageConfig
from amvl_core.contracts.errors import AmvlError, NonFiniteError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.progress import Advice
from amvl_core.contracts.watch import OVER, Watch

DATA_WAIT = 0.05
"""The share of time spent waiting for data above which there is a warning."""
MAX_SKIPS = 5
"""Training stops at so many skipped steps in a row."""
NAMED = 16
"""A message names at most so many samples."""


def watches(stage: StageConfig, latent: LatentConfig) -> list[Watch]:
    """All that is watched in a stage: the wait for data, and what its method asks for."""
    waiting = Watch(
        "data_wait",
        lambda terms: terms.get("data_wait"),
        DATA_WAIT,
        above=True,
        text=f"{{mean:.1%}} of the time went into waiting for data {OVER}: raise trainer.loader_workers (each needs a "
        "CPU core), or put the storage root on a disk or store that is nearer",
    )
    return [waiting, *stage.method.watches(latent)]


@dataclass(frozen=True)
class Refusal:
    """A step that was not taken, and the samples of all ranks that may be why.

    They are the samples whose loss is not finite (`loss`). If every loss is finite and the gradient is not, they are
    all samples of the step, because the sum of their gradients does not tell whose it was.
    """

    loss: bool
    samples: tuple[str, ...]

    def __str__(self) -> str:
        more = f" and {len(self.samples) - NAMED} more" if len(self.samples) > NAMED else ""
        named = f"{', '.join(self.samples[:NAMED])}{more}"
        if self.loss:
            return f"the loss is not finite on the samples {named}"
        return f"the gradient is not finite, though every sample's loss is; the step's samples are {named}"


@dataclass
class Skips:
    """What happens to a step whose gradient is not finite: training stops, or goes on without it."""

    action: Literal["stop", "skip"]
    in_a_row: int = 0

    def step(self, done: int, refusal: Refusal | None) -> tuple[list[Advice], AmvlError | None]:
        """Notes optimiser step `done`, which was taken if `refusal` is None. Returns warnings, and an error or None.

        There is an error if training is to stop, or has skipped `MAX_SKIPS` steps in a row.
        """
        if refusal is None:
            self.in_a_row = 0
            return [], None
        self.in_a_row += 1
        stops = self.action == "stop" or self.in_a_row >= MAX_SKIPS
        if self.action == "stop":
            then = (
                f"weights and optimiser are those of step {done - 1}. Look at these samples, lower the learning rate, "
                "or set trainer.on_nonfinite=skip to go on without such steps"
            )
        elif stops:
            then = (
                f"it is the {MAX_SKIPS}th step in a row that was skipped, so it is not the samples: lower the "
                "learning rate or clip, or start from an earlier checkpoint"
            )
        else:
            then = "the step was skipped (trainer.on_nonfinite)"
        text = f"step {done}: {refusal}; {then}"
        return [Advice("nonfinite", text, refusal.samples)], NonFiniteError(text) if stops else None
