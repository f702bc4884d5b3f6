"""Where MLflow is and what it takes: real MLflow, a server behind a login, and a port on which nobody listens."""

import os
import socket
import traceback
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import mlflow as mlflow_package
import pytest
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.utils import rest_utils
from mlflow.utils.validation import _validate_metric_name, _validate_model_version_tag

from amvl_core.contracts.config import RunConfig, TrackingConfig, override
from amvl_core.contracts.errors import AmvlError, ConfigError
from amvl_core.methods.amvl.presets import demo, paper
from flows.checks import check_run
from infra import registry
from infra.mlflow_client import (
    AS_TRAINING,
    KIND,
    TIME_LIMIT,
    TRAINING,
    address,
    check_names,
    check_reachable,
    client,
    experiment,
    metric_name,
    tracking_uri,
    uploading,
)
from infra.tracking import Tracker


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


class Locked(BaseHTTPRequestHandler):
    """What MLflow says of an experiment that is not there, to those who log in as `me@home` with `s3cret/@:%`."""

    def do_GET(self) -> None:
        known = self.headers["Authorization"] == "Basic " + b64encode(b"me@home:s3cret/@:%").decode()
        self.server.paths.append((known, self.path.partition("?")[0]))  # type: ignore[attr-defined]
        self.send_response(404 if known else 401)
        self.end_headers()
        self.wfile.write(b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}')

    def log_message(self, *_: object) -> None: ...


@pytest.fixture()
def locked() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Locked) as server:
        server.paths = []  # type: ignore[attr-defined]
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture()
def named(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], RunConfig]:
    """The configuration of a run whose server the environment names."""

    def name(uri: str) -> RunConfig:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        return paper()

    for setting in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(setting, "0")
    return name


def test_user_and_password_of_an_address_log_in(named: Callable[[str], RunConfig], locked: HTTPServer) -> None:
    config = named(f"http://me%40home:s3cret%2F@:%25@127.0.0.1:{locked.server_port}/a/")
    check_reachable(config)
    assert client(config).get_experiment_by_name("x") is None
    asked = [(True, "/a/health"), (True, "/a/api/2.0/mlflow/experiments/get-by-name")]
    assert locked.paths == asked  # type: ignore[attr-defined]
    assert address(config) == os.environ["MLFLOW_TRACKING_URI"] == f"http://127.0.0.1:{locked.server_port}/a/"


SHOWN = {
    "http://mlflow:s3cret@127.0.0.1:1": "http://127.0.0.1:1",
    "http://mlflow:s3cret@mlflow.invalid": "http://mlflow.invalid",
    "HTTP://mlflow:s3:cr@et@mlflow.invalid/mlflow": "http://mlflow.invalid/mlflow",
    "https://s3cret@mlflow.invalid": "https://mlflow.invalid",
}
MALFORMED = [
    "http://mlflow:s3cret@mlflow.invalid:port",
    "http://mlflow:s3cret@mlflow.invalid:99999",
    "http://mlflow:s3cret/@mlflow.invalid",
    "http://mlflow:1?s3cret@mlflow.invalid",
    "http://mlflow:1#s3cret@mlflow.invalid",
    "http://mlflow:1?token=s3cret",
    "http://mlflow:s3cret@[::1",
    "http://mlflow:s3cret@:5000",
    " http:/mlflow:s3cret@mlflow.invalid",
]


def _told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize("uri", SHOWN)
def test_no_error_shows_the_password_of_a_server_that_is_down(uri: str, named: Callable[[str], RunConfig]) -> None:
    for asked in (check_reachable, lambda config: Tracker(config).start(), registry.champion):
        with pytest.raises(AmvlError, match=SHOWN[uri].replace(".", r"\.")) as caught:
            asked(named(uri))
        assert "s3" not in _told(caught.value)


@pytest.mark.parametrize("uri", MALFORMED)
def test_a_malformed_address_is_refused_without_the_password(uri: str, named: Callable[[str], RunConfig]) -> None:
    with pytest.raises(ConfigError, match=r"MLFLOW_TRACKING_URI is no address of a server: write http://") as caught:
        check_reachable(named(uri))
    assert "s3" not in _told(caught.value)


def test_what_does_not_speak_http_is_no_server(named: Callable[[str], RunConfig]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        Thread(target=lambda: listening.accept()[0].sendall(b"SSH-2.0\r\n"), daemon=True).start()
        with pytest.raises(ConfigError, match="no MLflow server answers"):
            check_reachable(named(f"http://127.0.0.1:{listening.getsockname()[1]}"))


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://mlflow:s3cret@db:5432/mlflow?ssl=1", "postgresql://db:5432/mlflow?ssl=1"),
        ("postgresql://mlflow:s3cret/?#x@db/mlflow", "postgresql://db/mlflow"),
        ("postgresql://mlflow@home:s3@cret@db/mlflow?x=a@b", "postgresql://db/mlflow?x=a@b"),
        ("postgresql://db/m?user=u&password=s3cret&x=1", "postgresql://db/m?user=u&password=***&x=1"),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
    ],
)
def test_the_password_of_a_database_is_used_and_neither_shown_nor_recorded(
    uri: str, shown: str, named: Callable[[str], RunConfig]
) -> None:
    config = named(uri)
    assert (tracking_uri(config), address(config)) == (uri, shown)


def test_a_database_that_mlflow_does_not_know_is_refused_without_the_password(
    named: Callable[[str], RunConfig],
) -> None:
    config = named("postgres://mlflow:s3cret@db/mlflow")
    with pytest.raises(ConfigError, match="MLflow knows no store postgres://db/mlflow; begin it with one of") as caught:
        client(config)
    assert "s3" not in _told(caught.value)


@pytest.mark.parametrize(("set_to", "rest", "upload"), [(None, 20, 600), ("5", 5, 600), ("900", 900, 900)])
def test_an_upload_has_more_time_than_other_requests(
    set_to: str | None, rest: int, upload: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TIME_LIMIT, "")
    if set_to is None:
        monkeypatch.delenv(TIME_LIMIT)
    else:
        monkeypatch.setenv(TIME_LIMIT, set_to)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    given: list[float] = []

    def answer(*_: object, timeout: float, **__: object) -> None:
        given.append(timeout)
        raise OSError

    monkeypatch.setattr(rest_utils, "_get_http_response_with_retries", answer)
    (tmp_path / "weights").write_bytes(b"0")
    store = HttpArtifactRepository("http://127.0.0.1:1/api/2.0/mlflow-artifacts/artifacts/0")
    ask = client(paper()).get_experiment_by_name
    for _ in range(2):
        with pytest.raises(MlflowException), uploading():
            store.log_artifact(str(tmp_path / "weights"))
        with pytest.raises(MlflowException):
            ask("x")
    assert given == [upload, rest] * 2


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
