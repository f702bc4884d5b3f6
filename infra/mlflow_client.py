"""Where MLflow is: the address, its client and the experiment."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from amvl_core.contracts import storage
from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.credentials import shown
from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.loopback import past_proxies

MAX_NAME = 250
"""MLflow's own limit on the name of a metric, parameter or tag."""
KIND, TRAINING = "mlflow.experimentKind", "custom_model_development"
"""The tag that says that an experiment is model training, and no GenAI application."""
AS_TRAINING = "?workflowType=machine_learning"
"""The end of an address of MLflow's pages that shows them for model training: 3.17 goes by it before the tag."""
TIME_LIMIT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
"""MLflow's variable: seconds that a server may take to answer a request."""
UPLOAD_S = 600
"""A server that has been sent a file of a model answers when it has handed it on to its store: at least so long."""
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # the default of 7 blocks a call for minutes when the server is down
    TIME_LIMIT: "20",
    "GIT_PYTHON_REFRESH": "quiet",
}


def tracking_uri(config: RunConfig) -> str:
    """`tracking.uri`, else MLFLOW_TRACKING_URI, else an SQLite file below a local storage root.

    The address of a server has no user and password: `_logged_in`. Raises ConfigError where the storage root is remote
    and no server is named, and where what is named is malformed.
    """
    named = (config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI", "")).strip()
    if named:
        past_proxies()  # the server may be on this machine
        if not re.match("https?:", named, re.IGNORECASE):
            return named
        return _logged_in(named, "tracking.uri" if config.tracking.uri else "MLFLOW_TRACKING_URI")
    if not storage.is_local(config.storage):
        raise ConfigError(
            f"storage is {config.storage}, which cannot hold MLflow's SQLite database: set tracking.uri or "
            "MLFLOW_TRACKING_URI to an MLflow server (`make serve` starts one at http://127.0.0.1:5000)"
        )
    return f"sqlite:///{storage.local_path(config.storage)}/mlflow.db"


def _logged_in(uri: str, where: str) -> str:
    """The server's address without user and password, which MLflow's errors would show: it has them as settings."""
    try:
        parts = urlsplit(uri)
        malformed = parts.port == 0 or not parts.hostname or "@" in parts.path or parts.query or parts.fragment
    except ValueError:
        malformed = True
    if malformed:
        raise ConfigError(
            f"{where} is no address of a server: write http://HOST:PORT or http://USER:PASSWORD@HOST:PORT, and in user "
            "and password %2F for /, %3F for ?, %23 for #, %5B for [ and %5D for ]"
        )
    for name, given in (("USERNAME", parts.username), ("PASSWORD", parts.password)):
        if given:
            os.environ[f"MLFLOW_TRACKING_{name}"] = unquote(given)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def address(config: RunConfig) -> str:
    """`tracking_uri` without user, password and other secrets, as it is shown and recorded."""
    return shown(tracking_uri(config))


def check_reachable(config: RunConfig) -> None:
    """Asks a tracking server for its health; an SQLite file needs only the storage root. Raises ConfigError."""
    uri = tracking_uri(config)
    if not uri.startswith(("http://", "https://")):
        return
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        # Any answer will do: a server may be behind another login, or under another path.
        http_request(get_default_host_creds(uri), "/health", "GET", max_retries=0, raise_on_status=False, timeout=10)
    except MlflowException as error:
        raise ConfigError(
            f"no MLflow server answers at {address(config)} ({error}): start it, or point tracking.uri or "
            "MLFLOW_TRACKING_URI at one that runs"
        ) from error


def check_names(config: RunConfig) -> None:
    """Asks MLflow itself for the names of experiment, registered model and alias. Raises ConfigError."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.utils.models import _parse_model_uri
    from mlflow.utils import validation

    tracking = config.tracking
    for field, check in (
        ("experiment", validation._validate_experiment_name),
        ("registered_model", validation._validate_model_name),
        ("alias", validation._validate_model_alias_name),
        ("alias", validation._validate_model_alias_name_reserved),
    ):
        try:
            check(getattr(tracking, field))
        except MlflowException as error:
            raise ConfigError(f"tracking.{field}: {getattr(tracking, field)!r} is refused ({error.message})") from error
    address = f"models:/{tracking.registered_model}@{tracking.alias}"
    try:
        read = _parse_model_uri(address)
        found = read.name == tracking.registered_model and read.alias == tracking.alias
    except MlflowException:
        found = False
    if not found:
        raise ConfigError(
            f"tracking.registered_model: {address!r} is no address that a model can be loaded from; give letters, "
            "digits, dots, - and _"
        )


def client(config: RunConfig) -> Any:
    """An `MlflowClient` for the run's tracking server; the first use of a fresh SQLite file creates its tables."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    uri = tracking_uri(config)
    if uri.startswith("sqlite:///"):
        storage.local_path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

    mlflow.set_tracking_uri(uri)
    try:
        return mlflow.MlflowClient(tracking_uri=uri)
    except UnsupportedModelRegistryStoreURIException as error:
        known = ", ".join(filter(None, error.supported_uri_schemes))
        raise ConfigError(f"MLflow knows no store {address(config)}; begin it with one of {known}") from None


@contextmanager
def uploading() -> Iterator[None]:
    """Gives requests `UPLOAD_S` or more, as the environment says, while a model's files are sent; behind `client`."""
    short = os.environ[TIME_LIMIT]
    os.environ[TIME_LIMIT] = str(max(UPLOAD_S, int(short)))
    try:
        yield
    finally:
        os.environ[TIME_LIMIT] = short


def experiment(config: RunConfig, mlflow_client: Any) -> str:
    """The experiment's id; created where it is not there, with its artifacts below the storage root for a database."""
    from mlflow.exceptions import MlflowException

    name = config.tracking.experiment
    found = mlflow_client.get_experiment_by_name(name)
    if found is None:
        remote = tracking_uri(config).startswith(("http://", "https://"))
        location = None if remote else storage.join(storage.absolute(config.storage), "mlartifacts")
        try:
            return str(mlflow_client.create_experiment(name, artifact_location=location, tags={KIND: TRAINING}))
        except MlflowException:
            found = mlflow_client.get_experiment_by_name(name)  # another run created it meanwhile
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise ConfigError(
            f"the MLflow experiment {name!r} was deleted: restore it (`mlflow experiments restore -x "
            f"{found.experiment_id}`) or set tracking.experiment to another name"
        )
    if KIND not in found.tags:
        mlflow_client.set_experiment_tag(found.experiment_id, KIND, TRAINING)
    return str(found.experiment_id)


def metric_name(*parts: str) -> str:
    """`parts` joined by `/`, as MLflow takes the name of a metric, parameter or tag, whatever a task is called.

    What it refuses becomes `_`: other characters, and parts that a path would lose (`a//b`, `..`). The end of a name
    that is too long becomes its hash.
    """
    clean = re.sub(r"[^\w\-. /:]", "_", "/".join(parts))
    name = "/".join(part if part.strip(".") else "_" * max(len(part), 1) for part in clean.split("/"))
    if name.startswith(".."):
        name = f"_{name}"
    return name if len(name) <= MAX_NAME else hashed_name(name, *parts)


def hashed_name(name: str, *parts: str) -> str:
    """`name` with the hash of `parts` at its end."""
    digest = hashlib.sha256("/".join(parts).encode()).hexdigest()[:8]
    return f"{name[: MAX_NAME - 9]}-{digest}"
