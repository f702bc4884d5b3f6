"""Servers of this machine are asked directly, whatever proxy the environment names."""

import os

HOSTS = ("127.0.0.1", "localhost", "::1")


def past_proxies() -> None:
    """Adds loopback to the hosts that clients of this process and its children ask without a proxy."""
    names = ("no_proxy", "NO_PROXY")  # some libraries read the one, some the other
    given = [host.strip() for name in names for host in os.environ.get(name, "").split(",")]
    if "*" not in given:  # which stands for all hosts only where it stands alone
        hosts = dict.fromkeys([*filter(None, given), *HOSTS])
        os.environ.update(dict.fromkeys(names, ",".join(hosts)))
