"""The pipeline run from the command line: progress, one table, the pages to open."""

import logging
import os
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from amvl_core.contracts import overrides
from amvl_core.contracts.config import merge
from amvl_core.contracts.errors import ConfigError
from data_prep.sources import detect
from flows.environment import PREFECT_URL, healthy, local_tracking
from flows.parameters import resolve
from flows.servers import prefect_api

FILE_WIDTH = 120
"""Columns of the tables where they go to a file or a pipe, whose width nobody knows."""
EXPLAINED = {
    "majority": "what always giving the commonest training answer of the task scores",
    "all, unwrapped": "the final answer is looked for in what the model wrote; all: the last lines must be the answer",
    "answers cut": "not at their end when the model had written as many tokens as it may",
}
"""What the columns and rows of the score table are."""
NOISE = ("Finished in state", "Beginning flow run", "Created task run", "Crash detected")


def run_here(preset: str, data: list[str], params: list[str]) -> int:
    """Runs the flow in this process and prints its outcome; raises AmvlError."""
    changes = parse(params, data)
    resolve(preset, **changes)  # a typo is refused before anything is started
    api = prefect_api()
    if api.own:
        print("starting Prefect ...", file=sys.stderr, flush=True)
    from flows.full_pipeline import full_pipeline  # takes about as long as the server does
    from flows.outbox import told

    api.wait()
    quiet()
    outcome = told(full_pipeline, preset, **changes)
    show(Console() if sys.stdout.isatty() else Console(width=FILE_WIDTH), outcome, served=api.own is None)
    return 0


def parse(params: list[str], data: list[str]) -> dict[str, Any]:
    """`FIELD=VALUE` texts (`amvl_core/contracts/overrides.py`) -> flow parameters.

    `data` names folders and archives that replace the preset's sources. Raises ConfigError or DataError.
    """
    changes = overrides.parse(params)
    if not data:
        return changes
    if not isinstance(given := changes.get("data", {}), dict) or "sources" in given:
        raise ConfigError("the sources are given twice, by --data and by --param data; give them once")
    return merge(changes, {"data": {"sources": [detect(uri).model_dump(mode="json") for uri in data]}})


def show(console: Console, outcome: dict[str, Any], served: bool) -> None:
    """The score table and where to look further."""
    console.print()
    console.print(_table("Accuracy on the test split (95 % interval)", outcome["scores"], overall_last=True))
    if outcome["benchmarks"]:
        left_out = ("metric", "read by")  # the first row is the overall score under the headline reading
        shown = [
            {"benchmark": name, **{k: v for k, v in rows[0].items() if k not in left_out and "(paper)" not in k}}
            for name, rows in outcome["benchmarks"].items()
        ]
        console.print(_table("Published benchmarks, overall (95 % interval)", shown))
    model = outcome["model"]
    prefect = os.environ["PREFECT_API_URL"].removesuffix("/api") if served else PREFECT_URL
    lines = [
        f"Model    models:/{model['name']}/{model['version']} ({model['alias']}: {model['reason']})",
        f"Weights  {outcome['checkpoint']}",
        f"Report   {outcome['report']}",
        f"MLflow   {outcome['mlflow_page']}" + _opened(outcome["mlflow_page"], outcome["model"]),
        f"Prefect  {prefect}/runs/flow-run/{outcome['flow_run_id']}" + ("" if served else " (`make serve` opens it)"),
    ]
    console.print("\n" + "\n".join(lines), highlight=False, soft_wrap=True)


def _opened(page: str, model: dict[str, Any]) -> str:
    """What opens an MLflow page whose server does not answer, or has not this run."""
    server, database = page.split("/#/")[0], model["tracking_uri"]
    if healthy(f"{server}/api/2.0/mlflow/runs/get?run_id={model['run_id']}") or database == server:
        return ""
    opens = "make serve" if database == local_tracking()[0] else f"mlflow server --backend-store-uri {database}"
    return f" (`{opens}` opens it)"


def _table(title: str, rows: list[dict[str, str]], overall_last: bool = False) -> Table:
    """The rows as wide as a terminal: the names of the tests and the seed stand below them."""
    tests, seeds = (
        ", ".join(dict.fromkeys(row[name] for row in rows if row[name] != "-")) for name in ("test", "seed")
    )
    rows = [{name: text for name, text in row.items() if name not in ("test", "seed")} for row in rows]
    caption = f"p: {tests}, paired by question; seed of the trainings: {seeds}"
    if overall_last:
        caption += "".join(
            f"\n{name}: {what}"
            for name, what in EXPLAINED.items()
            if any(name in (*row, *row.values()) for row in rows)
        )
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if number == 0 else "right")
    for left, row in zip(reversed(range(len(rows))), rows, strict=True):
        bold = "bold" if overall_last and left == 0 else None
        table.add_row(*row.values(), style=bold, end_section=overall_last and left == 1)
    return table


def quiet() -> None:
    """Keeps out of the terminal what only Prefect's page needs: engine messages, and errors, which come at the end."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(_for_people)


def _for_people(record: logging.LogRecord) -> bool:
    return not record.exc_info and not any(noise in record.getMessage() for noise in NOISE)
