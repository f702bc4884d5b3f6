"""The experiments as written down: one start, equal steps, settings that are possible, roles that fit the methods."""

from __future__ import annotations

import pytest

from amvl_core.contracts.config import StageConfig
from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.sources import MicroworldSource
from amvl_core.experiments import EXPERIMENTS, experiment
from amvl_core.experiments.experiment import at_rate, difficulty
from amvl_core.methods.amvl.config import AmvlMethod

NAMES = list(EXPERIMENTS)


@pytest.mark.parametrize("name", NAMES)
def test_arms_start_alike_train_as_long_and_are_possible(name: str) -> None:
    found = experiment(name)
    shared = list(found.shared.stages)
    runs = {arm.label: arm.of(found.shared) for arm in found.arms}
    assert len(runs) == len(found.arms)
    lengths = set()
    for run in runs.values():
        assert list(run.stages)[: len(shared)] == shared
        assert [run.stages[stage] for stage in shared] == list(found.shared.stages.values())
        own = [stage for stage in run.stages if stage not in shared]
        lengths.add(sum(run.stages[stage].steps or 0 for stage in own))
        assert all(run.stages[stage].global_batch == 32 for stage in own)
        for stage in own:
            assert run.stages[stage].method.problem(run.latent, 4, 0) is None
    assert len(lengths) == 1
    assert lengths != {0}


@pytest.mark.parametrize("name", NAMES)
def test_rates_are_tried_on_the_same_arms_with_fewer_steps(name: str) -> None:
    found = experiment(name)
    assert [arm._replace(stages={}) for arm in found.tried] == (
        [arm._replace(stages={}) for arm in found.arms] if len(found.rates) > 1 else []
    )
    for tried, arm in zip(found.tried, found.arms, strict=False):
        assert tried.stages.keys() == arm.stages.keys()
        assert {sum(stage.steps or 0 for stage in each.stages.values()) for each in (tried, arm)} == {1080, 5400}
        assert {type(stage.method) for stage in tried.stages.values()} == {
            type(stage.method) for stage in arm.stages.values()
        }


@pytest.mark.parametrize("name", NAMES)
def test_roles_follow_from_the_methods(name: str) -> None:
    """Latent arms are those with latents; an arm writes as much as its last stage leaves of the steps."""
    found = experiment(name)
    for arm in found.arms:
        method = list(arm.stages.values())[-1].method
        assert (arm.role == "latent") == method.has_latents, arm.label
        assert arm.role != "latent" or any(one.role == "control" and one.writes == arm.writes for one in found.arms)
        gone = {getattr(method, field, 0) for field in ("replaced_steps", "hidden_steps")}
        assert arm.writes == (gone == {0}), arm.label


def test_the_image_is_behind_the_slots_in_all_steps_or_in_the_first_half() -> None:
    plain, found = experiment("latents"), experiment("latents-bottleneck")
    arms, bare = {arm.label: arm for arm in found.arms}, [arm for arm in plain.arms if not arm.writes]
    assert len(arms) - 1 == 2 * len(bare) == 26
    assert found.arms[0] == plain.arms[0]
    assert found._replace(title=plain.title, arms=plain.arms, tried=plain.tried) == plain
    for arm in bare:
        whole, half = (arms[f"{arm.label}, {when}"] for when in ("bottleneck", "bottleneck then full"))
        assert (whole.role, half.role) == (arm.role, arm.role)
        assert list(whole.stages) == list(arm.stages)
        stages = list(whole.stages.values())
        assert all(stage.method.bottleneck for stage in stages)
        assert [unmasked(stage) for stage in stages] == list(arm.stages.values())
        masks = [stage.method.bottleneck for stage in half.stages.values()]
        assert masks == [number < len(masks) // 2 for number in range(len(masks))]
        if len(arm.stages) > 1:
            assert [unmasked(stage) for stage in half.stages.values()] == list(arm.stages.values())
        else:
            first, second = half.stages.values()
            assert unmasked(first) == second


def test_the_small_arms_are_behind_the_mask_in_all_steps_or_in_half_of_them() -> None:
    small, found = experiment("latents-small"), experiment("latents-small-bottleneck")
    plain = {arm.label: arm for arm in small.arms}
    assert found._replace(title=small.title, arms=small.arms) == small
    assert [arm.role for arm in found.arms].count("latent") == 6
    for arm in found.arms[1:]:
        label, _, when = arm.label.rpartition(", ")
        masked = sum(stage.steps or 0 for stage in arm.stages.values() if stage.method.bottleneck)
        assert masked == {"bottleneck": 1920, "bottleneck then full": 960}[when]
        assert (arm.role, list(arm.stages)[-1]) == (plain[label].role, list(plain[label].stages)[-1])


def test_schedules_of_a_stage_in_two_are_half_as_long() -> None:
    (arm,) = [
        arm for arm in experiment("latents-bottleneck").arms if arm.label == "AMVL, hidden steps, bottleneck then full"
    ]
    for stage in arm.stages.values():
        method = stage.method
        assert isinstance(method, AmvlMethod)
        assert (method.gamma_start, method.beta_warmup, method.gamma_warmup, stage.steps) == (675, 1350, 1350, 2700)


def unmasked(stage: StageConfig) -> StageConfig:
    return stage.model_copy(update={"method": stage.method.model_copy(update={"mask": "full"})})


def test_validation_questions_are_others() -> None:
    found = experiment("latents")
    (asked,) = found.validated_on(found.shared).data.sources
    (used,) = found.shared.data.sources
    assert isinstance(asked, MicroworldSource)
    assert isinstance(used, MicroworldSource)
    assert (asked.tasks, asked.difficulty) == (used.tasks, used.difficulty)
    assert asked.seed != used.seed


def test_medium_and_small_share_their_trainings() -> None:
    medium, small = experiment("latents-medium"), experiment("latents-small")
    assert [arm.label for arm in medium.arms] == [arm.label for arm in experiment("latents").arms]
    assert small._replace(title=medium.title, arms=medium.arms) == medium
    assert 0 < len(small.arms) < len(medium.arms)
    assert all(arm in medium.arms for arm in small.arms)


def test_the_long_arms_have_equal_steps_and_share_all_stages_but_the_last() -> None:
    small, found = experiment("latents-small"), experiment("latents-small-long")
    assert found._replace(title=small.title, arms=small.arms) == small
    plain = {arm.label: arm for arm in small.arms}
    for arm in found.arms:
        assert sum(stage.steps or 0 for stage in arm.stages.values()) == 4800
        *before, last = arm.stages
        assert all(arm.stages[name] == plain[arm.label].stages[name] for name in before)
        short = plain[arm.label].stages[last]
        assert arm.stages[last] == short.model_copy(update={"steps": arm.stages[last].steps})


def test_up_to_eight_steps_it_is_the_small_arms_as_the_whole_experiment_trains_them() -> None:
    whole, found = experiment("latents"), experiment("latents-eight")
    assert found.shared == whole.shared
    assert [arm.label for arm in found.arms] == [arm.label for arm in experiment("latents-small").arms]
    assert all(arm in whole.arms for arm in found.arms)


def test_a_rate_is_that_of_an_arms_own_stages() -> None:
    found = experiment("latents")
    run = next(arm for arm in found.arms if arm.label == "Coconut").of(found.shared)
    changed = at_rate(run, found.shared.stages, 0.25)
    assert {name: stage.lr for name, stage in changed.stages.items()} == {
        "steps": found.shared.stages["steps"].lr,
        **dict.fromkeys([f"coconut_{number}" for number in range(1, 9)], 0.25),
    }


def test_a_task_says_its_steps_and_a_wrong_name_is_refused() -> None:
    assert difficulty("microworld/chain_12") == 12
    with pytest.raises(ConfigError, match="no experiment 'lattents'; choose one of latents, latents-bottleneck, "):
        experiment("lattents")
