"""What can go wrong: storage that fails, files that are damaged, one slow worker; in two processes."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import torch.distributed as dist

from amvl_core.contracts import storage
from amvl_core.contracts.errors import CheckpointError, StorageError
from amvl_core.contracts.progress import Progress
from amvl_core.train import checkpoint
from amvl_core.train.checkpoint import MAX_FAILED, Checkpoints, Stored
from amvl_core.train.optimizer_state import Piece
from amvl_core.train.steplog import Pace, StepLog
from benchmarks import local
from benchmarks.trial import Trial
from tests.data_prep.flaky import flaky
from tests.distributed.test_checkpoint import engine


def names(uri: str) -> list[str]:
    """What is there, before any rank goes on to change it."""
    found = storage.list_names(uri)
    dist.barrier()
    return found


def retention(rank: int, root: str) -> None:
    """Keeps the last two."""
    ours, _ = engine("zero2-fp32", 2)
    checkpoints = Checkpoints(root, 2, print)
    for step in range(1, 6):
        checkpoints.save(ours, step, [])
    assert names(root) == ["step-00000004", "step-00000005"]
    ours.close()


def damage(rank: int, root: str) -> None:
    """A damaged checkpoint is named and left for the one before; where all are, the stage starts anew."""
    ours, _ = engine("zero2-fp32", 2)
    said: list[str] = []
    checkpoints = Checkpoints(root, 9, said.append)
    for step in range(1, 6):
        checkpoints.save(ours, step, [Progress("amvl", step, 9, "steps")])
    if rank == 0:
        flip(Path(root) / "step-00000005" / "rank-00001-00000.safetensors")
        os.truncate(Path(root) / "step-00000004" / "rank-00000-00000.safetensors", 100)
        (Path(root) / "step-00000003" / "rank-00001-00000.safetensors").unlink()
        (Path(root) / "step-00000002" / "complete.json").write_text('{"step": 2, "world_size"')
    dist.barrier()
    step, history = checkpoints.resume(ours)
    assert step == 1 and [event.done for event in history] == ([1] if rank == 0 else [])
    if rank == 0:
        assert [text.split("(")[0] for text in said] == [
            f"the checkpoint step-0000000{n} is damaged " for n in (5, 4, 3, 2)
        ]
        for text, reason in zip(said, ("SHA-256", "100 bytes of", "is missing", "not readable"), strict=True):
            assert reason in text
        (Path(root) / "step-00000001" / "complete.json").unlink()
    dist.barrier()
    assert checkpoints.resume(ours) == (0, [])
    ours.close()


def flip(file: Path) -> None:
    """Changes one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def full_disk(rank: int, root: str) -> None:
    """The disk takes no more on one rank: the step goes on, the checkpoint before stays, the tenth time is an error."""
    ours, _ = engine("zero2-fp32", 2)
    said: list[str] = []
    checkpoints = Checkpoints(root, 9, said.append)
    assert checkpoints.save(ours, 1, [])
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, unlimited[1]))  # a write beyond it fails half-way
    for step in range(2, 1 + MAX_FAILED):
        assert not checkpoints.save(ours, step, [])
        assert names(root) == ["step-00000001"]
    if rank == 0:
        assert len(said) == MAX_FAILED - 1
        assert said[0].startswith("no checkpoint after step 2: cannot write") and "step-00000002/rank-00001" in said[0]
    with pytest.raises(StorageError, match="10 in a row have failed"):
        checkpoints.save(ours, 20, [])
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert checkpoints.save(ours, 21, [])
    assert names(root) == ["step-00000001", "step-00000021"] and checkpoints.failed == 0
    assert not list(Path(root).rglob(".*"))
    ours.close()


def store(rank: int, uri: str) -> None:
    """To and from an object store: nothing is written on this machine's disk, and files are of a bounded size."""
    checkpoint.FILE_BYTES = 60_000
    ours, _ = engine("zero3-bf16", 2)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, unlimited[1]))
    checkpoints = Checkpoints(uri, 2, print)
    checkpoints.save(ours, 7, [])
    files = names(f"{uri}/step-00000007")
    assert len(files) > 10 and {"complete.json", "history.json", "rank-00001-00003.safetensors"} <= set(files)
    before = {(p.name, kind): t.clone() for p in ours.pieces() for kind, t in p.tensors.items()}
    for piece in ours.pieces():
        for tensor in piece.tensors.values():
            tensor.zero_()
    assert checkpoints.resume(ours) == (7, [])
    assert all(t.equal(before[p.name, kind]) for p in ours.pieces() for kind, t in p.tensors.items())
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    ours.close()


def refused(rank: int, uri: str) -> None:
    """A store that answers 503 to one rank costs a warning, and the next checkpoint is written."""
    os.environ["AWS_MAX_ATTEMPTS"] = "1"
    ours, _ = engine("zero2-fp32", 2)
    said: list[str] = []
    checkpoints = Checkpoints(uri, 2, said.append)
    with flaky(os.environ["AWS_ENDPOINT_URL"]) as faults:
        if rank == 1:
            os.environ["AWS_ENDPOINT_URL"] = faults.url
        checkpoints.save(ours, 1, [])
        faults.unavailable = 10**6
        checkpoints.save(ours, 2, [])
        faults.unavailable = 0
        assert names(uri) == ["step-00000001"]
        checkpoints.save(ours, 3, [])
        assert names(uri) == ["step-00000001", "step-00000003"]
        assert checkpoints.resume(ours) == (3, [])
        assert (faults.failed > 0) == (rank == 1)
    if rank == 0:
        (text,) = said
        assert "no checkpoint after step 2: cannot write" in text and "rank-00001" in text
    ours.close()


def another_model(rank: int, root: str) -> None:
    """A checkpoint that has not all of a parameter is refused before anything is taken from it."""
    ours, _ = engine("zero0-fp32", 2, trainable="new_rows")
    Checkpoints(root, 2, print).save(ours, 1, [])
    ours.close()
    ours, _ = engine("zero0-fp32", 2)
    with pytest.raises(CheckpointError, match=r"has 0 of .* it is of another model"):
        Checkpoints(root, 2, print).resume(ours)
    ours.close()


@pytest.mark.parametrize("fault", [retention, damage, full_disk, another_model])
def test_on_disk(fault, tmp_path) -> None:
    local.run(fault, 2, str(tmp_path))


@pytest.mark.parametrize("fault", [store, refused])
def test_on_an_object_store(fault, s3_bucket) -> None:
    local.run(fault, 2, f"{s3_bucket}/{fault.__name__}")


def refused_twice(rank: int, job: str, log: str, stop_at: int) -> None:
    """A worker of two, one of which cannot write its first two checkpoints."""
    write, tries = checkpoint._write_pieces, 0

    def pieces(folder: str, rank: int, pieces: list[Piece]) -> dict[str, Stored]:
        nonlocal tries
        tries += 1
        if rank == 1 and tries <= 2:
            raise StorageError("cannot write: gone for a while")
        return write(folder, rank, pieces)

    checkpoint._write_pieces = pieces
    local.stage(rank, job, log, stop_at)


def test_a_checkpoint_that_failed_is_tried_again_at_the_next_steps(tmp_path: Path) -> None:
    trial = Trial(tmp_path, 10, trainer={"checkpoint_every": 4})
    local.run(refused_twice, 2, trial.job("late"), f"{tmp_path}/late.log", 8)
    lines = [line for line in trial.lines("late") if "done" in line]
    said = [(line["done"], advice["kind"]) for line in lines for advice in line["warnings"]]
    assert said == [(4, "checkpoint"), (5, "checkpoint")]
    assert storage.list_names(f"{tmp_path}/late/checkpoints") == ["step-00000007", "step-00000008"]


def test_a_machine_that_is_taken_away_tries_again_while_it_is_there(tmp_path: Path) -> None:
    trial = Trial(tmp_path, 10, trainer={"checkpoint_every": 100})
    local.run(refused_twice, 2, trial.job("leaving"), f"{tmp_path}/leaving.log", 2)
    assert storage.list_names(f"{tmp_path}/leaving/checkpoints") == ["step-00000004"]
    assert trial.lines("leaving")[-1] == {"finished": False}


def slow(rank: int, job: str, log: str) -> None:
    """A worker of two; the second waits for its data for most of the time."""
    StepLog.pace = lambda self, memory: Pace(0.1 + 0.8 * rank, self.tokens, 2.0 + rank)  # type: ignore[method-assign]
    local.stage(rank, job, log)


def test_a_slow_worker_is_seen_and_what_a_killed_one_left_is_removed(tmp_path: Path) -> None:
    trial = Trial(tmp_path, 2)
    local.run(slow, 2, trial.job("slow"), f"{tmp_path}/slow.log")
    metrics = [line["metrics"] for line in trial.lines("slow") if "done" in line]
    assert [(each["data_wait"], each["gpu_memory_gib"]) for each in metrics] == [(pytest.approx(0.9), 3.0)] * 2
    finished = storage.list_names(f"{tmp_path}/slow")
    for left in ("checkpoints/step-00000001/complete.json", "base/config.json"):  # killed before they were removed
        storage.write_bytes(f"{tmp_path}/slow/{left}", b"{}")
    assert trial.run("slow") == [0, 0]
    assert storage.list_names(f"{tmp_path}/slow") == finished
