"""The real pipeline from the command line and as a deployment: Ray, DeepSpeed, Prefect and MLflow, a few steps each.

One folder for the file: the first run does the work, everything after it finds the records.
"""

import io
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from amvl_core.contracts.config import validate
from amvl_core.contracts.fingerprints import evaluate_fingerprint
from amvl_core.contracts.records import CheckpointRecord, DatasetRecord, load_record
from amvl_core.eval.benchmarks.__main__ import main
from amvl_core.methods.amvl.presets import demo
from flows.ablations import planned
from flows.full_pipeline import compared_with
from flows.parameters import resolve
from tests.amvl_core.eval.benchmarks import published

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = [
    '--param=data={"sources": [{"kind": "microworld", "train": 64, "test": 16}], "accept_losses": true}',
    "--param=cluster.num_workers=1",
    "--param=trainer.log_every=1",
    "--param=evaluation.sampled_items=2",
    "--param=evaluation.max_new_tokens=48",
    *(
        f'--param=stages.{stage}={{"steps": 2, "global_batch": 8, "micro_tokens": 512}}'
        for stage in ("sft", "embedding_adaptation", "amvl")
    ),
]
PROXIES = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
"""Where nobody listens: whatever asks this machine's own servers through a proxy fails."""
pytestmark = pytest.mark.timeout(600)


def test_the_final_model_is_compared_with_the_last_one_without_latents_whatever_its_stage_is_called() -> None:
    fields = demo().model_dump(mode="json")
    stages = fields.pop("stages")
    latent = ("embedding_adaptation", "amvl")
    for names, expected in ((("warm", *latent), "warm"), (latent, None)):
        own = dict(zip(names, list(stages.values())[-len(names) :], strict=True))
        assert compared_with(validate({**fields, "stages": own})) == expected


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def benchmarks(folder: Path) -> list[dict[str, str]]:
    """A published benchmark with several images a question, in its own layout below `folder`."""
    (folder / "blink").mkdir(exist_ok=True)
    published.blink(folder / "blink", image_1=None)
    return [{"name": "blink", "uri": str(folder / "blink")}]


class Checkout:
    """A folder that looks like the checkout, with state and ports of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "flows").symlink_to(REPOSITORY / "flows")
        (folder / "prefect.yaml").write_text((REPOSITORY / "prefect.yaml").read_text())
        self.benchmarks = benchmarks(folder)
        self.small = [*SMALL, f"--param=evaluation.benchmarks={json.dumps(self.benchmarks)}"]
        self.prefect_port, self.mlflow_port = free_ports(2)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "RAY_"))}
        home = str(folder / ".amvl" / "prefect")
        self.environment = kept | {
            "PREFECT_PORT": str(self.prefect_port),
            "MLFLOW_PORT": str(self.mlflow_port),
            "PREFECT_HOME": home,
            "PYTHONPATH": str(REPOSITORY),
        }

    def command(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=540,
        )

    def records(self) -> dict[Path, float]:
        return {path: path.stat().st_mtime for path in self.folder.glob(".amvl/storage/*/*/record.json")}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return Checkout(tmp_path_factory.mktemp("checkout"))


def test_a_run_that_is_told_to_end_puts_its_server_away_and_marks_its_runs(checkout: Checkout) -> None:
    """It comes first in the folder: Prefect's server makes its database here, and all later ones find it."""
    run = subprocess.Popen(
        [sys.executable, "-m", "flows", "demo", *SMALL],
        cwd=checkout.folder,
        env=checkout.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stderr is not None
    lines = []
    for line in run.stderr:
        lines.append(line)
        if "prepare: starts" in line:
            break
    run.send_signal(signal.SIGTERM)
    rest = run.stderr.read()
    assert run.wait(timeout=60) == 130, "".join(lines) + rest
    assert rest.splitlines()[-1].startswith("interrupted; the next run goes on")
    assert "Traceback" not in rest
    page = next(line for line in lines if "View at" in line).split("127.0.0.1:")[1]
    deadline = time.monotonic() + 20
    while _listens(int(page.split("/")[0])) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _listens(int(page.split("/")[0]))
    states = {"prefect/prefect.db": "SELECT state_type FROM flow_run", "storage/mlflow.db": "SELECT status FROM runs"}
    found = {}
    for name, query in states.items():
        with sqlite3.connect(checkout.folder / ".amvl" / name) as database:
            found[name] = database.execute(query).fetchall()
        database.close()
    assert found == {"prefect/prefect.db": [("CRASHED",)], "storage/mlflow.db": [("KILLED",)]}


@pytest.fixture(scope="module")
def first(checkout: Checkout) -> subprocess.CompletedProcess[str]:
    done = checkout.command("flows", "demo", *checkout.small, **PROXIES)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_the_first_run_does_every_stage_and_shows_the_scores(
    checkout: Checkout, first: subprocess.CompletedProcess[str]
) -> None:
    stages = sorted(path.parts[-3] for path in checkout.records())
    for path in checkout.records():
        if path.parts[-3] == "train":  # a later run draws it
            assert [event["done"] for event in json.loads(path.with_name("history.json").read_text())] == [1, 2]
    once = ["analyse", "benchmark", "prepare", "register", "report", "sampling"]
    assert stages == sorted([*once, *["evaluate"] * 4, *["faithfulness"] * 2, *["train"] * 3])
    for text in (
        "Published benchmarks",
        "blink",
        "majority",
        "base model (sft)",
        "AMVL",
        "colour",
        "all",
        "answers cut",
        "models:/amvl/1 (challenger: ",
        " of 16 answers were cut before their end; ",  # after two steps a model does not end what it says
        "Weights  ",
    ):
        assert text in first.stdout
    assert f"http://127.0.0.1:{checkout.prefect_port}/runs/flow-run/" in first.stdout
    assert "Traceback" not in first.stderr
    assert "amvl: 2/2  loss" in first.stderr
    # Its own server is nowhere where another run would look for one.
    assert "View at http://127.0.0.1:" in first.stderr
    assert f"View at http://127.0.0.1:{checkout.prefect_port}/" not in first.stderr


def test_the_registered_model_answers(checkout: Checkout, first: subprocess.CompletedProcess[str]) -> None:
    import mlflow
    import pandas as pd
    from PIL import Image

    mlflow.set_tracking_uri(f"sqlite:///{checkout.folder}/.amvl/storage/mlflow.db")
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, "PNG")
    model = mlflow.pyfunc.load_model("models:/amvl@challenger")
    answers = model.predict(pd.DataFrame({"image": [buffer.getvalue()], "question": ["What colour is it?"]}))
    assert len(answers) == 1
    assert isinstance(answers[0], str)


def test_the_tracking_run_holds_the_curves(checkout: Checkout, first: subprocess.CompletedProcess[str]) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{checkout.folder}/.amvl/storage/mlflow.db")
    run = client.get_run(client.get_model_version_by_alias("amvl", "challenger").run_id)
    assert run.info.status == "FINISHED"
    for stage in ("sft", "embedding_adaptation", "amvl"):
        for name in ("loss", "lr", "tokens_per_s", "grad_norm"):
            assert [point.step for point in client.get_metric_history(run.info.run_id, f"{stage}/{name}")] == [1, 2]
    for name in ("ntp", "kl_forward", "kl_reverse", "beta", "gamma"):
        assert f"amvl/{name}" in run.data.metrics
    assert {a.path for a in client.list_artifacts(run.info.run_id, "figures")} == {
        f"figures/{name}.png"
        for name in (
            "faithfulness",
            "faithfulness_blink",
            "geometry",
            "information",
            "occlusion",
            "sampling",
            "scores",
            "sensitivity",
            "similarity",
            "training",
        )
    }
    tables = {a.path for a in client.list_artifacts(run.info.run_id, "tables")}
    assert {f"tables/{name}.{kind}" for name in ("scores", "scores_blink") for kind in ("md", "csv", "json")} <= tables
    for what in ("", "_low", "_high", "_p", "_n"):
        assert f"difference_blink/unwrapped/overall{what}" in run.data.metrics
        assert f"difference_test/exact match/all{what}" in run.data.metrics
    assert run.data.tags["amvl.faithfulness"].startswith("Swapping the latents between items changes accuracy by ")
    assert run.data.tags["amvl.faithfulness.blink"].startswith("Swapping the latents between items changes accuracy")
    assert run.data.metrics["faithfulness/unchanged/difference"] == 0
    assert "report.html" in {a.path for a in client.list_artifacts(run.info.run_id)}
    assert {a.path for a in client.list_artifacts(run.info.run_id, "data")} == {"data/report.html", "data/report.json"}


def test_predictions_of_the_flow_are_scored_without_a_model(
    checkout: Checkout, first: subprocess.CompletedProcess[str], capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, list[str]] = {}
    for path in checkout.folder.glob(".amvl/storage/evaluate/*/record.json"):
        names.setdefault(json.loads(path.read_text())["benchmark"], []).append(
            str(path.with_name("predictions.parquet"))
        )
    assert {name: len(files) for name, files in names.items()} == {"blink": 2, "test split": 2}
    assert main(["blink", *names["blink"]]) == 0
    shown = capsys.readouterr().out
    assert shown.count("| Jigsaw | 2 |") == 6  # a table for each, and a comparison under each of four readings
    assert "| 77.33 |" in shown
    assert main(["microworld", names["test split"][0]]) == 0


@pytest.fixture(scope="module")
def served(checkout: Checkout) -> Iterator[dict[str, str]]:
    """The servers and the worker of `make serve`; yields the environment that points a command at them."""
    server = subprocess.Popen(
        [sys.executable, "-m", "flows", "serve"],
        cwd=checkout.folder,
        env=checkout.environment | PROXIES,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []
    ready = threading.Event()

    def read() -> None:
        assert server.stdout is not None
        for line in server.stdout:
            lines.append(line)
            if line.startswith("Ctrl-C"):
                ready.set()
        ready.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    ready.wait(timeout=200)
    try:
        assert server.poll() is None, "".join(lines)
        yield {"PREFECT_API_URL": f"http://127.0.0.1:{checkout.prefect_port}/api"}
    finally:
        server.terminate()  # as Ctrl-C, which a process that was started in the background does not hear
        server.wait(timeout=60)
        reader.join(timeout=10)
    assert server.returncode == 0, "".join(lines)
    assert not any(_listens(port) for port in (checkout.prefect_port, checkout.mlflow_port))


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_deployment_run_reuses_what_the_command_line_made(
    checkout: Checkout, first: subprocess.CompletedProcess[str], served: dict[str, str]
) -> None:
    before = checkout.records()
    stage = {"steps": 2, "global_batch": 8, "micro_tokens": 512}
    given = {
        "data": {"sources": [{"kind": "microworld", "train": 64, "test": 16}], "accept_losses": True},
        "cluster": {"num_workers": 1},
        "trainer": {"log_every": 1},
        "evaluation": {"benchmarks": checkout.benchmarks, "sampled_items": 2, "max_new_tokens": 48},
        "stages": dict.fromkeys(("sft", "embedding_adaptation", "amvl"), stage),
    }
    parameters = [f"--param={name}={json.dumps(value)}" for name, value in given.items()]
    done = checkout.command("prefect", "deployment", "run", "amvl/demo", "--watch", *parameters, **served)
    assert done.returncode == 0, done.stdout + done.stderr
    assert checkout.records() == before
    # Stage, score and page of each; no line for the states of a task run, and the run is called as in MLflow.
    shown = " ".join(done.stdout.split())
    assert "prefect.task-run" not in shown and "Finished in state Completed()" not in shown
    for text in (
        "train sft: reused",
        "test split: base model (sft) ",
        "difference",
        "blink: base model",
        "report: http",
    ):
        assert text in shown
    assert "prefect.flow-run.Completed * sft+amvl on microworld, seed 0, 20" in shown
    assert f"http://127.0.0.1:{checkout.mlflow_port}/#/experiments/" in shown


def test_a_second_run_reuses_everything_and_is_shown_by_the_servers_of_its_folder(
    checkout: Checkout, first: subprocess.CompletedProcess[str], served: dict[str, str]
) -> None:
    """Whatever their ports: none is in the environment."""
    before = checkout.records()
    ports = ("PREFECT_PORT", "MLFLOW_PORT")
    mine = {name: checkout.environment.pop(name) for name in ports}
    try:
        done = checkout.command("flows", "demo", *checkout.small)
    finally:
        checkout.environment |= mine
    assert done.returncode == 0, done.stderr
    assert checkout.records() == before
    assert done.stderr.count("reused") == 15
    for line in ("evaluate amvl: ", "evaluate amvl on blink: ", "faithfulness amvl on blink: ", "register: "):
        assert done.stderr.count(f"{line}reused") == 1
    assert "models:/amvl/1 (challenger" in done.stdout
    assert first.stdout.split("Model")[0] == done.stdout.split("Model")[0]
    page = next(line for line in done.stdout.splitlines() if line.startswith("MLflow"))
    assert (
        page.startswith(f"MLflow   http://127.0.0.1:{checkout.mlflow_port}/#/experiments/") and "opens it" not in page
    )
    flow = next(line for line in done.stdout.splitlines() if line.startswith("Prefect"))
    address = flow.split()[1].replace("/runs/flow-run/", "/api/flow_runs/")
    with urllib.request.urlopen(address, timeout=10) as answer:
        assert json.load(answer)["name"].startswith("sft+amvl on microworld, seed 0, 20")


@pytest.mark.slow
def test_an_ablation_table_takes_up_what_is_there_and_goes_on_after_a_failure(
    checkout: Checkout, first: subprocess.CompletedProcess[str], served: dict[str, str]
) -> None:
    """Table 11 trains nothing that the pipeline has not: with its seed only four temperatures are left to evaluate, on
    the test split and the benchmark, and the suite without controls, which all rows share.

    The record of one of them is damaged at first: that row fails, the others are finished, and a second run needs
    only the one.
    """
    import mlflow

    stage = {"steps": 2, "global_batch": 8, "micro_tokens": 512}
    given = {
        "data": {"sources": [{"kind": "microworld", "train": 64, "test": 16}], "accept_losses": True},
        "cluster": {"num_workers": 1},
        "stages": dict.fromkeys(("sft", "embedding_adaptation", "amvl"), stage),
        "evaluation": {
            "benchmarks": checkout.benchmarks,
            "max_new_tokens": 48,
        },  # training samples are compared with them
    }
    chosen = {"table": 11, "seeds": 1, "preset": "demo", **given}
    command = ["prefect", "deployment", "run", "amvl/ablations", "--watch"]
    command += [f"--param={name}={json.dumps(value)}" for name, value in chosen.items()]
    before = checkout.records()
    dataset = next(load_record(str(path.parent), DatasetRecord) for path in before if path.parts[-3] == "prepare")
    trained = [load_record(str(path.parent), CheckpointRecord) for path in before if path.parts[-3] == "train"]
    final = next(checkpoint for checkpoint in trained if checkpoint is not None and checkpoint.stage == "amvl")
    assert dataset is not None
    row = planned(resolve("demo", **given), 11, 1)["tau = 0.5"][0]
    damaged = checkout.folder / ".amvl/storage/evaluate" / evaluate_fingerprint(row, dataset, final) / "record.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{}")

    failed = checkout.command(*command, **served)
    assert failed.returncode == 1, failed.stdout + failed.stderr
    made = checkout.records().keys() - before.keys() - {damaged}
    assert sorted(path.parts[-3] for path in made) == [*["evaluate"] * 6, "faithfulness"]
    damaged.unlink()
    done = checkout.command(*command, **served)
    assert done.returncode == 0, done.stdout + done.stderr
    again = checkout.records().keys() - before.keys() - made
    assert sorted(path.parts[-3] for path in again) == ["ablation", "evaluate", "evaluate"]

    client = mlflow.MlflowClient(f"sqlite:///{checkout.folder}/.amvl/storage/mlflow.db")
    table = json.loads(next(path for path in again if path.parts[-3] == "ablation").read_text())
    parent = client.get_run(table["run_id"])
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {run.info.run_name for run in children} == {f"tau = {tau}, seed 0" for tau in (0, 0.2, 0.5, 0.8, 1)}
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert {uri for row in table["rows"][1:] for uri in row["checkpoints"].values()} == {final.uri}
    found = {artifact.path for artifact in client.list_artifacts(table["run_id"], "tables")}
    names = ("11", "11_benchmarks", "11_latents", "11_measured")
    assert {"tables/ablation_11.md", *(f"tables/ablation_{name}.csv" for name in names)} <= found
    assert [row["swap"]["n"] for row in table["rows"][1:]] == [dataset.rows("test")] * 5
    assert [list(row["benchmarks"]) for row in table["rows"]] == [["blink"]] * 6


@pytest.mark.parametrize(
    ("parameter", "path", "field"),
    [
        ("sede=3", "", "sede"),
        ('cluster={"num_wrkers": 1}', "cluster", "num_wrkers"),
        ('stages={"amvl": {"method": {"beta_mx": 1}}}', "stages.amvl.method", "beta_mx"),
    ],
)
def test_a_typo_in_a_deployment_parameter_is_refused_at_once(
    checkout: Checkout, served: dict[str, str], parameter: str, path: str, field: str
) -> None:
    done = checkout.command("prefect", "deployment", "run", "amvl/demo", "--param", parameter, **served)
    shown = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1
    assert path in shown
    assert f"'{field}'" in shown


def test_a_port_in_use_is_one_message(checkout: Checkout) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = checkout.command("flows", "serve", PREFECT_PORT=str(port))
    assert done.returncode == 1
    assert f"port {port}, which Prefect needs, is in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_storage_root_that_cannot_be_written_is_one_message(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = checkout.command("flows", "demo", f"--param=storage={tmp_path}/file/below")
    assert done.returncode == 1
    assert "StorageError: cannot write" in done.stderr
    assert "Traceback" not in done.stderr
