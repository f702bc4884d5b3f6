"""Where latents are needed: methods against the number of dependent steps (docs/experiments/latents.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

from amvl_core.contracts.config import RunConfig, StageConfig, override
from amvl_core.contracts.encoders import EncoderConfig
from amvl_core.contracts.method import MethodConfig
from amvl_core.contracts.sources import DependentTask
from amvl_core.experiments.experiment import Arm, Experiment
from amvl_core.experiments.shared import questions, shared, stage
from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.coconut.config import CoconutMethod
from amvl_core.methods.codi.config import CodiMethod
from amvl_core.methods.curriculum import curriculum
from amvl_core.methods.lvr.config import LvrMethod
from amvl_core.methods.markers.config import MarkersMethod
from amvl_core.methods.monet.config import MonetMethod
from amvl_core.methods.mull.config import MullMethod
from amvl_core.methods.pause.config import PauseMethod
from amvl_core.methods.sft.config import SftMethod
from amvl_core.methods.valr.config import ValrMethod

MOVES = 8
"""The most dependent steps of a question. Every method has a slot for each of them."""
SHARED, SMALL_SHARED = 2000, 1500
"""Optimiser steps of the stage that all arms start from, with steps in words; with up to three steps the second."""
STEPS, TRIED = 5400, 1080
"""Optimiser steps of each arm behind the shared ones, and of each training that only tries a learning rate."""
SMALL_STEPS = 1920
"""Of each arm where questions have one to three dependent steps."""
LONG_LAST = 3840
"""Of the last stage of a curriculum where it is long: four times that of `latents-small`."""
QUICK_SHARED, QUICK_STEPS = 1000, 1080
"""Where questions have one or two."""
MIX = 0.3
"""The share of samples whose number of replaced steps is drawn."""
VALIDATION_SEED = 1
"""Of the generated questions on which learning rates are chosen; those of the test split have seed 0."""
LEARNED = 0.9
"""Of steps in words: without them there is no ceiling, and nothing that latents could take the place of."""
SHOWN = (
    "SFT, steps in words",
    "SFT, bare answers",
    "SFT, curriculum",
    "pause tokens, curriculum",
    "Coconut",
    "CODI",
    "VaLR, bare answers",
    "VaLR, bare answers, no alignment",
    "AMVL, hidden steps, curriculum",
)
"""The arms of `latents-small` on any task, and of `latents-eight`."""
UNUSED = 64
"""Training samples beside the validation questions: a dataset has some, and nothing is trained on these."""


def _once(name: str, method: MethodConfig, steps: int) -> Mapping[str, StageConfig]:
    return {name: stage(method, steps)}


def _amvl(steps: int, **fields: Any) -> AmvlMethod:
    """AMVL with its schedules in the proportions of the demo's."""
    warm = {"beta_warmup": steps // 2, "gamma_start": steps // 4, "gamma_warmup": steps // 2}
    return AmvlMethod(kl_reduction="mean", **warm, **fields)


def _valr(**fields: Any) -> ValrMethod:
    encoders = tuple(EncoderConfig(name=kind, source=f"tiny:{kind}", size=64) for kind in ("dinov3", "siglip"))
    return ValrMethod(encoders=encoders, align_layer=2, projector_width=128, interpolation="linear", **fields)


def _mull(steps: int) -> Mapping[str, StageConfig]:
    """Its two stages."""
    return {f"mull_{number}": stage(MullMethod(guided=number == 1, image_size=64), steps // 2) for number in (1, 2)}


def _monet(steps: int) -> Mapping[str, StageConfig]:
    """Its three stages, of which the last goes on from the first."""
    methods = [MonetMethod.model_validate({"stage": number, "crop_tokens": 4}) for number in (1, 2, 3)]
    return {f"monet_{method.stage}": stage(method, steps // 3) for method in methods}


def _arms(steps: int, most: int = MOVES) -> tuple[Arm, ...]:
    """Every arm, each of `steps` optimiser steps. In a curriculum `most` dependent steps leave the reply one by one."""

    def in_stages(name: str, method: MethodConfig) -> Mapping[str, StageConfig]:
        return curriculum(name, stage(method, steps // (most + 1)), most)

    hidden = _amvl(steps // (most + 1))
    pause = PauseMethod(slots_per_step=1, stage_mix=MIX)
    return (
        Arm("SFT, steps in words", "ceiling", _once("sft", SftMethod(), steps), writes=True),
        Arm("SFT, bare answers", "control", _once("bare", SftMethod(replaced_steps=None), steps)),
        Arm("SFT, curriculum", "control", in_stages("bare", SftMethod())),
        Arm("markers only", "control", _once("markers", MarkersMethod(replaced_steps=None), steps)),
        Arm("pause tokens", "control", _once("pause", PauseMethod(replaced_steps=None), steps)),
        Arm("pause tokens, curriculum", "control", in_stages("pause", pause)),
        Arm("Coconut", "latent", in_stages("coconut", CoconutMethod(slots_per_step=1, stage_mix=MIX))),
        Arm("CODI", "latent", _once("codi", CodiMethod(), steps)),
        Arm("LVR", "latent", _once("lvr", LvrMethod(max_slots=16, latent_steps=most), steps)),
        Arm("VaLR, bare answers", "latent", _once("valr", _valr(replaced_steps=None), steps)),
        Arm(
            "VaLR, bare answers, no alignment",
            "latent",
            _once("valr", _valr(replaced_steps=None, align_weight=0.0), steps),
        ),
        Arm("Mull-Tokens", "latent", _mull(steps)),
        Arm("AMVL, hidden steps", "latent", _once("amvl", _amvl(steps, hidden_steps="all"), steps)),
        Arm("AMVL, hidden steps, curriculum", "latent", in_stages("amvl", hidden)),
        Arm("markers only, steps in words", "control", _once("markers", MarkersMethod(), steps), writes=True),
        Arm("pause tokens, steps in words", "control", _once("pause", PauseMethod(), steps), writes=True),
        Arm("VaLR", "latent", _once("valr", _valr(), steps), writes=True),
        Arm("VaLR, no alignment", "latent", _once("valr", _valr(align_weight=0.0), steps), writes=True),
        Arm("Monet", "latent", _monet(steps), writes=True),
        Arm("AMVL", "latent", _once("amvl", _amvl(steps), steps), writes=True),
    )


def _masked(stage: StageConfig) -> StageConfig:
    return stage.model_copy(update={"method": stage.method.model_copy(update={"mask": "bottleneck"})})


def _masked_at_first(stages: Mapping[str, StageConfig], halved: Mapping[str, StageConfig]) -> Mapping[str, StageConfig]:
    """The same steps, the first stages under the mask; `halved` has the same stages with half as many steps.

    Of several stages it is those that end within the first half of the steps. A single stage is two of half its length.
    """
    if len(stages) == 1:
        return {**{f"{name}_masked": _masked(stage) for name, stage in halved.items()}, **halved}
    ends = list(accumulate(stage.steps or 0 for stage in stages.values()))
    hidden = [name for name, end in zip(stages, ends, strict=True) if 2 * end <= ends[-1]]
    return {name: _masked(stage) if name in hidden else stage for name, stage in stages.items()}


def _arms_under_the_mask(steps: int, most: int = MOVES) -> Iterator[Arm]:
    """The ceiling as it is; every arm with bare answers, with the mask from first to last and in the first half."""
    for arm, halved in zip(_arms(steps, most), _arms(steps // 2, most), strict=True):
        if arm.role == "ceiling":
            yield arm
        elif not arm.writes:
            masked = {name: _masked(stage) for name, stage in arm.stages.items()}
            yield arm._replace(label=f"{arm.label}, bottleneck", stages=masked)
            yield arm._replace(
                label=f"{arm.label}, bottleneck then full", stages=_masked_at_first(arm.stages, halved.stages)
            )


def latents() -> Experiment:
    """Every method, and every control, that sees the image as usual."""
    return Experiment(
        "Where latents are needed",
        shared((1, MOVES), train=16000, test=1600, steps=SHARED),
        _arms(STEPS),
        rates=(3e-4, 1e-3),
        tried=_arms(TRIED),
        validation=questions((1, MOVES), train=UNUSED, test=800, seed=VALIDATION_SEED),
        seeds=3,
        learned=LEARNED,
    )


def latents_eight() -> Experiment:
    """A few arms of `latents`, one learning rate, one seed."""
    whole = latents()
    return whole._replace(
        title="Where latents are needed, up to eight steps",
        arms=tuple(arm for arm in whole.arms if arm.label in SHOWN),
        rates=(1e-3,),
        tried=(),
        validation={},
        seeds=1,
    )


def latents_bottleneck() -> Experiment:
    """The arms with bare answers where nothing but slots sees the image, all the time or in the first half."""
    return latents()._replace(
        title="Where latents are needed: the image through slots alone",
        arms=tuple(_arms_under_the_mask(STEPS)),
        tried=tuple(_arms_under_the_mask(TRIED)),
    )


def _at_one_rate(title: str, config: RunConfig, arms: tuple[Arm, ...]) -> Experiment:
    """One learning rate, one seed."""
    return Experiment(title, config, arms, rates=(1e-3,), tried=(), validation={}, seeds=1, learned=LEARNED)


def _up_to_three(title: str, arms: tuple[Arm, ...], task: DependentTask = "chain") -> Experiment:
    """Questions of one to three dependent steps."""
    return _at_one_rate(title, shared((1, 3), train=16000, test=600, steps=SMALL_SHARED, task=task), arms)


def latents_medium() -> Experiment:
    """Every arm of `latents`, with up to three steps."""
    return _up_to_three("Where latents are needed, medium", _arms(SMALL_STEPS, most=3))


def latents_small(task: DependentTask = "chain") -> Experiment:
    """A few arms of `latents-medium`, on any task: the whole in about half an hour on two cores."""
    arms = tuple(arm for arm in latents_medium().arms if arm.label in SHOWN)
    return _up_to_three(f"Where latents are needed, small: {task}", arms, task)


def latents_small_long() -> Experiment:
    """A few arms of `latents-small` that stay in the last stage for longer: whether a third step only wants time."""
    shown = (
        "SFT, steps in words",
        "SFT, curriculum",
        "pause tokens, curriculum",
        "Coconut",
        "VaLR, bare answers, no alignment",
    )
    arms = [_with_long_last(arm) for arm in latents_small().arms if arm.label in shown]
    return _up_to_three("Where latents are needed, small, with a long last stage", tuple(arms))


def _with_long_last(arm: Arm) -> Arm:
    """The last stage of a curriculum has `LONG_LAST` steps; an arm of one stage has as many steps in all."""
    *before, last = arm.stages
    steps = LONG_LAST if before else LONG_LAST + 2 * (SMALL_STEPS // 4)
    return arm._replace(stages={**arm.stages, last: arm.stages[last].model_copy(update={"steps": steps})})


def latents_quick() -> Experiment:
    """The least that shows a latent at work: one or two steps, the ceiling, two controls and Coconut."""
    shown = ("SFT, steps in words", "SFT, bare answers", "pause tokens, curriculum", "Coconut")
    arms = tuple(arm for arm in _arms(QUICK_STEPS, most=2) if arm.label in shown)
    config = shared((1, 2), train=16000, test=400, steps=QUICK_SHARED)
    return _at_one_rate("Where latents are needed, quick", config, arms)


def latents_small_bottleneck() -> Experiment:
    """The ceiling, the blind, the control and the latent arms of `latents-small` with the image behind the slots."""
    shown = (
        "SFT, steps in words",
        "SFT, curriculum",
        "pause tokens, curriculum",
        "Coconut",
        "VaLR, bare answers",
        "AMVL, hidden steps, curriculum",
    )
    labels = {label + mask for label in shown for mask in ("", ", bottleneck", ", bottleneck then full")}
    arms = tuple(arm for arm in _arms_under_the_mask(SMALL_STEPS, most=3) if arm.label in labels)
    return _up_to_three("Where latents are needed, small: the image through slots alone", arms)


def latents_wording() -> Experiment:
    """Whether a slot helps where no step begins with its result: one slot, and as many slots as a step has words."""
    most, words, steps = 3, 3, SMALL_STEPS

    def in_stages(name: str, method: MethodConfig) -> Mapping[str, StageConfig]:
        """The last stage counts its steps, so that it has slots for each, and not all of `latent.num_slots`."""
        stages = curriculum(name, stage(method, steps // (most + 1)), most)
        last = stages[f"{name}_{most}"]
        counted = last.method.model_copy(update={"replaced_steps": most})
        return {**stages, f"{name}_{most}": last.model_copy(update={"method": counted})}

    arms = [
        Arm("SFT, steps in words", "ceiling", _once("sft", SftMethod(), steps), writes=True),
        Arm("SFT, curriculum", "control", in_stages("bare", SftMethod())),
    ]
    for slots, said in ((1, "one slot a step"), (words, "three slots a step")):
        mixed = {"slots_per_step": slots, "stage_mix": MIX}
        arms += [
            Arm(f"pause tokens, {said}", "control", in_stages("pause", PauseMethod.model_validate(mixed))),
            Arm(f"Coconut, {said}", "latent", in_stages("coconut", CoconutMethod.model_validate(mixed))),
        ]
    found = _up_to_three("Where latents are needed: the wording of steps", tuple(arms), "relay")
    return found._replace(shared=override(found.shared, {"latent": {"num_slots": most * words}}))
