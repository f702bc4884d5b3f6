"""Where MLflow is and what it takes: real MLflow, and a port on which nobody listens."""

from pathlib import Path

import mlflow as mlflow_package
import pytest
from mlflow.utils.validation import _validate_metric_name, _validate_model_version_tag

from amvl_core.contracts.config import RunConfig, TrackingConfig, override
from amvl_core.contracts.errors import ConfigError
from amvl_core.methods.amvl.presets import demo, paper
from flows.checks import check_run
from infra.mlflow_client import (
    AS_TRAINING,
    KIND,
    TRAINING,
    address,
    check_names,
    check_reachable,
    client,
    experiment,
    metric_name,
    tracking_uri,
)


def test_the_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    local = demo().model_copy(update={"storage": str(tmp_path)})
    assert tracking_uri(local) == f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(ConfigError, match=r"set tracking\.uri or MLFLOW_TRACKING_URI"):
        tracking_uri(paper())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_uri(paper()) == "http://127.0.0.1:5000"
    named = local.model_copy(update={"tracking": TrackingConfig(uri="http://mlflow.example")})
    assert tracking_uri(named) == "http://mlflow.example"


@pytest.mark.parametrize("rest", ["@db:5432/mlflow?ssl=1", "@127.0.0.1:1"])
def test_a_password_is_used_and_neither_shown_nor_recorded(rest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri := f"http://mlflow:hunter2{rest}")
    assert tracking_uri(paper()) == uri
    assert address(paper()) == f"http://{rest[1:]}"
    with pytest.raises(ConfigError) as caught:
        check_reachable(paper())
    assert "hunter2" not in str(caught.value)


def test_a_server_that_is_down_is_refused_before_anything_is_computed(unused_port: int) -> None:
    down = demo().model_copy(update={"tracking": TrackingConfig(uri=f"http://127.0.0.1:{unused_port}")})
    with pytest.raises(ConfigError, match="no MLflow server answers"):
        check_reachable(down)


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("eval@1", "a(b)/c"), "eval_1/a_b_/c"),
        (("accuracy.chat/odd one out",), "accuracy.chat/odd one out"),
        (("eval", "chat//x"), "eval/chat/_/x"),
        (("eval", "../../x/."), "eval/__/__/x/_"),
        (("/x/",), "_/x/_"),
        (("..x",), "_..x"),
        (("eval", "chat/\u989c\u8272?"), "eval/chat/\u989c\u8272_"),
        (("eval", 300 * "x"), f"eval/{236 * 'x'}-b7190c59"),
        ((250 * "x",), 250 * "x"),
    ],
)
def test_a_name_is_made_what_mlflow_takes(parts: tuple[str, ...], name: str) -> None:
    assert metric_name(*parts) == name
    _validate_metric_name(name)
    _validate_model_version_tag(name, "")


def test_long_names_that_begin_alike_stay_apart() -> None:
    assert len({metric_name("eval", 300 * "x" + end) for end in "abc"}) == 3


@pytest.mark.parametrize("name", ["qwen2.5-vl-amvl", "AMVL v2", "\u89c6\u89c9", "a@b", "team%20x"])
def test_a_model_name_that_mlflow_registers_passes(name: str) -> None:
    check_names(override(demo(), {"tracking": {"registered_model": name, "alias": "best-1", "experiment": "a.b/c"}}))


@pytest.mark.parametrize(
    ("tracking", "message"),
    [
        ({"registered_model": "org/model"}, r"tracking\.registered_model: 'org/model' is refused .*cannot contain '/'"),
        ({"registered_model": "a:b"}, r"tracking\.registered_model: 'a:b' is refused"),
        ({"registered_model": " "}, r"tracking\.registered_model: ' ' is refused"),
        ({"registered_model": ".."}, r"tracking\.registered_model: '\.\.' is refused"),
        ({"registered_model": "what?"}, r"tracking\.registered_model: 'models:/what\?@champion' is no address"),
        ({"alias": "v3"}, r"tracking\.alias: 'v3' is refused .*reserved"),
        ({"alias": "Latest"}, r"tracking\.alias: 'Latest' is refused .*reserved"),
        ({"alias": "a b"}, r"tracking\.alias: 'a b' is refused"),
        ({"alias": "champion\n"}, r"is no address that a model can be loaded from"),
        ({"alias": ""}, r"tracking\.alias: '' is refused"),
        ({"alias": 256 * "x"}, r"tracking\.alias: 'x*' is refused .*length"),
        ({"experiment": ""}, r"tracking\.experiment: '' is refused"),
        ({"experiment": 501 * "x"}, r"tracking\.experiment: 'x*' is refused .*length"),
    ],
)
def test_a_name_that_mlflow_refuses_is_refused_before_anything_is_computed(
    tracking: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_run(override(demo(), {"storage": str(tmp_path), "tracking": tracking}))


def test_the_experiment_opens_as_model_training_and_a_kind_that_somebody_chose_stays(tracked: RunConfig) -> None:
    mlflow, kinds = client(tracked), []
    for name, tags in (("new", None), ("before", {}), ("chosen", {KIND: "genai_development"})):
        if tags is not None:
            mlflow.create_experiment(name, tags=tags)
        found = experiment(override(tracked, {"tracking": {"experiment": name}}), mlflow)
        kinds.append(mlflow.get_experiment(found).tags[KIND])
    assert kinds == [TRAINING, TRAINING, "genai_development"]
    pages = Path(mlflow_package.__file__).parent / "server/js/build/static/js"
    (page,) = pages.glob("main.*.js")
    known = page.read_text()
    name, value = AS_TRAINING.removeprefix("?").split("=")
    assert all(f'"{word}"' in known for word in (KIND, TRAINING, name, value))
