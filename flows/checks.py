"""What is looked at before anything is computed: a run that cannot work is refused in seconds."""

import os

import httpx

from amvl_core.contracts import ablations, storage
from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.errors import AmvlError, ConfigError
from amvl_core.eval.benchmarks import BENCHMARKS
from infra.mlflow_client import check_names, check_reachable


def check_run(config: RunConfig) -> None:
    """Storage, tracking, base model, benchmark files, controls. Raises an AmvlError that names the field."""
    storage.check_writable(storage.absolute(config.storage))
    check_names(config)
    check_reachable(config)
    check_base(config.model.base)
    check_benchmarks(config)
    ablations.controls(config)


def check_base(base: str) -> None:
    """The base model is `tiny`, a folder, or a model of the Hugging Face Hub that is cached or can be reached."""
    if base == "tiny" or os.path.isfile(os.path.join(base, "config.json")):  # noqa: PTH113, PTH118
        return
    if os.path.isdir(base):  # noqa: PTH112
        raise ConfigError(f"model.base: the folder {base} holds no config.json; give the folder of a model")
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    try:
        if isinstance(try_to_load_from_cache(base, "config.json"), str):
            return
        HfApi().model_info(base, timeout=15)
    except (HFValidationError, OfflineModeIsEnabled, OSError, httpx.HTTPError) as error:
        raise ConfigError(
            f"model.base: {base!r} is no folder, is not in the Hugging Face cache and cannot be found on the Hub "
            f"({type(error).__name__}); download it first, or give a folder or `tiny`"
        ) from error


def check_benchmarks(config: RunConfig) -> None:
    """The files of every published benchmark are there; they are listed, not read."""
    for number, source in enumerate(config.evaluation.benchmarks):
        try:
            BENCHMARKS[source.name].check(source.uri)
        except AmvlError as error:
            raise ConfigError(f"evaluation.benchmarks.{number} ({source.name}): {error}") from error
