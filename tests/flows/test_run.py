import pytest

from amvl_core.errors import DataError
from flows.__main__ import main
from flows.run import parse


def test_data_replace_the_sources() -> None:
    with pytest.raises(DataError, match=r"/nowhere\.zip does not exist"):
        parse(["seed=3"], ["/nowhere.zip"])


def test_a_typo_ends_the_command_with_one_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(str(tmp_path))
    assert main(["demo", "--param", "cluster.num_wrkers=2"]) == 1
    shown = capsys.readouterr().err
    assert "ConfigError: the configuration has an error:\n  cluster.num_wrkers: Extra inputs are not permitted" in shown
    assert "Traceback" not in shown
