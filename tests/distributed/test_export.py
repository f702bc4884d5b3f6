"""A model that two ranks write at once, under ZeRO 1 to 3, against DeepSpeed's weights and stock transformers."""

from __future__ import annotations

import json
import resource
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from amvl_core.backbones.processor import load_processor
from amvl_core.contracts.config import StageConfig, TrainerConfig
from amvl_core.contracts.errors import StorageError
from amvl_core.methods.loading import load_stock
from amvl_core.methods.method import Clock
from amvl_core.methods.sft.config import SftMethod
from amvl_core.methods.sft.method import Sft
from amvl_core.train import export
from amvl_core.train.engine import DTYPES, Engine
from tests.distributed.processes import in_two_processes
from tests.tiny import SAMPLES, batch, stock_folder

CASES = {"zero 1, bf16": (1, "bf16"), "zero 2, fp32": (2, "fp32"), "zero 3, bf16": (3, "bf16")}
STAGE = StageConfig(method=SftMethod(), trainable="all", steps=1, global_batch=4, lr=1e-2)
CLOCK = Clock(seed=5, step=0, num_tokens=12.0, num_samples=4)
FILE_BYTES = 60_000


def exported(rank: int, stage: int, precision: str, folder: Path) -> tuple[dict[str, Tensor], list[int]]:
    """All weights as DeepSpeed holds them after a step, and the bytes that each rank held to write the folder."""
    from deepspeed.utils import safe_get_full_fp32_param

    processor = load_processor(stock_folder())
    model = load_stock(stock_folder(), processor, None, dtype=DTYPES[precision]).train()
    trainer = TrainerConfig(zero_stage=stage, precision=precision, gradient_checkpointing=False)
    engine = Engine(Sft(model, SftMethod()), STAGE, trainer, world_size=2)
    part = batch(processor, None, SAMPLES[2 * rank : 2 * rank + 2])
    engine.set_lr(STAGE.lr)
    engine.backward(engine.forward(part, CLOCK), part.sample_ids)
    engine.step()
    held, plain = [0, 0], engine.weights

    def weights(wanted: Any) -> dict[str, Tensor]:
        found = plain(wanted)
        dist.all_gather_object(held, sum(value.nbytes for value in found.values()))
        return found

    engine.weights = weights
    assert export.save_model(engine, processor, str(folder)) == engine.num_parameters()
    whole = {name: safe_get_full_fp32_param(p).to(p.dtype).clone() for name, p in model.named_parameters()}
    if stage == 1:  # what one rank's disk refuses is every rank's error, and none waits
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        for refused in range(2):
            resource.setrlimit(resource.RLIMIT_FSIZE, (20 if rank == refused else unlimited[0], unlimited[1]))
            with pytest.raises(StorageError, match="File too large"):
                export.save_model(engine, processor, f"{folder}-refused")
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    engine.close()
    return whole, held


def find(rank: int, folder: Path) -> dict[str, Any]:
    export.FILE_BYTES = FILE_BYTES
    return {case: exported(rank, *CASES[case], folder / case) for case in CASES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return in_two_processes(partial(find, folder=folder))


@pytest.mark.parametrize("case", CASES)
def test_each_rank_writes_a_part_and_plain_transformers_loads_the_whole(found, folder: Path, case: str) -> None:
    expected, held = found[case]
    size = sum(value.nbytes for value in expected.values())
    index = json.loads((folder / case / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(held) == size
    files = sorted(file.name for file in (folder / case).glob("*.safetensors"))
    assert files == sorted(set(index["weight_map"].values())) and len(files) > 5
    largest = max((folder / case / file).stat().st_size for file in files)
    assert max(held) < size / 2 + largest < 0.8 * size
    model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder / case, dtype="auto", output_loading_info=True
    )
    assert not any(info.values())
    loaded = dict(model.named_parameters())
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], value) and loaded[key].dtype == value.dtype for key, value in expected.items())


def test_a_folder_that_one_rank_could_not_write_has_no_index(found, folder: Path) -> None:
    assert not (folder / "zero 1, bf16-refused" / "model.safetensors.index.json").exists()


def test_files_are_cut_where_they_are_full_and_a_larger_weight_has_one_of_its_own() -> None:
    sizes = {"a": 3, "b": 3, "c": 9, "d": 1, "e": 5, "f": 6}
    assert export.division(sizes, 6) == [["a", "b"], ["c"], ["d", "e"], ["f"]]
    assert export.division(sizes, 100) == [list(sizes)]
