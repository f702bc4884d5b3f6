"""`ray_cluster.yaml` against Ray's own schema, without a cloud."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from amvl_core.presets import paper

FILE = Path(__file__).resolve().parents[2] / "ray_cluster.yaml"


@pytest.fixture()
def written() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


def validate(config: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_accepts_it(written: dict[str, Any]) -> None:
    validate(written)


def test_ray_refuses_a_typo(written: dict[str, Any]) -> None:
    written["idle_timeout_minuts"] = 5
    with pytest.raises(Exception, match="idle_timeout_minuts"):
        validate(written)


def test_its_gpus_are_those_that_the_paper_preset_asks_for(written: dict[str, Any]) -> None:
    types = validate(written)["available_node_types"].values()
    gpus = sum(kind["resources"].get("GPU", 0) * kind.get("max_workers", 0) for kind in types)
    assert gpus == paper().cluster.num_workers


def test_ray_in_the_image_is_the_ray_of_the_constraints(written: dict[str, Any]) -> None:
    constraints = (FILE.parent / "constraints.txt").read_text().splitlines()
    version = next(line.split("==")[1] for line in constraints if line.startswith("ray=="))
    assert written["docker"]["image"].startswith(f"rayproject/ray:{version}-py311")


def test_no_page_listens_on_the_network_and_nothing_is_reported(written: dict[str, Any]) -> None:
    starts = [line for name in ("head", "worker") for line in written[f"{name}_start_ray_commands"] if "start" in line]
    assert all("RAY_USAGE_STATS_ENABLED=0" in line for line in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
