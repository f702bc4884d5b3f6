import os
import signal
import threading
from functools import partial
from typing import Any

import pytest
import torch

from amvl_core.backbones.processor import load_processor
from amvl_core.contracts.config import StageConfig
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.sample import StoredSample
from amvl_core.data.encode import Encoded, Encoder, laid_out
from amvl_core.data.loader import HELDOUT, StepDataset, read_ahead
from amvl_core.data.reader import ShardReader
from amvl_core.methods.sft.config import SftMethod
from tests.shards import row, write
from tests.tiny import stock_folder

STAGE = StageConfig(method=SftMethod(), steps=1, global_batch=12, micro_tokens=80)


def dataset(root: str, rows: Any = None, rank: int = 0, world_size: int = 2, heldout: int = 0) -> StepDataset:
    record = write(root, [rows or [row(number) for number in range(50)]])
    reader = ShardReader(record, "train")
    laid = partial(laid_out, Encoder(load_processor(stock_folder())), STAGE.method, LatentConfig())

    def encode(_: int, sample: StoredSample) -> Encoded:
        return laid(sample)

    return StepDataset(reader, reader.sizes(0, heldout=heldout), encode, STAGE, 0, rank, world_size)


def test_processes_give_the_same_batches_ahead_of_the_step(tmp_path) -> None:
    """From any step on, without those before it; the parent has read from the files that the processes read."""
    data = dataset(str(tmp_path))
    here = list(read_ahead(data, range(6), 0))
    ahead = list(read_ahead(data, range(2, 6), 2))
    assert len(here) == 6 and len(ahead) == 4
    for ours, theirs in zip(here[2:], ahead, strict=True):
        assert [batch.sample_ids for batch in ours] == [batch.sample_ids for batch in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one.input_ids_N, other.input_ids_N)
            assert one.pixel_values is not None and torch.equal(one.pixel_values, other.pixel_values)


def test_the_ranks_share_a_global_batch_in_micro_batches_within_the_budget(tmp_path) -> None:
    first, second = (list(read_ahead(dataset(str(tmp_path), rank=rank), range(3), 0)) for rank in (0, 1))
    for ours, theirs in zip(first, second, strict=True):
        assert len(ours) == len(theirs) > 1
        names = [name for batch in (*ours, *theirs) for name in batch.sample_ids]
        assert len(set(names)) == len(names) == STAGE.global_batch


def test_no_held_out_sample_is_ever_trained_on(tmp_path) -> None:
    """Over three epochs, a share of the samples and all of them."""
    rows = [row(number) for number in range(180)]
    held: set[str] = set()
    for share in (1.0, 0.5):
        trained: set[str] = set()
        for rank in (0, 1):
            data = dataset(str(tmp_path / str(share) / str(rank)), rows, rank, heldout=18)
            data.stage = STAGE.model_copy(update={"data_share": share})
            *steps, held_out = read_ahead(data, [*range(3 * 162 // 12), HELDOUT], 0)
            trained |= {name for step in steps for batch in step for name in batch.sample_ids}
            held |= {name for batch in held_out for name in batch.sample_ids}
        assert len(held) == 18 and len(trained) == round(162 * share) and not held & trained


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_data_has_its_own_message(tmp_path, workers: int) -> None:
    rows = [row(number, question="<image><image>Which?" if number == 30 else "<image>Which?") for number in range(48)]
    with pytest.raises(DataError) as caught:
        list(read_ahead(dataset(str(tmp_path), rows), range(8), workers))
    assert str(caught.value) == "train-30: more image placeholders than its 1 images"


@pytest.mark.parametrize("in_main_thread", [True, False])
def test_a_killed_process_is_an_error_and_no_wait_without_end(tmp_path, in_main_thread: bool) -> None:
    """Ray Train runs the loop in a thread, where torch hears of it by looking every five seconds."""
    data = dataset(str(tmp_path), rank=1)
    encode, parent = data.encode, os.getpid()

    def kill(*arguments: Any) -> Any:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(*arguments)

    data.encode = kill
    caught: list[BaseException] = []

    def read() -> None:
        try:
            list(read_ahead(data, range(4), 1))
        except RuntimeError as error:
            caught.append(error)

    if in_main_thread:
        read()
    else:
        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert "a loader process of rank 1 died" in str(caught[0])
    assert "lower trainer.loader_workers" in str(caught[0])
