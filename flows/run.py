"""The pipeline run from the command line: progress, one table, the pages to open."""

import json
import logging
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from prefect.settings import PREFECT_API_URL, temporary_settings
from rich.console import Console
from rich.table import Table

from amvl_core.errors import AmvlError, ConfigError
from data_prep.sources import detect
from flows.environment import MLFLOW_URL, PREFECT_URL, healthy
from flows.full_pipeline import full_pipeline
from flows.parameters import resolve

NOISE = ("Finished in state", "Beginning flow run", "Created task run", "See https://docs.prefect.io")


def run_here(preset: str, data: list[str], params: list[str]) -> int:
    """Runs the flow in this process and prints its outcome; returns the exit code."""
    console = Console(stderr=False)
    try:
        changes = parse(params, data)
        resolve(preset, **changes)
        served = healthy(f"{PREFECT_URL}/api/health")
        with _api(served), _quiet():
            outcome = full_pipeline(preset, **changes)
    except AmvlError as error:
        Console(stderr=True).print(f"\n[bold red]{type(error).__name__}[/]: ", end="")
        Console(stderr=True, highlight=False).print(str(error), markup=False)
        return 1
    except KeyboardInterrupt:
        Console(stderr=True).print("\ninterrupted; a second run goes on from the last finished stage and checkpoint")
        return 130
    show(console, outcome, served)
    return 0


def parse(params: list[str], data: list[str]) -> dict[str, Any]:
    """`seed=3`, `cluster={"num_workers": 1}` or `cluster.num_workers=1` -> flow parameters; raises ConfigError."""
    changes: dict[str, Any] = {}
    for text in params:
        path, sign, value = text.partition("=")
        if not sign or not path:
            raise ConfigError(f"--param {text}: write FIELD=VALUE, for instance --param seed=3")
        target = changes
        *parents, last = path.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = _value(value)
    if data:
        sources = [detect(uri).model_dump(mode="json") for uri in data]
        changes.setdefault("data", {})["sources"] = sources
    from amvl_core.config import RunConfig

    if unknown := changes.keys() - RunConfig.model_fields.keys():
        known = ", ".join(RunConfig.model_fields)
        raise ConfigError(f"--param {', '.join(sorted(unknown))}: no such field; the fields are {known}")
    return changes


def show(console: Console, outcome: dict[str, Any], served: bool) -> None:
    """The score table and where to look further."""
    rows = outcome["scores"]
    table = Table(title="Accuracy on the test split (95 % interval)", title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "task" else "right")
    for i, row in enumerate(rows):
        last = i == len(rows) - 1
        table.add_row(*row.values(), style="bold" if last else None, end_section=i == len(rows) - 2)
    console.print()
    console.print(table)
    model = outcome["model"]
    console.print(f"\nmodel    models:/{model['name']}@{model['alias']}  (version {model['version']})", highlight=False)
    pages = served and healthy(f"{MLFLOW_URL}/health")
    console.print("pages    " + ("are open:" if pages else "open with `make serve`, then:"), highlight=False)
    console.print(f"  MLflow   {outcome['mlflow_page']}", highlight=False, soft_wrap=True)
    console.print(f"  Prefect  {PREFECT_URL}/runs/flow-run/{outcome['flow_run_id']}", highlight=False, soft_wrap=True)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _api(served: bool) -> AbstractContextManager[Any]:
    """The server of `make serve` if it is up, else a temporary one on the same database."""
    if served:
        return temporary_settings(updates={PREFECT_API_URL: f"{PREFECT_URL}/api"})
    os.environ.pop("PREFECT_API_URL", None)
    return temporary_settings(restore_defaults={PREFECT_API_URL}) if PREFECT_API_URL.value() else nullcontext()


class _quiet:  # noqa: N801
    """Keeps what only Prefect's page needs out of the terminal: engine messages, tracebacks of the user's errors."""

    def __enter__(self) -> None:
        self.handlers = list(logging.getLogger().handlers)
        for handler in self.handlers:
            handler.addFilter(self._keep)

    def __exit__(self, *_: object) -> None:
        for handler in self.handlers:
            handler.removeFilter(self._keep)

    def _keep(self, record: logging.LogRecord) -> bool | logging.LogRecord:
        if any(noise in record.getMessage() for noise in NOISE):
            return False
        return not (record.exc_info and isinstance(record.exc_info[1], AmvlError))
