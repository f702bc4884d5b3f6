"""The base model that the first stage starts from: a Hub id, a folder, or the tiny model built here."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from amvl_core.backbones.processor import AMVLProcessor, load_processor
from amvl_core.contracts import storage
from amvl_core.contracts.config import DataConfig, ModelConfig
from amvl_core.contracts.errors import ConfigError, StorageError, shortened

TINY = "tiny"


def base_processor(model: ModelConfig) -> AMVLProcessor:
    """Tokenizer, image processor and chat template of the base model. Raises ConfigError where they are not there."""
    if model.base == TINY:
        from amvl_core.backbones.tiny import build_processor

        return build_processor(model.tiny)
    try:
        return load_processor(model.base)
    except (OSError, ValueError, TypeError) as error:
        said = shortened(str(error))
        raise ConfigError(
            f"model.base: no tokenizer and image processor can be loaded from {model.base!r} ({said}); download the "
            "whole model first, or give a folder that holds it"
        ) from error


def set_pixel_budget(processor: AMVLProcessor, data: DataConfig) -> None:
    """Every image is scaled into the same budget at preparation, in training and at inference."""
    processor.image_processor.size = {"shortest_edge": data.min_pixels, "longest_edge": data.max_pixels}


@contextmanager
def base_folder(model: ModelConfig) -> Iterator[str]:
    """A folder or Hub id with the base model; the tiny one lives as long as the context."""
    if model.base != TINY:
        yield model.base
        return
    from amvl_core.backbones.tiny import save_tiny_base

    with tempfile.TemporaryDirectory(prefix="amvl-tiny-") as folder:
        with storage.reaching(tempfile.gettempdir(), "write"):
            save_tiny_base(model.tiny, Path(folder))
        yield folder


@contextmanager
def model_folder(uri: str) -> Iterator[str]:
    """What `from_pretrained` takes: a local folder as it is, a remote one as a copy, anything else as a Hub id."""
    if not storage.exists(uri):
        yield uri
    elif storage.is_local(uri):
        yield str(storage.local_path(uri))
    else:
        with _copied(uri) as folder:
            yield str(folder)


@contextmanager
def _copied(uri: str) -> Iterator[Path]:
    """A copy that the processes of this machine share while they read it: the first brings it, the last removes it.

    A copy that nobody reads was left by a process that was killed.
    """
    place = Path(tempfile.gettempdir(), f"amvl-models-{os.getuid()}")
    with storage.reaching(str(place), "write"):
        if not storage.own_folder(place):
            raise StorageError(f"{place} is not this user's alone; remove it, or set TMPDIR to a folder of your own")
    folder = place / hashlib.sha256(uri.encode()).hexdigest()
    with open(f"{folder}.readers", "a") as readers, open(f"{folder}.lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _alone(readers):
                shutil.rmtree(folder, ignore_errors=True)
                storage.download(uri, folder)
            fcntl.flock(readers, fcntl.LOCK_SH)
            fcntl.flock(lock, fcntl.LOCK_UN)
            yield folder
        finally:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if _alone(readers):
                shutil.rmtree(folder, ignore_errors=True)


def _alone(readers: IO[str]) -> bool:
    """Whether no other process reads the copy."""
    try:
        fcntl.flock(readers, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
