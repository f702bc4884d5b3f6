"""Ray Data as this package uses it: items are cut lazily, each is one task, and results come as they are done."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from amvl_core.contracts.errors import AmvlError, ClusterError

if TYPE_CHECKING:
    import pyarrow as pa

AHEAD_BYTES = 128 * 2**20
"""Items that wait for a CPU may take so much of the object store. Then cutting stops until there is room again."""

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")


def stream(inputs: Sequence[S], cut: Callable[[S], Iterator[T]], run: Callable[[T], R]) -> Iterator[R]:
    """`run(item)` for each item of `cut(input)` for each of `inputs`, on every CPU of the Ray that is connected.

    `cut` runs on this machine, an item at a time and no further ahead than `AHEAD_BYTES`. The user's
    errors (AmvlError) are raised as they are; ClusterError where Ray itself fails.
    """
    import ray
    import ray.data

    assert ray.is_initialized(), "the caller says which Ray this runs on"
    if not inputs:
        return
    try:
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
            results = cut_items.map_batches(
                partial(_run, run=ray.put(run)), batch_size=None, batch_format="pyarrow", num_cpus=1
            )
            for row in results.iter_rows():
                result = pickle.loads(row["result"])
                if isinstance(result, AmvlError):
                    raise result
                yield result
    except ray.exceptions.UserCodeException:
        raise  # a fault of `cut` or `run`, not of Ray
    except ray.exceptions.RayError as error:
        raise ClusterError(f"Ray could not finish the preparation; run it again. It said: {error}") from error


def _cut(block: pa.Table, cut: Any) -> Iterator[pa.Table]:
    import ray

    function = ray.get(cut)
    try:
        for packed in block["input"].to_pylist():
            for item in function(pickle.loads(packed)):
                yield _packed("item", item)
    except AmvlError as error:
        yield _packed("item", error)


def _run(block: pa.Table, run: Any) -> pa.Table:
    """The user's errors come back as values: Ray would wrap them beyond recognition."""
    import ray

    assert block.num_rows == 1
    item = pickle.loads(block["item"][0].as_py())
    if isinstance(item, AmvlError):
        return _packed("result", item)
    try:
        result = ray.get(run)(item)
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
