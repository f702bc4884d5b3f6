import json
from pathlib import Path

import pytest
from rich.console import Console

from amvl_core.contracts.errors import ConfigError, DataError
from flows.__main__ import main
from flows.environment import any_port
from flows.run import FILE_WIDTH, parse, show


def test_data_replace_the_sources() -> None:
    with pytest.raises(DataError, match=r"/nowhere\.zip does not exist"):
        parse(["seed=3"], ["/nowhere.zip"])


@pytest.mark.parametrize("param", ['data={"sources": [{"kind": "microworld"}]}', "data.sources=[]", "data=x"])
def test_sources_that_are_given_twice_are_refused(param: str) -> None:
    with pytest.raises(ConfigError, match="given twice, by --data and by --param data"):
        parse([param], ["/nowhere.zip"])


def test_other_fields_of_the_data_stay_beside_the_sources(tmp_path: Path) -> None:
    line = {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "train.jsonl").write_text(json.dumps(line))
    data = parse(["data.max_tokens=99", 'data={"seed": 7}'], [str(tmp_path)])["data"]
    assert (data["max_tokens"], data["seed"], data["sources"][0]["kind"]) == (99, 7, "chat_jsonl")


def test_a_typo_ends_the_command_with_one_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(str(tmp_path))
    assert main(["demo", "--param", "cluster.num_wrkers=2"]) == 1
    shown = capsys.readouterr().err
    assert "ConfigError: the configuration has an error:\n  cluster.num_wrkers: Extra inputs are not permitted" in shown
    assert "Traceback" not in shown


def test_the_tables_of_the_terminal_name_tests_and_seed_below(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"task": "colour", "n": "100", "difference": "-2.0 (-5.0 to +0.0)", "p": "0.5000"}
    rows = [row | {"test": test, "seed": "3"} for test in ("McNemar exact", "sign flips", "-", "McNemar exact")]
    model = {"name": "amvl", "version": 1, "alias": "champion", "reason": "the first", "run_id": "r"}
    model["tracking_uri"] = "sqlite:////elsewhere/mlflow.db"
    outcome = {"scores": rows, "benchmarks": {"blink": [{"metric": "overall", "read by": "unwrapped", **rows[1]}]}}
    page = f"http://127.0.0.1:{any_port()}/#/experiments/1/runs/r"
    outcome |= {"model": model, "report": "r", "checkpoint": "c/model", "mlflow_page": page, "flow_run_id": "f"}
    show(Console(width=FILE_WIDTH), outcome, served=False)
    shown = capsys.readouterr().out
    words = " ".join(shown.split())  # a caption is wrapped at its table's width
    assert words.count("┘ p: McNemar exact, sign flips, paired by question; seed of the trainings: 3") == 1
    assert words.count("┘ p: sign flips, paired by question; seed of the trainings: 3") == 1
    heads = [line for line in shown.splitlines() if line.startswith("┃")]
    assert len(heads) == 2
    assert not [head for head in heads if "test" in head or "seed" in head]
    assert f"MLflow   {page} (`mlflow server --backend-store-uri sqlite:////elsewhere/mlflow.db` opens it)" in shown
    assert shown.endswith("/runs/flow-run/f (`make serve` opens it)\n")
