import pytest

from amvl_core.errors import ConfigError, DataError
from flows.__main__ import main
from flows.run import parse


def test_parameters_as_json_or_by_dotted_path() -> None:
    assert parse(["seed=3", "storage=/x", 'cluster={"num_workers": 1}', "stages.amvl.steps=10"], []) == {
        "seed": 3,
        "storage": "/x",
        "cluster": {"num_workers": 1},
        "stages": {"amvl": {"steps": 10}},
    }


def test_what_is_no_parameter_is_refused() -> None:
    with pytest.raises(ConfigError, match="write FIELD=VALUE"):
        parse(["seed"], [])
    with pytest.raises(ConfigError, match="sede: no such field; the fields are storage, seed"):
        parse(["sede=3"], [])
    with pytest.raises(DataError, match=r"/nowhere\.zip does not exist"):
        parse([], ["/nowhere.zip"])


def test_a_typo_ends_the_command_with_one_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(str(tmp_path))
    assert main(["demo", "--param", "cluster.num_wrkers=2"]) == 1
    shown = capsys.readouterr().err
    assert "ConfigError: the configuration has an error:\n  cluster.num_wrkers: Extra inputs are not permitted" in shown
    assert "Traceback" not in shown
