import os
import urllib.request

import pytest

from amvl_core.contracts import storage
from amvl_core.contracts.loopback import past_proxies


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every proxy that the environment can name is a port where nobody listens."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")


def test_an_object_store_on_this_machine_is_asked_directly(s3_bucket: str, proxied: None) -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # a client reads the environment once
    storage.write_bytes(f"{s3_bucket}/proxied", b"1")
    assert storage.read_bytes(f"{s3_bucket}/proxied") == b"1"


def test_hosts_that_were_named_stay(proxied: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "example.org, 10.0.0.1")
    for _ in range(2):
        past_proxies()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "example.org,10.0.0.1,127.0.0.1,localhost,::1"
    assert all(urllib.request.proxy_bypass(host) for host in ("localhost", "127.0.0.1", "example.org"))
    assert not urllib.request.proxy_bypass("example.com")


def test_a_star_stands_alone(proxied: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    past_proxies()
    assert os.environ["no_proxy"] == "*"
