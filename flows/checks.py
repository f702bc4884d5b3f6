"""What is looked at before anything is computed: a run that cannot work is refused in seconds."""

import httpx

from amvl_core.backbones.loading import base_processor
from amvl_core.contracts import ablations, storage
from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.encoders import BASE, TINY
from amvl_core.contracts.errors import AmvlError, ConfigError
from amvl_core.data.stored_features import StoredFeatures
from amvl_core.eval.benchmarks import BENCHMARKS
from amvl_core.eval.sampling import check_drawn
from infra.mlflow_client import check_names, check_reachable


def check_run(config: RunConfig) -> None:
    """Storage, tracking, test rows, base model and a token of it, encoders, benchmark files, controls, drawn latents.

    Raises an AmvlError that names the field.
    """
    storage.check_writable(storage.absolute(config.storage))
    check_names(config)
    check_reachable(config)
    check_tested(config)
    check_base(config.model.base)
    check_tokens(config)
    check_encoders(config)
    check_benchmarks(config)
    ablations.controls(config)
    if config.evaluation.sampled_items:
        check_drawn(config.method.kind)


def check_tested(config: RunConfig) -> None:
    """Some source can have test rows: a run without them would end behind its preparation."""
    if not any(source.may_test for source in config.data.sources):
        kinds = ", ".join(dict.fromkeys(source.kind for source in config.data.sources))
        raise ConfigError(
            f"data.sources: no source has test rows to evaluate on ({kinds}); add one that has, such as cogcom with "
            "train_limit = 0"
        )


def check_base(base: str) -> None:
    """The base model is `tiny`, a folder, or a model of the Hugging Face Hub that is cached or can be reached."""
    if base != "tiny":
        _check_model("model.base", base, "a folder or `tiny`")


def check_tokens(config: RunConfig) -> None:
    """The new tokens start from one token of the base model, where the run names it."""
    if config.latent.token_init is not None:
        base_processor(config.model).token_id(config.latent.token_init)


def check_encoders(config: RunConfig) -> None:
    """So is each frozen encoder that a method aligns with, or its features lie in a folder."""
    for stage, settings in config.stages.items():
        for encoder in settings.method.aligned_with:
            where = f"stages.{stage}: encoder {encoder.name}"
            if encoder.stored is not None:
                try:
                    StoredFeatures(encoder.stored)
                except AmvlError as error:
                    raise ConfigError(f"{where}: {error}") from error
            elif encoder.source != BASE and not encoder.source.startswith(TINY):
                _check_model(where, encoder.source, "a folder")


def _check_model(where: str, source: str, other: str) -> None:
    if storage.exists(storage.join(source, "config.json")):
        return
    if storage.exists(source):
        raise ConfigError(f"{where}: the folder {source} holds no config.json; give the folder of a model")
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    try:
        if isinstance(try_to_load_from_cache(source, "config.json"), str):
            return
        HfApi().model_info(source, timeout=15)
    except (HFValidationError, OfflineModeIsEnabled, OSError, httpx.HTTPError) as error:
        raise ConfigError(
            f"{where}: {source!r} is no folder, is not in the Hugging Face cache and cannot be found on the Hub "
            f"({type(error).__name__}); download it first, or give {other}"
        ) from error


def check_benchmarks(config: RunConfig) -> None:
    """The files of every published benchmark are there; they are listed, not read."""
    for number, source in enumerate(config.evaluation.benchmarks):
        try:
            BENCHMARKS[source.name].check(source.uri)
        except AmvlError as error:
            raise ConfigError(f"evaluation.benchmarks.{number} ({source.name}): {error}") from error
