"""`ray_cluster.yaml` against Ray's own schema, without a cloud."""

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from amvl_core.methods.amvl.presets import paper
from infra.cluster import _ENVIRONMENT, Workers
from infra.plan.machines import MACHINES
from infra.plan.planner import plan

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
    assert all("RAY_AUTH_MODE=disabled" in line for line in starts)  # else a token of the head alone may be asked for
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_the_security_group_is_the_one_that_the_page_makes(written: dict[str, Any]) -> None:
    """Ray opens SSH to everybody in a group that it makes, and leaves one alone that is there."""
    page = (FILE.parent / "docs" / "cluster.md").read_text()
    assert f"--group-name {written['provider']['security_group']['GroupName']} " in page
    for kind in written["available_node_types"].values():
        assert kind["node_config"]["IamInstanceProfile"]["Name"] in page


def test_an_idle_node_goes_and_none_is_kept(written: dict[str, Any]) -> None:
    assert 5 <= written["idle_timeout_minutes"] <= 30
    assert written["available_node_types"]["a100x8"]["min_workers"] == 0
    assert written["available_node_types"]["cpus"]["min_workers"] == 0


def rented(written: dict[str, Any], count: int, **resources: float) -> dict[str, int]:
    """The nodes that Ray's autoscaler takes for `count` tasks of these resources, by type."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.core.generated.autoscaler_pb2 import ResourceRequest, ResourceRequestByCount

    config = AutoscalingConfig(validate(written), skip_content_hash=True)
    task = ResourceRequest(resources_bundle=resources)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        resource_requests=[ResourceRequestByCount(request=task, count=count)],
    )
    launches = ResourceDemandScheduler(event_logger=None).schedule(request).to_launch
    return {launch.instance_type: launch.count for launch in launches}


def test_preparation_rents_no_gpu(written: dict[str, Any]) -> None:
    """Its tasks take a CPU each (data_prep/streaming.py), and no more are asked for than there are."""
    cpus = written["available_node_types"]["cpus"]["resources"]["CPU"]
    assert rented(written, 1, CPU=1) == rented(written, cpus, CPU=1) == {"cpus": 1}
    assert rented(written, cpus + 1, CPU=1) == {"cpus": 1, "a100x8": 1}
    from ray.data._internal.cluster_autoscaler import rate_based_cluster_autoscaler

    name = "RAY_DATA_DEFAULT_CLUSTER_SCALING_UP_MAX_CPU_RESOURCE_DELTA"
    assert _ENVIRONMENT[name] == "0"
    assert f'"{name}"' in inspect.getsource(rate_based_cluster_autoscaler)


def test_training_rents_every_gpu_at_once_while_the_node_of_preparation_is_there(written: dict[str, Any]) -> None:
    workers = Workers(device="cuda", num_workers=paper().cluster.num_workers)
    assert rented(written, workers.num_workers, **workers.resources) == {"a100x8": 2}
    assert written["max_workers"] == sum(
        kind.get("max_workers", 0) for kind in written["available_node_types"].values()
    )


def test_every_disk_is_encrypted_and_every_node_has_the_same_image(written: dict[str, Any]) -> None:
    nodes = [kind["node_config"] for kind in written["available_node_types"].values()]
    assert all(disk["Ebs"]["Encrypted"] for node in nodes for disk in node["BlockDeviceMappings"])
    assert len({node["ImageId"] for node in nodes}) == 1


def test_the_code_is_where_the_setup_installs_it_and_no_secret_travels(written: dict[str, Any]) -> None:
    (target,) = written["file_mounts"]
    assert any(command.startswith(f"cd {target} && pip install") for command in written["setup_commands"])
    assert {".git/**", ".env"} <= set(written["rsync_exclude"])
    text = FILE.read_text().lower()
    assert not any(word in text for word in ("aws_secret", "password", "api_key", "hf_token"))


def test_the_planner_s_default_machines_are_these(written: dict[str, Any]) -> None:
    workers = written["available_node_types"]["a100x8"]
    machines = MACHINES["A100-80GB"]
    assert workers["node_config"]["InstanceType"] == "p4de.24xlarge"
    assert workers["resources"]["GPU"] == machines.gpus_per_node
    assert plan(paper(), machines).fits
