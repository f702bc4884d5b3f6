"""Each row changes exactly what its table says."""

import pytest

from amvl_core.contracts import ablations
from amvl_core.contracts.config import RunConfig, flatten, override
from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.presets import PRESETS
from amvl_core.methods.amvl.presets import demo, paper
from amvl_core.methods.amvl.tables import TABLES
from amvl_core.methods.pause.config import PauseMethod
from amvl_core.methods.sft.config import SftMethod

AMVL = ("embedding_adaptation", "amvl")


def changed(table: str, label: str, config: RunConfig | None = None) -> dict[str, str]:
    """Field -> its value in the row, for the fields that differ from the configuration."""
    config = config or paper()
    row = next(row for row in TABLES[table].rows if row.label == label)
    old, new = flatten(config), flatten(row.change(config))
    assert old.keys() == new.keys()
    return {key: new[key] for key in old if old[key] != new[key]}


def equal_steps(config: RunConfig) -> RunConfig:
    return SftMethod.control(config)[1]


def pause_tokens(config: RunConfig) -> RunConfig:
    return PauseMethod.control(config)[1]


def methods(**fields: object) -> dict[str, str]:
    return {f"stages.{stage}.method.{key}": str(value) for stage in AMVL for key, value in fields.items()}


EXPECTED: list[tuple[str, str, dict[str, str]]] = [
    ("3", "NTP", methods(beta_max=0.0, gamma_max=0.0)),
    ("3", "Fwd only", methods(ntp_weight=0.0, gamma_max=0.0)),
    ("3", "Rev only", methods(ntp_weight=0.0, beta_max=0.0)),
    ("3", "NTP+Fwd", methods(gamma_max=0.0)),
    ("3", "NTP+Rev", methods(beta_max=0.0)),
    ("3", "NTP+Fwd+Rev, reverse-first", methods(beta_start=1000, gamma_start=0)),
    ("3", "NTP+Fwd+Rev, forward-first", {}),
    ("4", "k = 4", {"latent.num_slots": "4"}),
    ("4", "k = 16", {"latent.num_slots": "16"}),
    ("4", "d = 128", {"latent.dim": "128"}),
    ("4", "d = 256", {"latent.dim": "256"}),
    ("4", "d = 768", {"latent.dim": "768"}),
    ("4", "k = 8, d = 512", {}),
    ("8", "linear", {"latent.head": "linear"}),
    ("8", "MLP", {"latent.head": "mlp"}),
    ("8", "native", {}),
    ("8", "deeper native", {"latent.head": "deeper"}),
    ("9", "(1, 1, 1)", {}),
    ("9", "(1, 0.5, 1)", methods(beta_max=0.5)),
    ("9", "(1, 1, 0.5)", methods(gamma_max=0.25)),
    ("9", "(2, 1, 1)", methods(ntp_weight=2.0)),
    ("9", "(2, 0.5, 1)", methods(ntp_weight=2.0, beta_max=0.5)),
    ("9", "(2, 1, 0.5)", methods(ntp_weight=2.0, gamma_max=0.25)),
    ("10", "without forward", methods(stop_gradient_forward=False)),
    ("10", "without reverse", methods(stop_gradient_reverse=False)),
    ("10", "without both", methods(stop_gradient_forward=False, stop_gradient_reverse=False)),
    ("10", "both kept", {}),
    ("11", "tau = 0", {}),
    ("11", "tau = 0.2", {"evaluation.tau": "0.2"}),
    ("11", "tau = 0.5", {"evaluation.tau": "0.5"}),
    ("11", "tau = 0.8", {"evaluation.tau": "0.8"}),
    ("11", "tau = 1", {"evaluation.tau": "1.0"}),
    ("controls", "AMVL", {}),
]


@pytest.mark.parametrize(("table", "label", "expected"), EXPECTED)
def test_a_row_changes_what_it_says(table: str, label: str, expected: dict[str, str]) -> None:
    assert changed(table, label) == expected


def test_every_row_is_tested_and_every_headline_is_the_run_as_configured() -> None:
    rows = {(name, row.label) for name, table in TABLES.items() for row in table.rows}
    assert rows - {("controls", "SFT, equal steps"), ("controls", "pause tokens")} == {e[:2] for e in EXPECTED}
    for name, table in TABLES.items():
        assert changed(name, table.headline) == {}


def test_a_smaller_model_has_widths_in_the_papers_proportions() -> None:
    assert changed("4", "k = 4", demo()) == {"latent.num_slots": "2"}
    assert changed("4", "k = 16", demo()) == {"latent.num_slots": "8"}
    assert changed("4", "d = 768", demo()) == {"latent.dim": "48"}


def test_sft_takes_as_many_steps_from_the_same_base() -> None:
    config = equal_steps(demo())
    assert list(config.stages) == ["sft", "sft_equal_steps"]
    assert config.stages["sft"] == demo().stages["sft"]
    control, amvl = config.stages["sft_equal_steps"], demo().stages["amvl"]
    assert (control.method.kind, control.steps, control.epochs) == ("sft", 220, None)
    assert control == amvl.model_copy(update={"method": control.method, "steps": 220})
    assert equal_steps(paper()).stages["sft_equal_steps"].epochs == pytest.approx(3.0)
    mixed = override(demo(), {"stages": {"amvl": {"steps": None, "epochs": 1}}})
    with pytest.raises(ConfigError, match="both steps and epochs"):
        equal_steps(mixed)


def test_pause_tokens_take_the_same_stages() -> None:
    config = pause_tokens(demo())
    assert list(config.stages) == ["sft", "pause_embedding_adaptation", "pause_amvl"]
    for name in AMVL:
        stage, before = config.stages[f"pause_{name}"], demo().stages[name]
        assert stage.method.kind == "pause"
        assert stage.model_copy(update={"method": before.method}) == before


def test_a_control_has_the_steps_of_a_method_that_hides_them() -> None:
    """AMVL's hidden steps are pause tokens' replaced ones."""
    for hidden, replaced in (("all", None), (2, 2), (0, 0)):
        found = pause_tokens(override(demo(), {"stages": {"amvl": {"method": {"hidden_steps": hidden}}}}))
        assert found.stages["pause_amvl"].method.model_dump()["replaced_steps"] == replaced


def test_controls_start_where_the_latent_stages_start() -> None:
    config = override(demo(), {"evaluation": {"controls": ["sft", "pause"]}})
    own = {label: [n for n in c.stages if n not in config.stages] for label, c in ablations.controls(config).items()}
    assert own == {
        "SFT, equal steps": ["sft_equal_steps"],
        "pause tokens": ["pause_embedding_adaptation", "pause_amvl"],
    }
    assert ablations.controls(override(config, {"evaluation": {"faithfulness_items": 0}})) == {}
    assert ablations.controls(demo()) == {}
    assert list(ablations.controls(paper())) == ["SFT, equal steps", "pause tokens"]


@pytest.mark.parametrize(
    ("preset", "evaluation"), [("demo", {"tau": 0.5}), ("valr-demo", {"latent_mode": "every_step", "latent_steps": 2})]
)
def test_controls_are_evaluated_without_what_is_for_latents(preset: str, evaluation: dict[str, object]) -> None:
    config = override(PRESETS[preset](), {"evaluation": {**evaluation, "controls": ["sft", "pause", "markers"]}})
    for control in ablations.controls(config).values():
        assert (control.evaluation.tau, control.evaluation.latent_mode, control.evaluation.latent_steps) == (
            0,
            None,
            None,
        )


def test_rows_share_the_stages_before_the_first_latent_one() -> None:
    assert ablations.shared_stages(demo()) == ["sft"]
    assert ablations.shared_stages(paper()) == []


def test_a_table_that_the_method_does_not_have_is_refused() -> None:
    assert ablations.table_of(demo(), 3) is TABLES["3"]
    with pytest.raises(ConfigError, match="amvl has no ablation table 5; choose one of 3, 4, 8, 9, 10, 11, controls"):
        ablations.table_of(demo(), "5")
    without = demo().model_copy(update={"stages": {"sft": demo().stages["sft"]}})
    with pytest.raises(ConfigError, match="sft has no ablation table 3; it has none"):
        ablations.table_of(without, 3)


def test_a_seed_is_that_of_training_and_drawing() -> None:
    config = ablations.with_seed(demo(), 5)
    old, new = flatten(demo()), flatten(config)
    assert {key: new[key] for key in old if old[key] != new[key]} == {"seed": "5", "evaluation.seed": "5"}


def test_the_difference_is_said_in_a_few_words() -> None:
    assert ablations.difference(demo(), demo()) == "as configured"
    assert (
        ablations.difference(demo(), TABLES["3"].rows[0].change(demo())) == "beta_max 1.0 -> 0.0, gamma_max 0.5 -> 0.0"
    )
    assert ablations.difference(demo(), pause_tokens(demo())) == "pause in the place of amvl"
