"""The flow's parameters: every field of `RunConfig`, and every field of those, may be given or left to the preset."""

from functools import cache
from types import GenericAlias, NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, create_model

from amvl_core.contracts.config import (
    ClusterConfig,
    DataConfig,
    EvaluationConfig,
    HeldoutConfig,
    ModelConfig,
    RunConfig,
    StageConfig,
    TrackingConfig,
    TrainerConfig,
    override,
)
from amvl_core.contracts.errors import AmvlError, ConfigError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.presets import PRESETS
from infra.tracking import run_name

if TYPE_CHECKING:
    Preset: TypeAlias = str
else:
    Preset = Literal[tuple(PRESETS)]
"""The name of a whole configuration."""

_STRICT = ConfigDict(extra="forbid", frozen=True)


@cache
def partial(model: type[BaseModel]) -> type[BaseModel]:
    """`model` with every field optional, recursively; an unknown field is still an error.

    Lists are given whole. A union of models becomes one model with the fields of all, because the part that says
    which one it is may be left to the preset; `override` refuses a field that the one in question does not have.
    """
    fields: Any = {}
    for name, field in model.model_fields.items():
        annotation = _partial(field.annotation)
        if field.metadata:
            annotation = Annotated[(annotation, *field.metadata)]
        fields[name] = (Annotated[annotation | None, Field(description=field.description)], None)
    return create_model(f"{model.__name__}Changes", __config__=_STRICT, **fields)


def _partial(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return partial(annotation)
    if get_origin(annotation) is dict:
        key, value = get_args(annotation)
        return GenericAlias(dict, (key, _partial(value)))
    if get_origin(annotation) in (Union, UnionType) and _models(annotation):
        return _any_of(get_args(annotation))
    return annotation


@cache
def _any_of(members: tuple[type[BaseModel], ...]) -> type[BaseModel]:
    """One model with the fields of all `members`; a field that several have takes what any of them takes."""
    fields: Any = {}
    for member in members:
        for name, field in partial(member).model_fields.items():
            annotation = field.annotation if name not in fields else fields[name][0] | field.annotation
            fields[name] = (annotation, None)
    return create_model("".join(m.__name__ for m in members) + "Changes", __config__=_STRICT, **fields)


def _models(annotation: Any) -> bool:
    return all(isinstance(item, type) and issubclass(item, BaseModel) for item in get_args(annotation))


def given(changes: BaseModel, full: type[BaseModel]) -> dict[str, Any]:
    """The fields that somebody set, as plain data; a null stands only where the full model has a null."""
    plain = changes.model_dump(mode="json", exclude_unset=True)
    return _without_nulls(plain, full)


def _without_nulls(plain: dict[str, Any], full: type[BaseModel]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in plain.items():
        annotation = full.model_fields[name].annotation
        if value is None and NoneType not in get_args(annotation):
            continue
        inner = get_args(annotation)[1] if get_origin(annotation) is dict else annotation
        if isinstance(value, dict) and isinstance(inner, type) and issubclass(inner, BaseModel):
            value = (
                {key: _without_nulls(item, inner) for key, item in value.items()}
                if get_origin(annotation) is dict
                else _without_nulls(value, inner)
            )
        kept[name] = value
    return kept


def resolve(preset: str, **changes: Any) -> RunConfig:
    """The preset with `changes` (RunConfig field -> value, partial model, dict of those, or None) laid over it.

    Raises ConfigError that names each wrong field by its path.
    """
    if preset not in PRESETS:
        raise ConfigError(f"preset {preset!r} is unknown; choose one of {', '.join(PRESETS)}")
    return laid_over(PRESETS[preset](), **changes)


def laid_over(config: RunConfig, **changes: Any) -> RunConfig:
    """`config` with `changes` as `resolve` takes them."""
    plain = {name: _plain(value, name) for name, value in changes.items() if value is not None}
    return override(config, plain)


def flow_run_name() -> str:
    """What the Prefect run that begins is called, as its MLflow run: method, data, seed. A wrong setting it leaves."""
    from prefect.runtime import flow_run  # not above: Prefect takes its server from the environment when imported

    given = dict(flow_run.parameters)
    table, _ = given.pop("table", None), given.pop("seeds", None)
    try:
        return run_name(resolve(**given), "" if table is None else f"table {table}")
    except AmvlError:  # the flow says it
        return str(given["preset"])


def _plain(value: Any, name: str) -> Any:
    full = RunConfig.model_fields[name].annotation
    if isinstance(value, BaseModel):
        assert isinstance(full, type)
        return given(value, full)
    if isinstance(value, dict) and get_origin(full) is dict:
        inner = get_args(full)[1]
        return {key: given(item, inner) if isinstance(item, BaseModel) else item for key, item in value.items()}
    return value


if TYPE_CHECKING:
    Data: TypeAlias = Any
    Model: TypeAlias = Any
    Latent: TypeAlias = Any
    Stage: TypeAlias = Any
    Heldout: TypeAlias = Any
    Trainer: TypeAlias = Any
    Cluster: TypeAlias = Any
    Evaluation: TypeAlias = Any
    Tracking: TypeAlias = Any
else:
    Data, Model, Latent, Stage = (partial(m) for m in (DataConfig, ModelConfig, LatentConfig, StageConfig))
    Heldout, Trainer, Cluster = (partial(m) for m in (HeldoutConfig, TrainerConfig, ClusterConfig))
    Evaluation, Tracking = partial(EvaluationConfig), partial(TrackingConfig)
