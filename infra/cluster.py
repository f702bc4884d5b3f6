"""Ray: a cluster that is there, or a small private one on this machine."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from amvl_core.contracts.config import ClusterConfig
from amvl_core.contracts.errors import ClusterError

CPUS_PER_WORKER = 0.5
"""What a CPU worker asks of Ray: with a whole CPU each, two workers on two cores leave none for anything else."""

ROOM_SECONDS = 5.0
REPEAT_SECONDS = 60.0

log = logging.getLogger(__name__)

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Ray Data would ask for ever more CPUs, and what nodes without GPUs do not have, GPU nodes would be rented for.
    "RAY_DATA_DEFAULT_CLUSTER_SCALING_UP_MAX_CPU_RESOURCE_DELTA": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # else a thread that outlives `disconnect` would start a Ray of its own
}
_MIB = 2**20

BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""The cluster's configuration, which `ray up` leaves on the head node, where the flow runs."""


@dataclass(frozen=True)
class Workers:
    """What training and generation run on: `num_workers` processes with a CPU device or `gpus` GPUs each."""

    device: Literal["cuda", "cpu"]
    num_workers: int
    gpus: int = 1

    @property
    def resources(self) -> dict[str, float]:
        """What one worker asks of Ray."""
        return {"CPU": 1.0, "GPU": float(self.gpus)} if self.device == "cuda" else {"CPU": CPUS_PER_WORKER}


def address(config: ClusterConfig) -> str | None:
    """Where the cluster is: RAY_ADDRESS, else `cluster.address`; None for a Ray of its own.

    In the environment `auto` is Ray's word for the cluster that runs on this machine. In `cluster.address` it is ours
    for no address.
    """
    given = os.environ.get("RAY_ADDRESS")
    chosen = given or (None if config.address == "auto" else config.address)
    return None if chosen == "local" else chosen


def connect(config: ClusterConfig) -> None:
    """Joins the cluster, or starts a private one; does nothing where this process has joined one already.

    Raises ClusterError if the address does not answer, if no Ray can be started here, or if this is a head of `ray up`
    and nothing says whether its cluster is meant.
    """
    for name, value in _ENVIRONMENT.items():  # read when Ray is imported, and inherited by its processes
        os.environ.setdefault(name, value)
    import ray

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    chosen = address(config)
    if chosen is None:
        if "local" not in (os.environ.get("RAY_ADDRESS"), config.address) and BOOTSTRAP.expanduser().is_file():
            raise ClusterError(
                f"this is the head of a cluster ({BOOTSTRAP} is there), and no address is given; set "
                "RAY_ADDRESS=127.0.0.1:6379 to run on that cluster, or RAY_ADDRESS=local to run on this machine alone"
            )
        # A process that asks whether a node is drained: this one cannot be, and two seconds of CPU time go into it.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        try:
            ray.init(
                address="local",
                num_cpus=cores(),
                object_store_memory=_object_store_bytes(),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ClusterError(
                f"Ray cannot start on this machine ({str(error).splitlines()[0]}); its files and sockets lie below "
                "RAY_TMPDIR, else TMPDIR: set RAY_TMPDIR to a short path with room on its disk, such as /tmp"
            ) from error
        _take_sigterm()
        return
    try:
        _probe(_running() if chosen == "auto" else chosen)
        ray.init(address=chosen, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        if "AuthenticationError" in str(error.__cause__):
            raise ClusterError(
                f"the Ray cluster at {chosen!r} asks for a token; set RAY_AUTH_MODE=token, and bring the cluster's "
                "~/.ray/auth_token to this machine"
            ) from error
        raise ClusterError(
            f"no Ray cluster answers at {chosen!r} ({str(error).splitlines()[0]}); start one "
            "(`ray up ray_cluster.yaml`), or set RAY_ADDRESS=local to run on this machine alone"
        ) from error
    _take_sigterm()


def cores() -> int:
    """How many cores this process may use: `taskset` and containers leave it some of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _take_sigterm() -> None:
    """Ends this process in order on SIGTERM, as Ctrl-C does.

    Ray's own handler kills it three seconds later, whatever it still has to put away; Prefect's raises what Ray's calls
    do not let through.
    """
    if threading.current_thread() is threading.main_thread():  # no other may set it
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _running() -> str:
    """HOST:PORT of the cluster that runs on this machine. Raises ConnectionError where there is none."""
    from ray._private.services import canonicalize_bootstrap_address_or_die

    found: str = canonicalize_bootstrap_address_or_die("auto")
    return found


def _probe(chosen: str) -> None:
    """Opens the address once: Ray itself goes on trying a dead one for many minutes. Raises OSError."""
    host, colon, port = chosen.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError("an address is HOST:PORT or ray://HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def disconnect() -> None:
    """Leaves the cluster; a private one ends. Does nothing where none was joined."""
    ray = sys.modules.get("ray")  # importing it to find out would take seconds
    if ray is not None and ray.is_initialized():
        ray.shutdown()


def resources(config: ClusterConfig) -> Workers:
    """The device, and as many of `num_workers` as the cluster holds; call `connect` first.

    `auto` takes GPUs where there are any, and CPUs only where the cluster has no GPU at all: an accidental CPU run of a
    large model would take weeks. Raises ClusterError with both numbers where not even `min_workers` find room.
    """
    import ray

    total = _capacity(config, ray.cluster_resources())
    gpus, cpus = int(total.get("GPU", 0)), total.get("CPU", 0.0)
    device = config.device if config.device != "auto" else ("cuda" if gpus else "cpu")
    found = gpus if device == "cuda" else int(cpus / CPUS_PER_WORKER)
    least, field = config.min_workers or config.num_workers, "min_workers" if config.min_workers else "num_workers"
    if device == "cuda" and found < least:
        fewer = f"set cluster.{field} to at most {gpus}, " if gpus else "set "
        raise ClusterError(
            f"the run needs {least} workers with a GPU each, the cluster has {gpus} GPUs; "
            f"{fewer}cluster.device to cpu, or RAY_ADDRESS to a larger cluster"
        )
    if found < least:
        raise ClusterError(
            f"the run needs {least} workers with {CPUS_PER_WORKER} CPU each ({least * CPUS_PER_WORKER:g} CPUs), "
            f"the cluster has {cpus:g} CPUs; set cluster.{field} to at most {max(found, 1)}, "
            "or RAY_ADDRESS to a larger cluster"
        )
    if device == "cuda" and not config.min_workers:
        _models(config)  # raises where it is none; with `min_workers` lost machines may be back until then
    return Workers(device=device, num_workers=min(found, config.num_workers))


def evaluators(config: ClusterConfig) -> Workers:
    """What evaluations run on: the GPUs of `resources`, `evaluation_gpus` for each model.

    Raises ClusterError where no machine has so many.
    """
    workers, each = resources(config), config.evaluation_gpus
    if workers.device == "cpu":
        return workers
    return Workers("cuda", min(_models(config), workers.num_workers // each), each)


def _models(config: ClusterConfig) -> int:
    """How many models the cluster holds on `evaluation_gpus` each. Raises ClusterError where it is none."""
    if config.evaluation_gpus == 1:
        return config.num_workers
    machines = _gpus_by_machine(config)
    if not (found := _whole(machines, config.evaluation_gpus)):
        raise ClusterError(
            f"cluster.evaluation_gpus is {config.evaluation_gpus}, and no machine of the cluster has more than "
            f"{max(machines)} GPUs; a model lies on those of one machine, so set it lower"
        )
    return found


def _whole(machines: Sequence[int], gpus: int) -> int:
    """How many models with so many GPUs of one machine each the machines hold."""
    return sum(there // gpus for there in machines)


def room(workers: Workers) -> int:
    """How many of the workers the machines that are alive can hold."""
    import ray

    if workers.gpus > 1:
        return min(workers.num_workers, _whole(_gpus_there(), workers.gpus))
    total = ray.cluster_resources()
    return min(workers.num_workers, *(int(total.get(name, 0.0) / need) for name, need in workers.resources.items()))


class Room:
    """Says when machines are missing for the workers of a piece of work, again every minute, and when they are back.

    `least` of them can do it; None: it waits for all.
    """

    def __init__(self, workers: Workers, least: int | None, about: str) -> None:
        self.workers, self.least, self.about = workers, least or workers.num_workers, about
        self.said: str | None = None
        self.checked = self.said_at = 0.0

    def look(self) -> None:
        """Asks Ray every few seconds what the cluster has."""
        import ray

        now = time.monotonic()
        if now - self.checked < ROOM_SECONDS:
            return
        self.checked = now
        message = self._message(room(self.workers), len([node for node in ray.nodes() if node["Alive"]]))
        if message != self.said or (message and now - self.said_at > REPEAT_SECONDS):
            log.warning("%s: %s", self.about, message or "there is room for all workers again")
            self.said, self.said_at = message, now

    def _message(self, found: int, nodes: int) -> str | None:
        wanted = self.workers.num_workers
        if found >= wanted:
            return None
        missing = f"the cluster has room for {found} of {wanted} workers on {nodes} nodes"
        if found >= self.least:
            return f"{missing}; it goes on with {found} until more machines come"
        fewer = max(found, 1) * self.workers.gpus
        return (
            f"{missing}, and waits for {self.least} (each takes {self.workers.resources}); bring the lost machines "
            f"back, or run again with cluster.num_workers={fewer}: it goes on from what is stored"
        )


def jobs_at_once(config: ClusterConfig) -> int:
    """How many trainings of `num_workers` workers the cluster takes side by side, a core or GPU for each; at least 1.

    Call `connect` first.
    """
    import ray

    total = _capacity(config, ray.cluster_resources())
    units = total.get("GPU" if resources(config).device == "cuda" else "CPU", 0.0)
    return max(1, int(units) // config.num_workers)


def _capacity(config: ClusterConfig, now: dict[str, float]) -> dict[str, float]:
    """What the cluster has, or can grow to: with an autoscaler the GPU nodes come when they are asked for."""
    limit = {} if address(config) is None else _limit()
    return {name: max(now.get(name, 0.0), limit.get(name, 0.0)) for name in {*now, *limit}}


def _gpus_by_machine(config: ClusterConfig) -> list[int]:
    """Of those that the cluster has, or can grow to."""
    there = _gpus_there()
    kinds = [] if address(config) is None else _kinds()
    limit = [
        int((kind.get("resources") or {}).get("GPU", 0)) for kind in kinds for _ in range(kind.get("max_workers", 0))
    ]
    return max(there, limit, key=sum)


def _gpus_there() -> list[int]:
    """Of each machine that is alive."""
    import ray

    return [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]


def _kinds() -> list[dict[str, Any]]:
    """Of machines that the autoscaler may start; none where this is not a head of `ray up`."""
    import yaml

    file = BOOTSTRAP.expanduser()
    return list(yaml.safe_load(file.read_text())["available_node_types"].values()) if file.is_file() else []


def _limit() -> dict[str, float]:
    """What all machines that the autoscaler may start have together."""
    total: Counter[str] = Counter()
    for kind in _kinds():
        for name, amount in (kind.get("resources") or {}).items():
            total[name] += amount * kind.get("max_workers", 0)
    return {name: float(amount) for name, amount in total.items()}


def _object_store_bytes() -> int:
    """A tenth of the free memory, between 150 MiB and 2 GiB: blocks of encoded images are small."""
    import psutil

    return int(min(max(psutil.virtual_memory().available // 10, 150 * _MIB), 2048 * _MIB))
