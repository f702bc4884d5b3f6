import json
from dataclasses import replace
from typing import Any

import pytest

from amvl_core.contracts.config import RunConfig, override
from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.overrides import parse
from amvl_core.contracts.presets import PRESETS
from amvl_core.methods.amvl.presets import demo, paper
from infra.plan.__main__ import main
from infra.plan.machines import MACHINES
from infra.plan.planner import Plan, _Job, plan
from infra.plan.shapes import PUBLISHED, model_shape
from infra.plan.show import text
from infra.plan.workload import Workload

LOAD = Workload(rows=450_000, prompt=1024, answer=128, labels=128, images=1, image_tokens=900, longest=4096)
SEVENTY_TWO = {"model": {"base": "Qwen/Qwen2.5-VL-72B-Instruct"}}


def changed(path: str, value: Any, config: RunConfig | None = None) -> RunConfig:
    nested: Any = value
    for name in reversed(path.split(".")):
        nested = {name: nested}
    return override(config or paper(), nested)


def amvl(config: RunConfig, gpu: str = "A100-80GB", **options: Any) -> Any:
    return plan(config, MACHINES[gpu], workload=LOAD, **options).stages["amvl"]


def test_the_paper_s_run_fits_its_gpus_and_no_smaller_ones() -> None:
    assert amvl(paper()).fits
    assert amvl(paper()).memory_gib["weights"] == pytest.approx(8_302_398_465 * 2 / 2**30, abs=1e-3)
    small = amvl(changed("cluster.num_workers", 8), "A100-40GB")
    assert not small.fits
    assert small.limited_by == "memory"


def test_the_change_that_is_named_makes_it_fit_and_is_the_only_field() -> None:
    config = changed("cluster.num_workers", 8)
    small = amvl(config, "A100-40GB")
    assert len(small.change.fields) == 1
    for path, value in small.change.fields.items():
        config = changed(path, value, config)
    again = amvl(config, "A100-40GB")
    assert again.fits
    assert again.needed_gib == small.change.gib


def test_offload_is_proposed_where_nothing_cheaper_fits() -> None:
    """A 7B run on two 40 GB GPUs: shards of the states are too large for them at any stage."""
    config = override(paper(), {"cluster": {"num_workers": 2}, "trainer": {"zero_stage": 3}})
    few = amvl(config, "A100-40GB")
    assert few.change.fields == {"trainer.offload": "optimizer"}
    assert few.host_gib == 0
    again = amvl(changed("trainer.offload", "optimizer", config), "A100-40GB")
    assert again.fits
    assert again.needed_gib == few.change.gib
    assert again.memory_gib["optimiser"] == again.memory_gib["gradients"] == 0
    assert again.host_gib > few.memory_gib["optimiser"] * 2
    page = text(plan(changed("trainer.offload", "optimizer", config), MACHINES["A100-40GB"], workload=LOAD))
    assert "memory of a node's CPUs" in page


def test_no_change_needs_another_change_of_zero_first() -> None:
    """Offload is named with the ZeRO stage that it needs."""
    config = override(paper(), {"cluster": {"num_workers": 1}, "trainer": {"zero_stage": 0}})
    fields = amvl(config, "A100-40GB").change.fields
    assert fields["trainer.offload"] != "none"
    override(config, {"trainer": {path.split(".")[1]: v for path, v in fields.items() if path.startswith("trainer")}})


def test_gradients_that_wait_are_not_shared_by_any_zero_stage_and_amvl_has_none() -> None:
    found = plan(override(PRESETS["valr"](), SEVENTY_TWO), workload=LOAD)
    stage = found.stages["valr"]
    assert stage.memory_gib["waiting gradients"] > MACHINES["A100-80GB"].memory_gib
    assert stage.change is None
    assert "GiB are gradients that wait, whatever ZeRO shares" in text(found, width=200)
    large = changed("trainer.zero_stage", 3, override(paper(), SEVENTY_TWO))
    assert amvl(large).memory_gib["waiting gradients"] == 0
    assert amvl(changed("cluster.num_workers", 32, large)).fits


def test_zero_3_starts_with_one_whole_weight_beside_the_shares() -> None:
    """In float32 each of the 8 workers of a node makes its own weights."""
    whole, largest = 8_302_398_465 * 2 / 2**30, 152064 * 3584 * 2 / 2**30
    below, shared = amvl(paper()), amvl(changed("trainer.zero_stage", 3))
    assert below.start_gib == below.start_host_gib == shared.start_host_gib == pytest.approx(whole, abs=0.01)
    assert shared.start_gib == pytest.approx(whole / 16 + largest, abs=0.01)
    assert amvl(changed("trainer.precision", "fp32")).start_host_gib == pytest.approx(16 * whole, abs=0.01)


def test_an_evaluation_has_the_whole_model_on_one_gpu() -> None:
    """Weights, keys and values of 16 questions with 512 tokens each, one layer of 32,768 tokens, the reserve."""
    found = plan(paper(), workload=LOAD)
    cached, made = 2 * 28 * 512 * (32768 + 16 * 512), (3 * 18944 + 2 * 3584) * 32768
    assert found.evaluation.needed_gib == pytest.approx((8_302_398_465 + cached + made) * 2 / 2**30 + 3, abs=0.01)
    assert found.fits and "evaluation fits one GPU (24.6 GiB" in text(found)
    tight = plan(paper(), replace(MACHINES["A100-80GB"], memory_gib=24), workload=LOAD)
    assert tight.evaluation.fitting_tokens == 16384 and not tight.evaluation.fits
    assert "evaluation does not fit one GPU: it needs 24.6 GiB" in text(tight)
    change = "--param evaluation.batch_tokens=16384 or --param cluster.evaluation_gpus=2 makes it fit"
    assert change in text(tight, width=300)


def test_a_run_whose_stages_fit_and_whose_evaluation_does_not_does_not_fit() -> None:
    large = override(paper(), {**SEVENTY_TWO, "trainer": {"zero_stage": 3}, "cluster": {"num_workers": 64}})
    found = plan(large, workload=LOAD)
    assert all(stage.fits for stage in found.stages.values()) and not found.fits
    assert "it needs 158.7 GiB; ZeRO shares nothing there" in text(found, width=300)
    assert "the GPU has 79.2; --param cluster.evaluation_gpus=3 makes it fit" in text(found, width=300)
    small = text(plan(large, replace(MACHINES["A100-80GB"], memory_gib=20), workload=LOAD), width=300)
    assert "no evaluation.batch_tokens and no cluster.evaluation_gpus makes it fit" in small


def test_an_evaluation_on_several_gpus_has_its_layers_on_them() -> None:
    """Embeddings, LM head, vision encoder and heads lie on the first of three with 25 layers, which is the fullest."""
    large = override(paper(), {**SEVENTY_TWO, "trainer": {"zero_stage": 3}, "cluster": {"num_workers": 64}})
    config = override(large, {"cluster": {"evaluation_gpus": 3}})
    found, shape = plan(config, workload=LOAD), PUBLISHED["Qwen/Qwen2.5-VL-72B-Instruct"].text
    cached, made = 2 * shape.kv_size * (32768 + 16 * 512), (3 * shape.intermediate_size + 2 * 8192) * 32768
    rest = sum(found.parameters.values()) - 80 * shape.layer
    needed = rest + 25 * (shape.layer + cached) + made
    assert found.evaluation.needed_gib == pytest.approx(needed * 2 / 2**30 + 3, abs=0.01)
    assert found.fits and "evaluation fits 3 GPUs a model (60.2 GiB each; ZeRO" in text(found, width=300)
    more = plan(override(large, {"cluster": {"evaluation_gpus": 12}}), workload=LOAD)
    assert not more.fits and "12 GPUs a model, and a node has 8; set cluster" in text(more, width=300)


def test_checkpointing_trades_memory_for_flops() -> None:
    without = amvl(changed("trainer.gradient_checkpointing", False))
    with_it = amvl(paper())
    assert with_it.memory_gib["activations"] < without.memory_gib["activations"] / 5
    # Three passes over the weights (forward, two in backward) become four; the frozen vision encoder is run once.
    ratio = with_it.flops_per_step["shared_prefix"] / without.flops_per_step["shared_prefix"]
    assert 1.25 < ratio < 4 / 3


def test_the_shared_prefix_against_three_passes_is_the_limit_of_the_step_benchmark() -> None:
    """1.10 and 2.89 of a fine-tuning step at (1024, 128), 7B; with the vision encoder, which all run once, less."""
    flops = amvl(paper()).flops_per_step
    assert flops["shared_prefix"] / flops["sft"] == pytest.approx(1.10, abs=0.02)
    assert flops["three_pass"] / flops["sft"] == pytest.approx(2.89, abs=0.30)
    assert flops["three_pass"] / flops["sft"] < 2.89


def test_hours_follow_rows_utilisation_and_gpus() -> None:
    alone = changed("cluster.num_workers", 1)
    one = plan(alone, utilisation=0.4, workload=LOAD)
    assert plan(alone, utilisation=0.2, workload=LOAD).hours == pytest.approx(2 * one.hours)
    assert plan(alone, workload=replace(LOAD, rows=900_000)).hours == pytest.approx(2 * one.hours, rel=1e-3)
    fast = replace(MACHINES["A100-80GB"], node_gb_s=1e9)
    assert plan(paper(), fast, workload=LOAD).hours == pytest.approx(one.hours / 16, rel=1e-3)
    assert one.hours_by_way["three_pass"] > one.hours > one.hours_by_way["sft"]


def test_a_slow_network_is_named_as_the_limit() -> None:
    slow = replace(MACHINES["A100-80GB"], node_gb_s=3.0)
    assert plan(paper(), slow, workload=LOAD).stages["amvl"].limited_by == "network"
    alone = changed("cluster.num_workers", 1)
    assert plan(alone, slow, workload=LOAD).stages["amvl"].network_share == 0


def test_zero_1_sums_gradients_once_a_step_and_zero_2_once_a_micro_batch() -> None:
    """Of 8 micro-batches of one sample, with the weights gathered once: 2 against 9 times the gradients."""

    def network(stage: Any) -> float:
        return stage.hours["sft"] - compute

    fast = replace(MACHINES["A100-80GB"], node_gb_s=1e9)
    compute = plan(paper(), fast, workload=LOAD).stages["amvl"].hours["sft"]
    small = changed("stages.amvl.micro_tokens", 1024)
    assert network(amvl(small)) / network(amvl(changed("trainer.zero_stage", 1, small))) == pytest.approx(4.5, rel=1e-3)
    advice = text(plan(small, workload=LOAD), width=200)
    assert "--param stages.amvl.micro_tokens=12288 or --param trainer.zero_stage=1 sends less" in advice


def test_a_backward_in_parts_sends_the_layers_gradients_twice_from_zero_2_on() -> None:
    """In one micro-batch a step: layers once more, on top of all gradients and of the weights gathered."""

    def network(stage: Any) -> float:
        return stage.network_share * stage.hours["shared_prefix"]

    counts = plan(paper(), workload=LOAD).parameters
    trained = sum(counts.values()) - counts["vision"]
    once, twice = (plan(changed("trainer.zero_stage", zero), workload=LOAD) for zero in (1, 2))
    ratio = network(twice.stages["amvl"]) / network(once.stages["amvl"])
    assert ratio == pytest.approx(1 + counts["language"] / (2 * trained), rel=5e-3)  # the share is rounded
    sentence = "its layers' gradients are sent twice a micro-batch"
    assert text(twice, width=300).count(sentence) == 1 and sentence not in text(once, width=300)


def test_advice_on_the_network_fits_every_stage_and_sends_less() -> None:
    slow = replace(MACHINES["A100-80GB"], node_gb_s=2.0)
    small = changed("stages.amvl.micro_tokens", 1024)
    stage = plan(small, slow, workload=LOAD).stages["amvl"]
    assert len(stage.less_network) == 2
    for change in stage.less_network:
        found = plan(override(small, parse(change.parameters)), slow, workload=LOAD).stages
        assert found["amvl"].fits and found["embedding_adaptation"].fits
        assert found["amvl"].needed_gib == change.gib
        assert found["amvl"].hours["sft"] < stage.hours["sft"]


def test_no_advice_on_the_network_where_one_micro_batch_is_a_step_and_no_lower_stage_of_zero_fits() -> None:
    """The small stage alone would fit with ZeRO-2, but its stage of ZeRO is that of the large one."""
    large = override(paper(), {"model": {"base": "Qwen/Qwen2.5-VL-32B-Instruct"}, "trainer": {"zero_stage": 3}})
    found = plan(large)
    assert {stage.limited_by for stage in found.stages.values()} == {"network"}
    assert not any(stage.less_network for stage in found.stages.values())
    assert text(found, width=200).count("no other micro_tokens or trainer.zero_stage that fits sends less") == 2


def test_a_change_that_the_configuration_refuses_is_not_named() -> None:
    """A batch of 16 cannot be divided over more workers; here no fewer than 64 fit."""
    large = override(paper(), {"model": {"base": "Qwen/Qwen2.5-VL-32B-Instruct"}, "trainer": {"zero_stage": 3}})
    small = override(large, {"stages": {name: {"global_batch": 16} for name in large.stages}})
    tight = replace(MACHINES["A100-80GB"], memory_gib=20)
    assert plan(large, tight, workload=LOAD).stages["amvl"].change is not None
    job = _Job(small, model_shape(small.model), LOAD, tight, 0.4)
    how = job.how(small.stages["amvl"])
    more = [how._replace(workers=workers, micro_tokens=4096) for workers in (32, 64)]
    assert list(job.changes("amvl", how, more)) == []
    job = replace(job, config=large)
    (change,) = job.changes("amvl", how, more)
    assert change.fields == {"cluster.num_workers": 64, "stages.amvl.micro_tokens": 4096}


def test_larger_budgets_are_tried_against_the_memory() -> None:
    largest = amvl(paper()).largest_micro_tokens
    assert largest >= paper().stages["amvl"].micro_tokens
    assert amvl(changed("stages.amvl.micro_tokens", largest)).fits
    if largest < 8 * LOAD.longest:
        assert not amvl(changed("stages.amvl.micro_tokens", largest + LOAD.longest)).fits


def test_memory_follows_the_budget_down_to_the_longest_sample() -> None:
    needed = [amvl(changed("stages.amvl.micro_tokens", budget)).needed_gib for budget in (1, 4096, 6144, 8192, 16384)]
    assert needed[0] == needed[1] < needed[2] < needed[3] < needed[4]


def test_rows_are_counted_where_the_sources_say_them() -> None:
    found = plan(demo())
    assert found.workload.rows == 8000
    assert found.stages["sft"].steps == 1500
    assert found.workload.prompt + found.workload.answer <= demo().data.max_tokens


def test_the_held_out_loss_takes_no_more_than_its_share() -> None:
    without, with_it = (amvl(changed("heldout.samples", samples)) for samples in (0, 1280))
    more = with_it.hours[with_it.way] / without.hours[without.way] - 1
    assert 0.001 < more < 0.02


def test_what_is_no_utilisation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"not 40"):
        plan(paper(), utilisation=40)


def test_the_page_holds_every_part_and_the_advice() -> None:
    found: Plan = plan(changed("cluster.num_workers", 8), MACHINES["A100-40GB"])
    page = text(found)
    for part in (*found.parameters, *found.stages["amvl"].memory_gib):
        assert part in page
    assert "amvl: needs " in page
    assert "--param stages.amvl.micro_tokens=8192 makes it fit" in page


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "--rows", "1000", "--param", "stages.amvl.epochs=1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["stages"]["amvl"]["steps"] == 8
    assert main(["--gpu", "A100-40GB", "--param", "cluster.num_workers=8"]) == 1
    capsys.readouterr()
    assert main(["--param", "cluster.num_wrkers=2"]) == 1
    assert "cluster.num_wrkers: Extra inputs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--network", "0", "'0' is no number above 0"),
        ("--network", "inf", "'inf' is no number above 0"),
        ("--rows", "-5", "'-5' is no whole number above 0"),
        ("--prompt-tokens", "0", "'0' is no whole number above 0"),
        ("--answer-tokens", "1.5", "'1.5' is no whole number above 0"),
    ],
)
def test_what_is_no_amount_is_refused(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([f"{option}={value}"])
    assert caught.value.code == 2
    assert f"argument {option}: {message}" in capsys.readouterr().err


def test_the_shortest_sample_is_planned() -> None:
    assert main(["--prompt-tokens", "1", "--answer-tokens", "1", "--rows", "1"]) == 0


def test_controls_are_hours_on_top() -> None:
    found = plan(paper())
    assert found.control_hours.keys() == {"SFT, equal steps", "pause tokens"}
    assert found.control_hours["SFT, equal steps"] == pytest.approx(found.hours_by_way["sft"], rel=0.05)
    assert plan(override(paper(), {"evaluation": {"controls": []}})).control_hours == {}
