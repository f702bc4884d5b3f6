from typing import Any

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
    ("params", "changes"),
    [
        (
            [
                'data={"max_tokens": 1024}',
                'data={"max_pixels": 4096}',
                "data.min_pixels=256",
                'data={"max_tokens": 512}',
            ],
            {"data": {"max_tokens": 512, "max_pixels": 4096, "min_pixels": 256}},
        ),
        (
            ["stages.amvl.steps=10", 'stages={"amvl": {"lr": 1}, "sft": {"steps": 5}}'],
            {"stages": {"amvl": {"steps": 10, "lr": 1}, "sft": {"steps": 5}}},
        ),
        (  # a kind that is named later is that of the fields before it; another kind begins anew
            ["stages.amvl.method.beta_max=2", 'stages.amvl.method={"kind": "amvl"}', "stages.amvl.method.gamma_max=1"],
            {"stages": {"amvl": {"method": {"kind": "amvl", "beta_max": 2, "gamma_max": 1}}}},
        ),
        (
            ['stages.amvl.method={"kind": "amvl", "beta_max": 2}', 'stages.amvl.method={"kind": "pause"}'],
            {"stages": {"amvl": {"method": {"kind": "pause"}}}},
        ),
        (['evaluation.controls=["sft"]', "evaluation.controls=[]"], {"evaluation": {"controls": []}}),
        (["seed=3", "seed=4"], {"seed": 4}),
        (["storage=/a=b"], {"storage": "/a=b"}),
    ],
)
def test_each_parameter_lies_over_those_before_it(params: list[str], changes: dict[str, Any]) -> None:
    assert parse(params) == changes


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (["data=x", "data.max_tokens=5"], 'data.max_tokens=5: data was given before as "x"; give data once'),
        (["data.sources=[]", "data.sources.0.uri=x"], r"data.sources was given before as \[\]; give data.sources once"),
        (["data=null", "data.max_tokens=5"], "data was given before as null"),
        (["seed=1", "seed.a.b=2"], "seed was given before as 1"),
        (['data={"max_tokens": 5, "max_tokens": 6}'], "max_tokens stands there twice; give it once"),
    ],
)
def test_what_would_lose_an_earlier_one_is_refused(params: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(params)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed", "write FIELD=VALUE"),
        ("data..max_tokens=5", "write FIELD=VALUE"),
        ("data.=5", "write FIELD=VALUE"),
        ("seed=" + "9" * 5000, "^--param seed: an integer of more than 4,300 digits; give a smaller one$"),
        ('data={"seed": ' + "9" * 5000 + "}", "^--param data: an integer of more than 4,300 digits"),
        (
            "data.seed=" + "[" * 100_000,
            "^--param data.seed: it is nested too deeply for any field; give a plain value$",
        ),
        ("sede=3", "sede: no such field; the fields are storage, seed"),
    ],
)
def test_what_is_no_parameter_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse([text])
