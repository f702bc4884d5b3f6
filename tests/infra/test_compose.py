"""`infra/compose.yaml`: its structure, without Docker; with Docker's compose plugin, its own check too."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

INFRA = Path(__file__).resolve().parents[2] / "infra"
FILE = INFRA / "compose.yaml"
SECRETS = {"POSTGRES_PASSWORD", "MINIO_ROOT_PASSWORD"}


@pytest.fixture()
def services() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())["services"]


def example() -> dict[str, str]:
    lines = (INFRA / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_its_services(services: dict[str, Any]) -> None:
    assert set(services) == {"database", "objects", "bucket", "mlflow", "prefect"}


def test_every_image_is_pinned(services: dict[str, Any]) -> None:
    for name, service in services.items():
        tag = service["image"].rpartition(":")[2]
        assert re.search(r"\d", tag), f"{name}: {service['image']}"
    dockerfile = (INFRA / "servers.Dockerfile").read_text()
    assert re.search(r"^FROM python:3\.11\.\d+-", dockerfile, re.MULTILINE)
    assert "-c /constraints.txt" in dockerfile


def test_every_port_is_on_loopback_and_differs(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert all(re.fullmatch(r"127\.0\.0\.1:\$\{[A-Z_]+:-\d+\}:\d+", port) for port in ports)
    assert len({port.split("}")[0] for port in ports}) == 4
    assert "ports" not in services["database"]


def test_whatever_stays_up_is_watched_and_waited_for(services: dict[str, Any]) -> None:
    for name, service in services.items():
        if name != "bucket":
            assert {"test", "interval", "timeout", "retries"} <= service["healthcheck"].keys(), name
        for other, how in service.get("depends_on", {}).items():
            ends = other == "bucket"
            assert how["condition"] == ("service_completed_successfully" if ends else "service_healthy")


def test_state_is_in_named_volumes(services: dict[str, Any]) -> None:
    declared = yaml.safe_load(FILE.read_text())["volumes"]
    used = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])}
    assert used == set(declared) == {"database", "objects"}


def test_every_variable_is_in_the_example_and_no_secret_has_a_value() -> None:
    text = FILE.read_text()
    used = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", text))
    assert used == set(example())
    for secret in SECRETS:
        assert example()[secret] == ""
        assert all(":?" in hit for hit in re.findall(rf"(?<!\$)\$\{{{secret}[^}}]*\}}", text))
    # A password that is written down would stand behind one of these names.
    for service in yaml.safe_load(text)["services"].values():
        for key, value in service.get("environment", {}).items():
            if "PASSWORD" in key or "SECRET" in key:
                assert str(value).startswith("${"), key


def test_the_local_file_of_secrets_is_ignored_by_git() -> None:
    assert ".env" in (INFRA.parent / ".gitignore").read_text().splitlines()


@pytest.mark.docker
def test_compose_itself_accepts_it(tmp_path: Path) -> None:
    values = tmp_path / "env"
    values.write_text("".join(f"{name}={value or 'x'}\n" for name, value in example().items()))
    command = ["docker", "compose", "--file", str(FILE), "--env-file", str(values), "config", "--quiet"]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
