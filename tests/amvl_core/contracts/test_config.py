import re
from typing import Any

import numpy as np
import pytest
import torch

from amvl_core.contracts.config import RunConfig, StageConfig, TinyConfig, flatten, override, trained_by, validate
from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.presets import PRESETS
from amvl_core.methods.amvl.config import AmvlMethod
from amvl_core.methods.amvl.presets import demo, paper
from amvl_core.methods.pause.config import PauseMethod


def test_a_run_needs_a_stage() -> None:
    with pytest.raises(ConfigError, match="stages"):
        validate({**demo().model_dump(mode="json"), "stages": {}})


def test_the_default_is_the_papers_run() -> None:
    config = paper()
    assert config == RunConfig(stages=config.stages)
    assert config.model.base == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert (config.latent.num_slots, config.latent.dim) == (8, 512)
    assert config.cluster.num_workers == 16
    assert list(config.stages) == ["embedding_adaptation", "amvl"]
    assert config.stages["amvl"].method == AmvlMethod()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json(name: str) -> None:
    config = PRESETS[name]()
    assert validate(config.model_dump(mode="json")) == config
    assert list(validate(config.model_dump(mode="json")).stages) == list(config.stages)


TINY_SIZES = [name for name, field in TinyConfig.model_fields.items() if field.annotation is int and name != "seed"]


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"sed": 1}, "sed: Extra inputs"),
        ({"cluster": {"num_wokers": 1}}, "cluster.num_wokers: Extra inputs"),
        ({"stages": {"amvl": {"method": {"nslots": 4}}}}, "stages.amvl.method.nslots: Extra inputs"),
        ({"data": {"sources": [{"kind": "nlvr", "urii": "x"}]}}, "data.sources.0.urii: Extra inputs"),
        ({"data": {"sources": [{"kind": "nlrv"}]}}, "data.sources.0: Input tag 'nlrv'"),
        ({"stages": {"amvl": {"epochs": 1}}}, "stages.amvl: Value error, give either epochs or steps"),
        ({"latent": {"logvar_min": 5}}, "latent: Value error, logvar_min (5.0) must be below logvar_max (4.0)"),
        ({"cluster": {"num_workers": 33}}, "sft.global_batch (32) must be at least cluster.num_workers (33)"),
        (
            {"cluster": {"num_workers": 3}, "stages": {"amvl": {"micro_tokens": 511}}},
            "amvl.global_batch (32) is no multiple of cluster.num_workers (3), so a worker may have to run two samples "
            "at once: micro_tokens (511) must be at least twice the longest sample's 262 (data.max_tokens and the "
            "method's own tokens)",
        ),
        (
            {"cluster": {"num_workers": 4, "min_workers": 2}, "stages": {"amvl": {"micro_tokens": 511}}},
            "amvl.global_batch (32) is no multiple of the workers that cluster.min_workers allows (3), so a worker may",
        ),
        ({"cluster": {"min_workers": 99}}, "cluster: Value error, min_workers (99) must be at most num_workers (2)"),
        (
            {"evaluation": {"faithfulness_items": 1}},
            "evaluation: Value error, faithfulness_items must be 0 or at least 2",
        ),
        ({"heldout": {"samples": 8}}, "heldout: Value error, samples must be 0 or at least 16, not 8"),
        ({"heldout": {"samples": 0, "every": 5}}, "heldout: Value error, every says nothing where no samples"),
        ({"data": {"sources": []}}, "data.sources is empty"),
        ({"evaluation": {"controls": ["sftt"]}}, "controls: 'sftt' is no control; choose of sft, pause, markers"),
        ({"evaluation": {"controls": ["valr"]}}, "controls: 'valr' is no control; choose of sft, pause, markers"),
        ({"evaluation": {"latent_mode": "never"}}, "evaluation.latent_mode: the models of amvl write no latent blocks"),
        ({"evaluation": {"latent_steps": 0}}, "evaluation.latent_steps: the models of amvl write no latent blocks"),
        (
            {"data": {"min_pixels": 4097, "max_pixels": 4096}},
            "data: Value error, max_pixels (4096) must be at least min_pixels (4097); lower both to save memory",
        ),
        (
            {"data": {"min_pixels": 4097}, "evaluation": {"max_pixels": 4096}},
            "evaluation.max_pixels (4096) must be at least data.min_pixels (4097), which images of benchmarks",
        ),
        ({"seed": "one"}, "seed: Input should be a valid integer"),
        *(
            ({"tracking": {"uri": uri}}, "tracking.uri: Value error, it holds a password")
            for uri in (
                "postgresql://u:hunter2@db/m",
                "postgresql://u:/hunter2@db/m",
                "postgresql://db/m?user=u&password=hunter2",
                "mysql+pymysql://u@db/m?passwd=hunter2",
                "http://u:?hunter2@host",
                "http://host:5000?token=hunter2",
                "https://hunter2@host",
            )
        ),
        *(
            (changes, f"{path}: Value error, it holds a password, a token or a signature")
            for uri in ("https://u:hunter2@h/x.zip", "s3://u:hunter2@b/x", "https://b.s3.eu/x?X-Amz-Signature=hunter2")
            for path, changes in (
                ("storage", {"storage": uri}),
                ("data.sources.0.uri", {"data": {"sources": [{"kind": "nlvr", "uri": uri}]}}),
                ("evaluation.benchmarks.0.uri", {"evaluation": {"benchmarks": [{"name": "mmvp", "uri": uri}]}}),
            )
        ),
        ({"model": {"base": "https://u:hunter2@h/x"}}, "model.base: Value error, it holds a password"),
        *(
            ({"model": {"tiny": {name: size}}}, f"model.tiny.{name}: Input should be greater than or equal to 1")
            for name in TINY_SIZES
            for size in (0, -8)
        ),
        (
            {"model": {"tiny": {"num_heads": 3, "num_kv_heads": 3}}},
            "model.tiny: Value error, hidden_size (128) must be a multiple of 2 x num_heads (6)",
        ),
        (
            {"model": {"tiny": {"num_kv_heads": 3}}},
            "model.tiny: Value error, num_heads (4) must be a multiple of num_kv_heads (3)",
        ),
        (
            {"model": {"tiny": {"vision_hidden_size": 24}}},
            "model.tiny: Value error, vision_hidden_size (24) must be a multiple of 4 x vision_heads (16)",
        ),
        *(
            ({"stages": {"amvl": {name: number}}}, f"stages.amvl.{name}: Input should be a finite number")
            for name in ("lr", "clip", "weight_decay", "epochs")
            for number in (float("inf"), float("nan"))
        ),
        ({"stages": {"amvl": {"lr_scale": {"vision": float("inf")}}}}, "lr_scale.vision: Input should be a finite"),
        ({"stages": {"amvl": {"method": {"beta_max": float("inf")}}}}, "method.beta_max: Input should be a finite"),
        ({"evaluation": {"tau": float("inf")}}, "evaluation.tau: Input should be a finite number"),
        ({"latent": {"logvar_max": float("inf")}}, "latent.logvar_max: Input should be a finite number"),
        (
            {"trainer": {"offload": "optimizer", "zero_stage": 0}},
            "trainer: Value error, offload = optimizer needs",
        ),
        ({"trainer": {"offload": "parameters", "zero_stage": 2}}, "needs zero_stage 3 or more (it is 2)"),
        ({"stages": {"sft": {"lr_scale": {"latent": 2}}}}, "no parts of its own are trained with method sft"),
        ({"stages": {"embedding_adaptation": {"lr_scale": {"latent": 2}}}}, "trainable = new_rows; leave it out"),
        ({"stages": {"amvl": {"lr_scale": {"vision": 2}}}}, "trainable = language keeps the vision encoder"),
        ({"stages": {"amvl": {"lr_scale": {"latent": 0}}}}, "stages.amvl.lr_scale.latent: Input should be greater"),
    ],
)
def test_an_error_names_the_path_of_the_field(changes: dict, path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(demo(), changes)
    assert path in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_latents_that_no_method_draws_have_no_tau() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.tau: the models of valr draw no latents; leave it out"):
        override(PRESETS["valr-demo"](), {"evaluation": {"tau": 0.5}})


def test_an_encoder_has_a_name_of_its_own() -> None:
    encoders = [{"name": "a", "source": f"tiny:{kind}"} for kind in ("dinov3", "siglip")]
    with pytest.raises(ConfigError, match=r"stages.valr.method.*encoders: Value error, two encoders are called 'a'"):
        override(PRESETS["valr-demo"](), {"stages": {"valr": {"method": {"encoders": encoders}}}})


SEEDS = ("seed", "data.seed", "data.sources.0.seed", "model.tiny.seed", "evaluation.seed")


@pytest.mark.parametrize("path", SEEDS)
@pytest.mark.parametrize("seed", [-1, 2**32, 1.5])
def test_a_seed_that_a_generator_may_not_take_is_refused_by_its_path(path: str, seed: float) -> None:
    with pytest.raises(ConfigError, match=rf"\n  {re.escape(path)}: Input should be "):
        override(demo(), seeded(path, seed))


@pytest.mark.parametrize("path", SEEDS)
def test_the_largest_seed_is_taken_by_the_configuration_and_every_generator(path: str) -> None:
    largest = 2**32 - 1
    assert flatten(override(demo(), seeded(path, largest)))[path] == str(largest)
    np.random.default_rng(largest)
    np.random.PCG64([largest, 0])
    np.random.RandomState(largest)
    torch.Generator().manual_seed(largest)


def test_every_seed_of_a_configuration_is_tried_above() -> None:
    assert {path for path in flatten(demo()) if path.endswith("seed")} == set(SEEDS)


def seeded(path: str, seed: float) -> dict:
    if path.startswith("data.sources"):
        return {"data": {"sources": [{"kind": "microworld", "seed": seed}]}}
    changes: Any = seed
    for part in reversed(path.split(".")):
        changes = {part: changes}
    return dict(changes)


@pytest.mark.parametrize("name", ["a/b", "a b", "v1.5", "..", "", "a%", "\u9636", "a\n", 65 * "a", "-a"])
def test_a_stage_name_that_a_page_a_folder_or_a_metric_may_not_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is no name of a stage: give letters, digits, - and _, at most 64"):
        override(demo(), {"stages": {name: {"method": {"kind": "amvl"}, "steps": 1, "global_batch": 2}}})


@pytest.mark.parametrize("name", ["a/b", "", " ", "a\nb"])
def test_a_source_whose_name_would_tear_ids_apart_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.sources\.0\.name: Value error, .* is no name: give text without /"):
        override(demo(), {"data": {"sources": [{"kind": "nlvr", "uri": "x", "name": name}]}})


def test_a_global_batch_need_not_be_a_multiple_of_the_workers() -> None:
    assert override(demo(), {"cluster": {"num_workers": 3}}).cluster.num_workers == 3
    assert override(demo(), {"cluster": {"num_workers": 4, "min_workers": 1}}).cluster.min_workers == 1


def test_fewer_workers_that_divide_the_batch_ask_nothing_of_micro_tokens() -> None:
    changes = {"cluster": {"num_workers": 2, "min_workers": 1}, "stages": {"amvl": {"micro_tokens": 1}}}
    assert override(demo(), changes).stages["amvl"].micro_tokens == 1


def test_override_merges_nested_fields_and_leaves_the_rest() -> None:
    changed = override(demo(), {"stages": {"amvl": {"steps": 7, "method": {"gamma_max": 0.25}}}, "seed": 3})
    assert changed.stages["amvl"].steps == 7
    assert changed.stages["amvl"].lr == demo().stages["amvl"].lr
    assert changed.stages["amvl"].method.gamma_max == 0.25
    assert changed.stages["amvl"].method.beta_warmup == demo().stages["amvl"].method.beta_warmup
    assert changed.stages["sft"] == demo().stages["sft"]
    assert changed.data == demo().data and changed.seed == 3


def test_override_of_a_union_starts_from_the_defaults_of_the_new_kind() -> None:
    changed = override(demo(), {"stages": {"sft": {"method": {"kind": "amvl"}}}})
    assert changed.stages["sft"].method == AmvlMethod()


@pytest.mark.parametrize("kind", ["sft", "pause"])
def test_a_simpler_method_after_a_latent_stage_is_refused(kind: str) -> None:
    late = {"stages": {"late": {"method": {"kind": kind}, "steps": 1, "global_batch": 2}}}
    with pytest.raises(ConfigError, match=rf"stages\.late: {kind} cannot follow amvl; put it first"):
        override(demo(), late)


def test_pause_tokens_may_stand_between_fine_tuning_and_amvl() -> None:
    stages = demo().stages
    pause = StageConfig(method=PauseMethod(), steps=1, global_batch=2)
    config = RunConfig(stages={"sft": stages["sft"], "pause": pause, "amvl": stages["amvl"]}, cluster=demo().cluster)
    assert list(config.stages) == ["sft", "pause", "amvl"]


def test_an_objective_without_terms_is_refused() -> None:
    nothing = {"ntp_weight": 0, "beta_max": 0, "gamma_max": 0}
    with pytest.raises(ConfigError, match="nothing is left to learn from"):
        override(demo(), {"stages": {"amvl": {"method": nothing}}})


def test_a_record_with_settings_that_are_gone_is_refused() -> None:
    config = PRESETS["demo"]().model_dump(mode="json")
    assert trained_by(config, "amvl")[0].kind == "amvl"
    config["stages"]["amvl"]["method"]["once"] = 1
    with pytest.raises(
        ConfigError, match="stage amvl was trained with settings that this version does not know; train it"
    ):
        trained_by(config, "amvl")


def test_flatten_gives_every_field_by_its_path() -> None:
    flat = flatten(demo())
    assert flat["stages.amvl.method.kind"] == "amvl"
    assert flat["data.sources.0.kind"] == "microworld"
    assert flat["latent.num_slots"] == str(demo().latent.num_slots)


def test_the_schema_needs_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, amvl_core.contracts.presets, amvl_core.contracts.records, amvl_core.contracts.storage;"
        "import amvl_core.data.encode;"
        "print([m for m in ('torch', 'transformers', 'deepspeed', 'ray') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
