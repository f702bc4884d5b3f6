"""Ray Data as this package uses it: items are cut lazily, each is one call, and results come as they are done."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from amvl_core.contracts.errors import AmvlError, ClusterError

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

AHEAD_BYTES = 128 * 2**20
"""Items that wait for a CPU may take so much of the object store. Then cutting stops until there is room again."""


@dataclass(frozen=True)
class Actors:
    """Processes that keep what a call leaves in `run`, and what each of them asks of Ray."""

    count: int
    num_cpus: float
    num_gpus: float = 0.0


S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")


def stream(
    inputs: Sequence[S], cut: Callable[[S], Iterator[T]], run: Callable[[T], R], actors: Actors | None = None
) -> Iterator[R]:
    """`run(item)` for each item of `cut(input)` for each of `inputs`, on every CPU of the Ray that is connected.

    `cut` runs on this machine, an item at a time and no further ahead than `AHEAD_BYTES`. Where `run` is dear to set
    up, `actors` call it in place of tasks. The user's errors (AmvlError) are raised as they are; ClusterError where Ray
    itself fails.
    """
    import ray
    import ray.data

    assert ray.is_initialized(), "the caller says which Ray this runs on"
    if not inputs:
        return
    try:
        keeper = _keeper() if actors is None else None  # as long as this runs; actors ask for their own nodes
        with _settings(ray.data.DataContext.get_current()):
            items = ray.data.from_items(
                [{"input": pickle.dumps(one)} for one in inputs], override_num_blocks=len(inputs)
            )
            # Cutting asks for no CPU. It is mostly waiting, and it must never wait for the tasks that wait for it.
            cut_items = items.map_batches(
                partial(_cut, cut=ray.put(cut)),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=0,
                label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
            )
            results = cut_items.map_batches(**_called(ray.put(run), actors), batch_size=None, batch_format="pyarrow")
            for row in results.iter_rows():
                result = pickle.loads(row["result"])
                if isinstance(result, AmvlError):
                    raise result
                yield result
        del keeper
    except ray.exceptions.UserCodeException:
        raise  # a fault of `cut` or `run`, not of Ray
    except ray.exceptions.RayError as error:
        raise ClusterError(f"Ray could not finish the preparation; run it again. It said: {error}") from error


class _Keeper:
    """An actor asks for a CPU until it has a place. From then on it takes none, and its node is not idle."""


def _keeper() -> Any:
    """An actor on a node that takes tasks, where this machine takes none; waits until such a node is there.

    Ray Data would ask for one only when everything is cut, `AHEAD_BYTES` would not hold before it is there, and it
    would go if cutting took long.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    if any(node["Resources"].get("CPU") for node in ray.nodes() if node["NodeID"] == here):
        return None
    if not ray.cluster_resources().get("CPU"):
        log.warning("waits for a node: the cluster has no CPU yet; `ray status` says what is asked for")
    keeper = ray.remote(_Keeper).remote()
    ray.get(keeper.__ray_ready__.remote())
    return keeper


def _cut(block: pa.Table, cut: Any) -> Iterator[pa.Table]:
    import ray

    function = ray.get(cut)
    try:
        for packed in block["input"].to_pylist():
            for item in function(pickle.loads(packed)):
                yield _packed("item", item)
    except AmvlError as error:
        yield _packed("item", error)


def _called(run: Any, actors: Actors | None) -> dict[str, Any]:
    """How Ray Data is to call `run`, which lies in the object store."""
    import ray.data

    if actors is None:
        return {"fn": partial(_run, run=run), "num_cpus": 1}
    return {
        "fn": _Actor,
        "fn_constructor_args": (run,),
        "compute": ray.data.ActorPoolStrategy(size=actors.count, max_tasks_in_flight_per_actor=1),
        "num_cpus": actors.num_cpus,
        "num_gpus": actors.num_gpus,
    }


class _Actor:
    """Holds one copy of `run` for all of its calls."""

    def __init__(self, run: Any) -> None:
        import ray

        self.run = ray.get(run)

    def __call__(self, block: pa.Table) -> pa.Table:
        return _result(block, self.run)


def _run(block: pa.Table, run: Any) -> pa.Table:
    import ray

    return _result(block, ray.get(run))


def _result(block: pa.Table, run: Callable[[Any], Any]) -> pa.Table:
    """The user's errors come back as values: Ray would wrap them beyond recognition."""
    assert block.num_rows == 1
    item = pickle.loads(block["item"][0].as_py())
    if isinstance(item, AmvlError):
        return _packed("result", item)
    try:
        result = run(item)
    except AmvlError as error:
        result = error
    return _packed("result", result)


def _packed(name: str, value: Any) -> pa.Table:
    """A block with one value, pickled: Arrow has no such type. Only processes of this run write and read it."""
    import pyarrow as pa

    return pa.table({name: pa.array([pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)], pa.large_binary())})


@contextmanager
def _settings(context: Any) -> Iterator[None]:
    """Makes every row a block, so that one task gets one item, and keeps Ray Data quiet on the console."""
    logger = logging.getLogger("ray.data")
    limits = context.execution_options
    before = logger.level, context.enable_progress_bars, context.target_max_block_size, limits.resource_limits
    logger.setLevel(logging.ERROR)
    context.enable_progress_bars, context.target_max_block_size = False, 1
    limits.resource_limits = before[3].copy(object_store_memory=AHEAD_BYTES)
    try:
        yield
    finally:
        logger.setLevel(before[0])
        context.enable_progress_bars, context.target_max_block_size, limits.resource_limits = before[1:]
