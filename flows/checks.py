"""What is looked at before anything is computed: a run that cannot work is refused in seconds."""

import json
from typing import Any

import httpx

from amvl_core.backbones.backbone import FAMILIES
from amvl_core.backbones.loading import TINY as TINY_BASE
from amvl_core.backbones.loading import base_processor
from amvl_core.contracts import ablations, storage
from amvl_core.contracts.config import ModelConfig, RunConfig
from amvl_core.contracts.encoders import BASE, TINY, EncoderConfig
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
    check_base(config)
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


def check_base(config: RunConfig) -> None:
    """The base model is one that the stages which start from it can load, and no stage asks it for what it lacks."""
    if config.model.base == TINY_BASE:
        return  # the configuration itself says how many layers it has
    fields = _fields_of_base(config.model)
    kind, layers = fields.get("model_type"), {**fields, **(fields.get("text_config") or {})}.get("num_hidden_layers")
    for name, stage in config.stages.items():
        known = [*FAMILIES, *filter(None, [stage.method.model_type])]
        if config.parents(name).start is None and kind not in known:
            raise ConfigError(
                f"model.base: {config.model.base} is a {kind!r} model, and stages.{name} ({stage.method.kind}) starts "
                f"from a model of type {' or '.join(known)}; give such a base model"
            )
        if problem := stage.method.problem(config.latent, layers, config.trainer.zero_stage):
            raise ConfigError(f"stages.{name}: {problem}")


def check_tokens(config: RunConfig) -> None:
    """The new tokens start from one token of the base model, where the run names it."""
    if config.latent.token_init is not None:
        base_processor(config.model).token_id(config.latent.token_init)


def check_encoders(config: RunConfig) -> None:
    """Each frozen encoder that a method aligns with is there and takes images of its size, or its features are."""
    for stage, settings in config.stages.items():
        for encoder in settings.method.aligned_with:
            try:
                _check_encoder(encoder, config.model)
            except AmvlError as error:
                said = str(error).removeprefix(f"encoder {encoder.name}: ")
                raise ConfigError(f"stages.{stage}: encoder {encoder.name}: {said}") from error


def _check_encoder(encoder: EncoderConfig, base: ModelConfig) -> None:
    from amvl_core.encoders.encoder import patch_grid
    from amvl_core.encoders.pretrained import check_size

    if encoder.stored is not None:
        StoredFeatures(encoder.stored)
    elif encoder.source.startswith(TINY):
        check_size(encoder)
    elif encoder.source != BASE:
        check_size(encoder, _fields(f"encoder {encoder.name}", encoder.source, "a folder"))
    else:
        vision = _fields_of_base(base).get("vision_config") or {}
        if {"patch_size", "spatial_merge_size"} <= vision.keys():
            patch_grid(encoder, vision["patch_size"] * vision["spatial_merge_size"])


def _fields_of_base(model: ModelConfig) -> dict[str, Any]:
    """What the config.json of the base model says."""
    if model.base == TINY_BASE:
        from amvl_core.backbones.tiny import build_config, build_processor

        return dict(build_config(model.tiny, build_processor(model.tiny)).to_dict())
    return _fields("model.base", model.base, "a folder or `tiny`")


def _fields(where: str, source: str, other: str) -> dict[str, Any]:
    """What the config.json of a model says: of a folder anywhere, or of a model that is cached or on the Hub."""
    file = storage.join(source, "config.json")
    if not storage.exists(file):
        if storage.exists(source):
            raise ConfigError(f"{where}: the folder {source} holds no config.json; give the folder of a model")
        file = _from_hub(where, source, other)
    try:
        fields = json.loads(storage.read_bytes(file))
    except ValueError as error:
        raise ConfigError(f"{where}: {file} is no JSON ({error}); download it again") from error
    if not isinstance(fields, dict):
        raise ConfigError(f"{where}: {file} holds no fields of a model; download it again")
    return fields


def _from_hub(where: str, source: str, other: str) -> str:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    try:
        found = try_to_load_from_cache(source, "config.json")
        return found if isinstance(found, str) else hf_hub_download(source, "config.json", etag_timeout=15)
    except (HFValidationError, EntryNotFoundError, OSError, httpx.HTTPError) as error:
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
