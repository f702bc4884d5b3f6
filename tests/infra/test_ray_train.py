"""What is said when workers keep failing; training itself is in tests/distributed/test_train.py."""

from ray.train import ControllerError, WorkerGroupError

from amvl_core.contracts.errors import ClusterError, StorageError
from infra.ray_train import _gave_up


def test_the_storage_is_named_where_it_was_that_the_last_time() -> None:
    refused = StorageError("cannot read s3://bucket/part: 503")
    error = _gave_up(WorkerGroupError("a long text", {0: RuntimeError("gloo"), 1: refused}), "sft")
    assert type(error) is StorageError
    assert "training stage sft" in str(error) and "trainer.max_failures" in str(error)
    assert "cannot read s3://bucket/part: 503" in str(error) and "a long text" not in str(error)


def test_other_failures_are_told_as_ray_tells_them() -> None:
    for failure in (WorkerGroupError("rank 0 was killed", {0: RuntimeError("x")}), ControllerError(ValueError("lost"))):
        error = _gave_up(failure, "sft")
        assert type(error) is ClusterError and str(failure) in str(error)
