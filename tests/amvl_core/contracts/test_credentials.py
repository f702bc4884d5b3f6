"""What is a secret in an address, and what only looks like one."""

import pytest

from amvl_core.contracts.config import TrackingConfig
from amvl_core.contracts.credentials import holds_secret, shown


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/key",
        "s3://bucket/key@v1:2/a?b",
        "s3://bucket/a?versionId=x",
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "/data/me@home:1/what?token=x",
        "file:///data/a:b@c?password=x",
        "sqlite:////tmp/a:b@c/mlflow.db?password=x",
        "https://host:8443/data@v1.tar.gz?download=1",
        "abfs://container@account.dfs.core.windows.net/x",
        "postgresql://u@db:5432/m?sslmode=require&passfile=/home/u/.pgpass",
    ],
)
def test_what_only_looks_like_a_secret_is_none(uri: str) -> None:
    assert not holds_secret(uri)
    assert shown("sqlite:///a?password=x") == "sqlite:///a?password=x"


@pytest.mark.parametrize("uri", ["postgresql://u@db:5432/m?sslmode=require", "sqlite:////tmp/a@b/mlflow.db?mode=ro"])
def test_a_database_without_a_password_may_be_configured(uri: str) -> None:
    assert TrackingConfig(uri=uri).uri == uri
