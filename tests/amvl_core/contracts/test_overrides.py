import pytest

from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.overrides import parse


def test_json_or_dotted_path() -> None:
    assert parse(["seed=3", "storage=/x", 'cluster={"num_workers": 1}', "stages.amvl.steps=10"]) == {
        "seed": 3,
        "storage": "/x",
        "cluster": {"num_workers": 1},
        "stages": {"amvl": {"steps": 10}},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [("seed", "write FIELD=VALUE"), ("sede=3", "sede: no such field; the fields are storage, seed")],
)
def test_what_is_no_parameter_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse([text])
