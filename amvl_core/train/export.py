"""The model that a stage leaves: a Hugging Face folder, of which each rank writes a part.

    {stage}/model/model-00001-of-00152.safetensors    whole weights, at most `FILE_BYTES`; written by one rank
                  model.safetensors.index.json        written last; which file has which weight
                  config.json, tokenizer, processor   written by rank 0

A model of one file has no index. A rank holds its own files in the CPU's memory, and under ZeRO-3 one whole weight on
its device, while that is gathered for the rank that writes it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from amvl_core.contracts import storage
from amvl_core.train.engine import Engine
from amvl_core.train.everywhere import from_all, from_first

FILE_BYTES = 10**9
"""Most bytes of a file, except of a weight that alone is larger. 72B makes some 150 files, 7B sixteen."""


def save_model(engine: Engine, processor: Any, uri: str) -> int:
    """Writes weights, configuration and processor to the folder `uri`; the number of parameters. Every rank calls it.

    What was at `uri` is removed first. Raises StorageError on every rank where the storage refuses one of them.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    sizes = engine.weight_bytes()
    files = division(sizes, FILE_BYTES)
    mine = [number for number in range(len(files)) if writer(number, len(files), world_size) == rank]
    weights = engine.weights({name for number in mine for name in files[number]})
    on_disk = from_first(lambda: _write_the_rest(engine.method.model, processor, uri))

    def write() -> None:
        for number in mine:
            tensors = {on_disk[name]: weights.pop(name) for name in files[number]}
            with storage.writing(storage.join(uri, _name(number, len(files)))) as file:
                save_file(tensors, file, metadata={"format": "pt"})

    from_all(write)
    if len(files) > 1:
        from_first(lambda: _write_index(files, on_disk, sum(sizes.values()), uri))
    return engine.num_parameters()


def division(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """The weights in order, in files of at most `limit` bytes or of one weight."""
    files: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if files[-1] and held + size > limit:
            files.append([])
            held = 0
        files[-1].append(name)
        held += size
    return files


def writer(number: int, count: int, world_size: int) -> int:
    """The rank that writes a file of `count`. Each writes a run of them."""
    return number * world_size // count


def _name(number: int, count: int) -> str:
    """As stock names them."""
    stem = SAFE_WEIGHTS_NAME.removesuffix(".safetensors")
    return SAFE_WEIGHTS_NAME if count == 1 else f"{stem}-{number + 1:05d}-of-{count:05d}.safetensors"


def _write_the_rest(model: Any, processor: Any, uri: str) -> dict[str, str]:
    """Writes all but the weights; what each weight is called in the files.

    These names are the library's own matter: it saves a number in the place of each weight.
    """
    names = [name for name, _ in model.named_parameters()]
    numbers: dict[str, Tensor] = {name: torch.tensor(number) for number, name in enumerate(names)}
    with storage.reaching(tempfile.gettempdir(), "write"), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.config.dtype = model.dtype
        model.save_pretrained(folder, state_dict=numbers)
        processor.save_pretrained(folder)
        saved = load_file(folder / SAFE_WEIGHTS_NAME)
        (folder / SAFE_WEIGHTS_NAME).unlink()
        storage.remove(uri)
        storage.upload(folder, uri)
    return {names[int(number)]: name for name, number in saved.items()}


def _write_index(files: list[list[str]], on_disk: Mapping[str, str], size: int, uri: str) -> None:
    places = {on_disk[name]: _name(number, len(files)) for number, names in enumerate(files) for name in names}
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    storage.write_bytes(storage.join(uri, SAFE_WEIGHTS_INDEX_NAME), json.dumps(index, indent=2).encode())
