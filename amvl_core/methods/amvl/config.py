"""AMVL: what the method says of itself without torch. Equation, table and appendix numbers are arXiv 2607.00461's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.method import Published
from amvl_core.contracts.sample import Segment, StoredSample
from amvl_core.contracts.watch import OVER, Watch
from amvl_core.methods.amvl.cost import AmvlCost
from amvl_core.methods.block import BlockMethod
from amvl_core.methods.masks import LaterMaskedMethod

if TYPE_CHECKING:
    from amvl_core.contracts.ablations import Table
    from amvl_core.contracts.analysis import Analysis
    from amvl_core.contracts.config import RunConfig

COLLAPSED_KL = 0.003
"""Nats per latent dimension: 1.5 a slot at d = 512, where the distances of the paper's Table 7 make 15 at sigma 1."""
WARM = 0.999
"""The share of its last value from which a weight counts as warmed up: it is logged as a sum of float32 shares."""
LEAKING_KL = 0.5
"""Nats per latent dimension, where no forward KL holds the prior to the posterior: some ten times the paper's."""


class AmvlMethod(LaterMaskedMethod, BlockMethod):
    """Asymmetric mutual variational learning (Eq. 10): L = L_NTP + beta L_fwd + gamma L_rev.

    Tables 3 and 9 set weights, to 0 where a term is left out; Table 9's numbers multiply `ntp_weight`, `beta_max` and
    `gamma_max`. "Reverse-first" (Table 3) starts gamma at 0 and beta at 1000.
    """

    kind: Literal["amvl"] = "amvl"
    label = "AMVL"
    has_latents = True
    draws_latents = True
    model_type = "amvl"
    steps_field, all_steps = "hidden_steps", "all"
    own_parts = ("prior_head.", "posterior_head.", "injector.")
    columns: ClassVar = {**BlockMethod.columns, "kl": ("kl_forward", "kl_reverse")}
    schedules = ("beta", "gamma")
    ntp_weight: float = Field(1.0, ge=0, description="weight of the next-token loss")
    beta_max: float = Field(1.0, ge=0, description="weight of KL(sg[q] || p) after its warm-up")
    beta_start: int = Field(0, ge=0, description="optimiser step at which beta leaves 0")
    beta_warmup: int = Field(2000, ge=1, description="optimiser steps from 0 to beta_max (App. E)")
    gamma_max: float = Field(0.5, ge=0, description="weight of KL(sg[p] || q) after its warm-up")
    gamma_start: int = Field(1000, ge=0, description="optimiser step at which gamma leaves 0 (App. E)")
    gamma_warmup: int = Field(2000, ge=1, description="optimiser steps from 0 to gamma_max (App. E)")
    kl_reduction: Literal["sum", "mean"] = Field("sum", description="over latent dimensions; Eq. 12 sums")
    stop_gradient_forward: bool = Field(True, description="sg on q in the forward KL (Table 10)")
    stop_gradient_reverse: bool = Field(True, description="sg on p in the reverse KL (Table 10)")
    posterior_positions: Literal["natural", "aligned"] = Field(
        "natural", description="position ids of the posterior's slots: behind y, or those of the prior's slots"
    )
    posterior_samples: int = Field(
        1, ge=1, description="draws of Z per sample, over which the next-token loss averages"
    )
    hidden_steps: Annotated[int, Field(ge=0)] | Literal["all"] = Field(
        0, description="first steps that the posterior alone sees: the slots take their place (decision 26)"
    )

    @model_validator(mode="after")
    def _some_objective(self) -> AmvlMethod:
        if self.ntp_weight == self.beta_max == self.gamma_max == 0:
            raise ValueError("ntp_weight, beta_max and gamma_max are all 0: nothing is left to learn from")
        return self

    def layout(self, sample: StoredSample, latent: LatentConfig) -> list[Segment]:
        """Prompt, block, hidden steps, remaining steps, answer."""
        prompt, block, *steps, answer = super().layout(sample, latent)
        hidden = [replace(step, kind="hidden") for step in steps[: self._hidden(sample)]]
        return [prompt, block, *hidden, *steps[len(hidden) :], answer]

    def lacks(self, sample: StoredSample) -> str | None:
        """Steps, where some are to be hidden."""
        return "steps" if self.hidden_steps != 0 and not sample.steps else None

    def answers_next(self, sample: StoredSample) -> bool:
        """Where no step remains that is written."""
        return self._hidden(sample) >= len(sample.steps)

    def _hidden(self, sample: StoredSample) -> int:
        return len(sample.steps) if self.hidden_steps == "all" else self.hidden_steps

    def cost(self, latent: LatentConfig) -> AmvlCost:
        """On a shared prefix, with as many draws as there are.

        Hidden steps count as if the decoder wrote them, because no plan knows how long they are: it takes less.
        """
        return AmvlCost(latent, self.posterior_samples)

    def watches(self, latent: LatentConfig) -> list[Watch]:
        """The KL per latent dimension: too small once a weight is warmed up, too large while the forward one is 0.

        Fresh heads make prior and posterior equal, so a small KL says nothing before that.
        """
        dimensions = latent.dim if self.kl_reduction == "sum" else 1

        def held(terms: dict[str, float]) -> float | None:
            forward = terms.get("beta", 0.0) >= WARM * self.beta_max > 0
            reverse = terms.get("gamma", 0.0) >= WARM * self.gamma_max > 0
            return terms["kl_forward"] / dimensions if "kl_forward" in terms and (forward or reverse) else None

        def free(terms: dict[str, float]) -> float | None:
            return terms["kl_forward"] / dimensions if "kl_forward" in terms and terms.get("beta") == 0 else None

        return [
            Watch(
                "kl_collapse",
                held,
                COLLAPSED_KL,
                above=False,
                text=f"the KL is {{mean:.1g}} nats per latent dimension {OVER}: the posterior equals the prior, so the "
                "latents carry nothing; lower beta_max and gamma_max, lengthen their warm-up, or set kl_reduction=mean",
            ),
            Watch(
                "kl_leak",
                free,
                LEAKING_KL,
                above=True,
                text=f"beta is 0 and the KL is {{mean:.2g}} nats per latent dimension {OVER}: the posterior holds what "
                "the prior cannot know (the answer), and inference has the prior alone; give beta_max a weight, or let "
                "beta_start come earlier",
            ),
        ]

    @classmethod
    def analysis(cls) -> Analysis:
        """Table 7, Figures 3 and 4, and information."""
        from amvl_core.methods.amvl.analysis.analysis import AmvlAnalysis

        return AmvlAnalysis()

    @classmethod
    def presets(cls) -> dict[str, Callable[[], RunConfig]]:
        """The paper's run, the demo, and the base of the ablation tables at the demo's size."""
        from amvl_core.methods.amvl import presets

        return {"paper": presets.paper, "demo": presets.demo, "ablation": presets.ablation}

    @classmethod
    def published(cls) -> Published:
        """Tables 1, 2 and 6."""
        from amvl_core.methods.amvl.published import PUBLISHED

        return PUBLISHED

    @classmethod
    def tables(cls) -> dict[str, Table]:
        """Tables 3, 4, 8, 9, 10 and 11 of the paper, and the controls."""
        from amvl_core.methods.amvl.tables import TABLES

        return TABLES


CONFIG = AmvlMethod
