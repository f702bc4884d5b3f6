"""What goes wrong in training while it runs, and what to do about it: pure functions of what is logged."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from amvl_core.contracts.config import AmvlMethod, LatentConfig, StageConfig
from amvl_core.contracts.errors import AmvlError
from amvl_core.contracts.progress import Advice

WINDOW = 20
"""Logged steps whose mean is judged."""
DATA_WAIT = 0.05
"""Share of a step's time spent waiting for data."""
COLLAPSED_KL = 0.003
"""Nats per latent dimension: 1.5 a slot at d = 512, where the distances of the paper's Table 7 make 15 at sigma 1."""
LEAKING_KL = 0.5
"""Nats per latent dimension, where no forward KL holds the prior to the posterior: some ten times the paper's."""
MAX_SKIPS = 5
"""Steps skipped in a row before training stops."""
NAMED = 16
"""Sample ids that a message holds at most."""


@dataclass
class Watch:
    """Judges the mean of one reading over the last `WINDOW` logged steps, and says once that it has gone wrong.

    It is wrong beyond `limit` (above it, or below it) and right again at half or twice that, so a mean that wavers
    about the limit is said once. A reading of None does not apply, and the window starts anew.
    """

    kind: str
    reading: Callable[[dict[str, float]], float | None]
    limit: float
    above: bool
    text: str
    values: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    wrong: bool = False

    def step(self, terms: dict[str, float]) -> list[Advice]:
        """Takes one logged step; the advice where this step is the onset."""
        value = self.reading(terms)
        if value is None:
            self.values.clear()
            self.wrong = False
            return []
        self.values.append(value)
        if len(self.values) < WINDOW:
            return []
        mean = sum(self.values) / WINDOW
        before, factor = self.wrong, 0.5 if self.above else 2.0
        limit = self.limit * factor if before else self.limit
        self.wrong = mean > limit if self.above else mean < limit
        return [Advice(self.kind, self.text.format(mean=mean))] if self.wrong and not before else []


def watches(stage: StageConfig, latent: LatentConfig) -> list[Watch]:
    """All that is watched in a stage."""
    waiting = Watch(
        "data_wait",
        lambda terms: terms.get("data_wait"),
        DATA_WAIT,
        above=True,
        text=f"{{mean:.1%}} of the time went into waiting for data {_OVER}: raise trainer.loader_workers (each needs a "
        "CPU core), or put the storage root on a disk or store that is nearer",
    )
    return [waiting, *(_kl_watches(stage.method, latent) if isinstance(stage.method, AmvlMethod) else [])]


_OVER = f"over {WINDOW} logged steps"


def _kl_watches(method: AmvlMethod, latent: LatentConfig) -> list[Watch]:
    """The KL per latent dimension: too small once a weight is warmed up, too large while the forward one is 0.

    Fresh heads make prior and posterior equal, so a small KL says nothing before that.
    """
    dimensions = latent.dim if method.kl_reduction == "sum" else 1

    def held(terms: dict[str, float]) -> float | None:
        forward = terms.get("beta", 0.0) >= method.beta_max > 0
        reverse = terms.get("gamma", 0.0) >= method.gamma_max > 0
        return terms["kl_forward"] / dimensions if "kl_forward" in terms and (forward or reverse) else None

    def free(terms: dict[str, float]) -> float | None:
        return terms["kl_forward"] / dimensions if "kl_forward" in terms and terms.get("beta") == 0 else None

    return [
        Watch(
            "kl_collapse",
            held,
            COLLAPSED_KL,
            above=False,
            text=f"the KL is {{mean:.1g}} nats per latent dimension {_OVER}: the posterior equals the prior, so the "
            "latents carry nothing; lower beta_max and gamma_max, lengthen their warm-up, or set kl_reduction=mean",
        ),
        Watch(
            "kl_leak",
            free,
            LEAKING_KL,
            above=True,
            text=f"beta is 0 and the KL is {{mean:.2g}} nats per latent dimension {_OVER}: the posterior holds what "
            "the prior cannot know (the answer), and inference has the prior alone; give beta_max a weight, or let "
            "beta_start come earlier",
        ),
    ]


@dataclass(frozen=True)
class Refusal:
    """A step that was not taken, and the samples of all ranks that may be why.

    They are those whose loss is not finite. Where every `loss` is finite and the gradient is not, they are all of the
    step: the sum of their gradients does not tell whose it was.
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
        """Takes optimiser step `done`, which was taken where `refusal` is None: what to say, and then to raise.

        There is an error where training is to stop, or has skipped `MAX_SKIPS` steps in a row.
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
        return [Advice("nonfinite", text, refusal.samples)], AmvlError(text) if stops else None
