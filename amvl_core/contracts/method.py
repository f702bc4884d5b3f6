"""What a method says of itself without torch: its fields, its layout, and what hangs on it elsewhere.

A method is a package below `amvl_core/methods/`. Its `config.py` has one class `CONFIG`, a `MethodConfig`; its
`method.py` has one class `METHOD`, the module that is trained. No other room imports either: all of them ask the
configuration, which loads the rest on demand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

from amvl_core.contracts.encoders import EncoderConfig
from amvl_core.contracts.frozen import Settings
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.sample import Segment, Shown, StoredSample, reply
from amvl_core.contracts.watch import Watch

if TYPE_CHECKING:
    from amvl_core.contracts.ablations import Table
    from amvl_core.contracts.analysis import Analysis
    from amvl_core.contracts.config import RunConfig
    from amvl_core.methods.cost import Cost

METHODS = ("sft", "pause", "markers", "amvl", "valr", "coconut", "lvr", "codi", "mull", "monet")
"""The packages below `amvl_core/methods/`. A new method is one of them and one word here."""


Published: TypeAlias = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Scores in per cent: benchmark -> its metric -> model -> score."""


class MethodConfig(Settings):
    """The defaults of everything that a method may say: those of plain fine-tuning."""

    kind: str

    label: ClassVar[str]
    """What tables call a model that this method trained."""
    has_latents: ClassVar[bool] = False
    """Whether its models are asked again with changed latents, and analysed. Such a method has a `Prober`."""
    draws_latents: ClassVar[bool] = False
    """Whether its latents have a distribution that `evaluation.tau` draws from (`Method.drawn`)."""
    writes_blocks: ClassVar[bool] = False
    """Whether its models write latent blocks into their replies, so that `evaluation.latent_mode` means something."""
    model_type: ClassVar[str | None] = None
    """The Hugging Face model type of its checkpoints. None: a stock base model."""
    own_parts: ClassVar[tuple[str, ...]] = ()
    """What the names of its own trained parameters begin with, which a stock model does not have."""
    columns: ClassVar[Mapping[str, tuple[str, ...]]] = {"loss": ("loss",), "ntp": ("ntp",)}
    """Columns of a progress line -> the logged terms that stand in each."""
    schedules: ClassVar[tuple[str, ...]] = ()
    """Logged weights of its terms that change while it trains."""
    steps_field: ClassVar[str | None] = None
    """Its field that says how many first steps of a sample are gone, where it has one: a number, or `all_steps`."""
    all_steps: ClassVar[str | None] = None
    reserved: ClassVar[str | None] = None
    """A regular expression of its control tokens: a text that holds one would be read as structure."""

    @property
    def sequences(self) -> int:
        """Sequences that a step runs of a sample; each holds what the sample has in its shard, at most."""
        return 1

    def slots(self, latent: LatentConfig) -> list[str]:
        """The tokens of a latent block in order; empty without a block."""
        return []

    def for_training(self, sample: StoredSample, latent: LatentConfig) -> Self:
        """The settings with which a sample is laid out to train, where a stage draws some for each sample."""
        return self

    def layout(self, sample: StoredSample, latent: LatentConfig) -> list[Segment]:
        """The training sequence of a sample: prompt, then what the model is to write. No text is changed."""
        return [Segment("prompt", sample.question), *self.reply(sample)]

    def reply(self, sample: StoredSample) -> list[Segment]:
        """What the model is to write where no block stands in it: each step as a line, then the answer."""
        return reply(sample)

    def teacher(self, sample: StoredSample, latent: LatentConfig) -> list[Segment] | None:
        """A second sequence of a sample that training runs beside the first. None: there is none.

        `sequences` is then 2.
        """
        return None

    def shown(self, sample: StoredSample) -> Sequence[Shown]:
        """What stands in the sequence in the places for images, in order."""
        return range(len(sample.images))

    def shown_to_teacher(self, sample: StoredSample) -> Sequence[Shown]:
        """The same for the second sequence."""
        return range(len(sample.images))

    def lacks(self, sample: StoredSample) -> str | None:
        """What a sample, given without its images, does not have that latents are trained on. None: nothing.

        A dataset of which every training sample lacks it is refused.
        """
        return None

    def answers_next(self, sample: StoredSample) -> bool:
        """Whether a model that it trained writes the answer to such a sample first, without a step before it."""
        return not sample.steps

    def added_tokens(self, latent: LatentConfig) -> int:
        """How many tokens the layout adds to what a sample has in its shard, at most."""
        return 0

    def further_tokens(self, latent: LatentConfig) -> int:
        """How many tokens its model writes into a reply besides steps, answer and blocks with slots, at most."""
        return 0

    def cost(self, latent: LatentConfig) -> Cost:
        """What a training step takes, for the planner: that of one plain row."""
        cost: Cost = import_module("amvl_core.methods.cost").Cost(self.added_tokens(latent))
        return cost

    @property
    def bottleneck(self) -> bool:
        """Whether nothing but latent slots attends to images (`amvl_core/methods/masks.py`)."""
        return False

    @property
    def aligned_with(self) -> tuple[EncoderConfig, ...]:
        """Frozen encoders whose features of the images that blocks are about (`Segment.image`) its loss needs."""
        return ()

    def problem(self, latent: LatentConfig, num_layers: int | None, zero_stage: int) -> str | None:
        """What is wrong with these settings for this method, and what to do; None: nothing is.

        `num_layers` are the base model's decoder layers, where they are known before it is loaded.
        """
        return None

    def follows(self, before: MethodConfig) -> bool:
        """Whether a stage may start from the checkpoint of `before`: one of the same kind, or of a stock model.

        A stock model that has been given a block keeps it in its prompts, so only a method with a block may follow.
        """
        return before.kind == self.kind or (before.model_type is None and bool(self.reserved or not before.reserved))

    def starts_from(self, before: Sequence[MethodConfig]) -> int | None:
        """Which of the stages before, given by their methods in order, a stage of it starts from; None: the base model.

        Raises ValueError where the one that it needs is not among them.
        """
        return len(before) - 1 if before else None

    def taught_by(self, before: Sequence[MethodConfig]) -> int | None:
        """Which of them gives it a frozen teacher (`Method.equip`). None: it has none. Raises as `starts_from`."""
        return None

    def watches(self, latent: LatentConfig) -> list[Watch]:
        """What can go wrong with its terms while it trains."""
        return []

    @classmethod
    def analysis(cls) -> Analysis | None:
        """What is measured of its latents, and how it is shown. None: nothing is."""
        return None

    @classmethod
    def presets(cls) -> dict[str, Callable[[], RunConfig]]:
        """Whole configurations that end with this method, by name."""
        return {}

    @classmethod
    def tables(cls) -> dict[str, Table]:
        """Ablation tables of runs that end with this method, by name."""
        return {}

    @classmethod
    def published(cls) -> Published:
        """The scores in its paper, to stand beside ours."""
        return {}

    @classmethod
    def control(cls, config: RunConfig) -> tuple[str, RunConfig] | None:
        """A run without latents to hold `config` against, and what tables call it. None: this method is no control.

        The faithfulness suite asks the trained control for `logits(batch)`, as `Sft` gives them.
        """
        return None

    @classmethod
    def is_control(cls) -> bool:
        """Whether `control` gives one."""
        return cls.control.__func__ is not MethodConfig.control.__func__  # type: ignore[attr-defined]

    @classmethod
    def implementation(cls) -> Any:
        """The class that trains (`amvl_core/methods/method.py`). Imports torch."""
        return import_module(f"{cls.__module__.rpartition('.')[0]}.method").METHOD


@cache
def configurations() -> dict[str, type[MethodConfig]]:
    """The configuration of every method, by its name."""
    return {name: import_module(f"amvl_core.methods.{name}.config").CONFIG for name in METHODS}


@cache
def _control_tokens() -> re.Pattern[str]:
    reserved = [method.reserved for method in configurations().values() if method.reserved]
    return re.compile("|".join([r"<\|[a-z_]+\|>", r"\x00", *dict.fromkeys(reserved)]))


def control_token(text: str) -> str | None:
    """The first control token of a base model or of any method in `text`, which would be read as structure."""
    found = _control_tokens().search(text)
    return found.group() if found else None
