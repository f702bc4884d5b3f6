from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.presets import PRESETS
from amvl_core.contracts.sources import EasyVqaSource
from amvl_core.methods.amvl.presets import demo, paper
from flows import parameters
from flows.ablations import ablations
from flows.full_pipeline import full_pipeline
from flows.parameters import partial, resolve

Changes = partial(RunConfig)


def test_nothing_given_is_the_preset() -> None:
    assert resolve("paper") == paper()
    assert resolve("demo", seed=None, cluster=Changes().cluster) == demo()  # type: ignore[attr-defined]


def test_every_field_of_the_configuration_is_a_parameter_of_the_flow() -> None:
    properties = full_pipeline.parameters.properties
    assert list(properties) == ["preset", *RunConfig.model_fields]
    assert list(ablations.parameters.properties) == ["table", "seeds", *properties]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_whole_configuration_survives_the_way_through_the_parameters(preset: str) -> None:
    config = PRESETS[preset]()
    changes = Changes.model_validate(config.model_dump(mode="json"))
    given = {name: getattr(changes, name) for name in RunConfig.model_fields}
    assert resolve(preset, **given) == config


def test_nested_fields_are_merged_one_by_one() -> None:
    given = full_pipeline.validate_parameters(
        {
            "seed": 3,
            "cluster": {"num_workers": 1},
            "stages": {"amvl": {"steps": 10, "method": {"beta_max": 0.2}}},
            "data": {"sources": [{"kind": "easy_vqa", "uri": "/x.zip"}]},
        }
    )
    config = resolve("demo", **{name: value for name, value in given.items() if name != "preset"})
    before = demo()
    assert (config.seed, config.cluster.num_workers) == (3, 1)
    assert config.stages["amvl"].steps == 10
    assert config.stages["amvl"].lr == before.stages["amvl"].lr
    method, old = config.stages["amvl"].method, before.stages["amvl"].method
    assert method == old.model_copy(update={"beta_max": 0.2})
    assert config.stages["sft"] == before.stages["sft"]
    assert config.data.sources == (EasyVqaSource(uri="/x.zip"),)
    assert config.data.max_tokens == before.data.max_tokens


@pytest.mark.parametrize("home", [False, True])
def test_a_folder_is_found_by_processes_that_work_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: bool
) -> None:
    for name in ("models/base", "models/e", "features", "tiny", "base"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path if not home else "/")

    def found(base: str, *sources: str) -> list[str]:
        encoders = [{"name": f"e{number}", "source": source} for number, source in enumerate(sources)]
        config = resolve("valr-demo", model={"base": base}, stages={"valr": {"method": {"encoders": encoders}}})
        return [config.model.base, *(encoder.source for encoder in config.encoders)]

    near = "~/" if home else ""
    assert found(f"{near}models/base", f"{near}models/e/", f"features:{near}features") == [
        f"{tmp_path}/models/base",
        f"{tmp_path}/models/e",
        f"features:{tmp_path}/features",
    ]
    assert found(f"file://{tmp_path}/models/base", "s3://b/e/", "features:s3://b/f") == [
        f"{tmp_path}/models/base",
        "s3://b/e/",
        "features:s3://b/f",
    ]
    for names in (["tiny", "base", "tiny:clip"], ["Qwen/Base", "facebook/dino", "features:nowhere"]):
        assert found(*names) == names


def test_a_null_clears_what_may_be_null_and_leaves_the_rest() -> None:
    stages = Changes.model_validate({"stages": {"amvl": {"steps": None, "epochs": 2, "lr": None}}}).stages  # type: ignore[attr-defined]
    stage = resolve("demo", stages=stages).stages["amvl"]
    assert (stage.steps, stage.epochs, stage.lr) == (None, 2, demo().stages["amvl"].lr)


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"cluster": {"num_wrkers": 1}}, ("cluster", "num_wrkers")),
        ({"cluster": {"num_workers": 0}}, ("cluster", "num_workers")),
        ({"stages": {"amvl": {"stesp": 1}}}, ("stages", "amvl", "stesp")),
        ({"stages": {"amvl": {"method": {"beta_mx": 1}}}}, ("stages", "amvl", "method", "beta_mx")),
        ({"model": {"tiny": {"layers": 1}}}, ("model", "tiny", "layers")),
        ({"sede": 1}, ("sede",)),
        ({"seed": -1}, ("seed",)),
        ({"evaluation": {"seed": 2**64}}, ("evaluation", "seed")),
    ],
)
def test_a_typo_is_refused_by_its_path(given: dict[str, Any], path: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as refused:
        Changes.model_validate(given)
    assert refused.value.errors()[0]["loc"][: len(path)] == path
    if path != ("sede",):
        with pytest.raises(ConfigError, match=r"\.".join(path)):
            resolve("demo", **given)


def test_a_field_of_another_method_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stages\.sft\.method\.beta_max"):
        resolve("demo", stages={"sft": {"method": {"beta_max": 1.0}}})


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose one of paper, demo"):
        resolve("papr")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"preset": "demo", "seed": 3, "data": None}, "sft+amvl on microworld, seed 3, 20"),
        ({"preset": "demo", "table": 11, "seeds": 2}, "table 11 on microworld, seed 0, 20"),
        ({"preset": "demo", "stages": {"amvl": {"steps": "x"}}}, "demo"),  # the flow says what is wrong
    ],
)
def test_a_flow_run_is_called_by_method_data_and_seed(
    given: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect.runtime.flow_run", SimpleNamespace(parameters=given))
    assert parameters.flow_run_name().startswith(name)
    assert full_pipeline.flow_run_name is ablations.flow_run_name is parameters.flow_run_name
