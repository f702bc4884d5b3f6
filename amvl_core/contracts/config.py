"""The typed configuration of a run. Every default is the paper's value; imports no torch.

`RunConfig` is frozen and refuses unknown fields: a typo is an error that names the path of the field.
Equation, table and appendix numbers are those of arXiv 2607.00461.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias, Union, get_args

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, field_validator, model_validator

from amvl_core.contracts import storage
from amvl_core.contracts.credentials import LOGIN, SAID, Uri, holds_secret
from amvl_core.contracts.encoders import EncoderConfig
from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.frozen import Seed, Settings
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.method import MethodConfig, configurations
from amvl_core.contracts.sources import CogcomSource, RefocusSource, Source, VisualCotSource, ZebraCotSource

ShownAs = Literal["video", "images"]
SHOWN_AS = "the frames of a video are shown as a video, two in a patch and with their times, or as so many images"


class DataConfig(Settings):
    """What is prepared (Appendix E)."""

    sources: tuple[Source, ...] = (
        VisualCotSource(uri="s3://amvl/sources/visual_cot"),
        RefocusSource(uri="s3://amvl/sources/refocus"),
        CogcomSource(uri="s3://amvl/sources/cogcom"),
        ZebraCotSource(uri="s3://amvl/sources/zebra_cot"),
    )
    target: Literal["answer", "steps_and_answer"] = "steps_and_answer"
    min_pixels: int = Field(256 * 28 * 28, ge=1, description="an image is scaled up to at least this many pixels")
    max_pixels: int = Field(1280 * 28 * 28, ge=1, description="an image is scaled down to at most this many pixels")
    max_tokens: int = Field(4096, ge=16, description="a longer sample is dropped and counted")
    frames: int = Field(32, ge=2, description="of a video, at equal distances; a video of fewer is dropped and counted")
    video: ShownAs = Field("video", description=SHOWN_AS)
    drop_duplicates: bool = Field(True, description="keep the first of training samples that are (nearly) the same")
    drop_contaminated: bool = Field(True, description="drop training samples that give away a test sample")
    accept_losses: bool = Field(
        False,
        description="train though more than half of a source's rows of a split were dropped, or fewer than 30 test "
        "rows are left. Duplicates and contaminated samples are no losses: what they say is still in the dataset, or "
        "must not be, and data.drop_duplicates and data.drop_contaminated ask for it",
    )
    rows_per_shard: int = Field(
        1024, ge=1, description="rows of a source that become one shard, and are redone together"
    )
    features: bool = Field(
        False,
        description="compute the features of the frozen encoders that stages' methods align with once, into shards "
        "beside the dataset; else in every step",
    )
    seed: Seed = 0

    @model_validator(mode="after")
    def _budget(self) -> DataConfig:
        if self.max_pixels < self.min_pixels:
            raise ValueError(
                f"max_pixels ({self.max_pixels}) must be at least min_pixels ({self.min_pixels}); lower both to save "
                "memory"
            )
        return self


Size = Annotated[int, Field(ge=1)]


class TinyConfig(Settings):
    """Size of the model that is built offline where `model.base` is `tiny`."""

    hidden_size: Size = 128
    num_layers: Size = 3
    num_heads: Size = 4
    num_kv_heads: Size = 2
    intermediate_size: Size = 256
    vision_hidden_size: Size = 64
    vision_layers: Size = 2
    vision_heads: Size = 4
    vision_intermediate_size: Size = 192
    patch_size: Size = 8
    tie_word_embeddings: bool = Field(
        False,
        description="the output layer is the token embeddings, as in Qwen2.5-VL 3B; 7B and 72B have two matrices",
        exclude_if=lambda tied: not tied,  # left out, fingerprints are those of runs from before the field
    )
    seed: Seed = 0

    @model_validator(mode="after")
    def _divisible(self) -> TinyConfig:
        for whole, parts, times in (
            ("hidden_size", "num_heads", 2),  # a head's rotary positions are of pairs
            ("num_heads", "num_kv_heads", 1),
            ("vision_hidden_size", "vision_heads", 4),  # pairs for rows, and as many for columns
        ):
            size, divisor = getattr(self, whole), times * getattr(self, parts)
            if size % divisor:
                raise ValueError(
                    f"{whole} ({size}) must be a multiple of {f'{times} x ' if times > 1 else ''}{parts} ({divisor})"
                )
        return self


class ModelConfig(Settings):
    """The base model. Both ways lead through the same `from_pretrained`."""

    base: Uri = Field("Qwen/Qwen2.5-VL-7B-Instruct", description="a Hub id, a folder, or `tiny`")
    tiny: TinyConfig = TinyConfig()

    @field_validator("base")
    @classmethod
    def _absolute(cls, base: str) -> str:
        return base if base == "tiny" else storage.local_folder(base)  # workers work in folders of their own


if TYPE_CHECKING:
    Method: TypeAlias = MethodConfig
else:
    Method = Annotated[Union[tuple(configurations().values())], Field(discriminator="kind")]  # noqa: UP007


class LrScale(Settings):
    """Factors on a stage's learning rate, for parts of the model that want one of their own."""

    latent: float = Field(1.0, gt=0, description="of the method's own parts, where there are some")
    embeddings: float = Field(1.0, gt=0, description="of the token embeddings, new rows included, and the output layer")
    vision: float = Field(1.0, gt=0, description="of the vision encoder")


class StageConfig(Settings):
    """One training stage; it starts from the checkpoint of the stage before it (`RunConfig.parents`)."""

    method: Method
    trainable: Literal["all", "language", "new_rows"] = Field(
        "language",
        description="all: vision encoder too; language: everything but the vision encoder; "
        "new_rows: only the embedding rows of the new tokens",
    )
    epochs: float | None = Field(None, gt=0)
    steps: int | None = Field(None, ge=1)
    data_share: float = Field(
        1.0, gt=0, le=1, description="share of the training samples that is used, in every epoch the same"
    )
    global_batch: int = Field(128, ge=1)
    micro_tokens: int = Field(16384, ge=1, description="tokens per worker and forward pass; a longer sample runs alone")
    lr: float = Field(1e-5, gt=0)
    lr_scale: LrScale = LrScale()
    warmup_ratio: float = Field(0.05, ge=0, le=1)
    beta2: float = Field(0.999, gt=0, lt=1, description="AdamW's; short runs from scratch want a shorter memory")
    weight_decay: float = Field(0.01, ge=0)
    clip: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _length(self) -> StageConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        if self.trainable == "new_rows" and not self.method.added_tokens(LatentConfig()):
            raise ValueError(f"{self.method.kind} has no new token rows to train; use trainable = all or language")
        return self

    @model_validator(mode="after")
    def _scaled(self) -> StageConfig:
        if self.lr_scale.latent != 1 and (not self.method.own_parts or self.trainable == "new_rows"):
            raise ValueError(
                f"lr_scale.latent: no parts of its own are trained with method {self.method.kind} and trainable = "
                f"{self.trainable}; leave it out"
            )
        if self.lr_scale.vision != 1 and self.trainable != "all":
            raise ValueError(f"lr_scale.vision: trainable = {self.trainable} keeps the vision encoder; set it to all")
        return self


class TrainerConfig(Settings):
    """How a stage runs; the DeepSpeed configuration is derived from it (`amvl_core/train/engine.py`)."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    offload: Literal["none", "optimizer", "parameters"] = Field(
        "none",
        description="what lives in the CPU's memory: optimizer: its states, which are stepped there (ZeRO 1 to 3); "
        "parameters: the weights as well (ZeRO 3)",
    )
    precision: Literal["bf16", "fp32"] = "bf16"
    gradient_checkpointing: bool = True
    checkpoint_every: int = Field(200, ge=1, description="optimiser steps between checkpoints to resume from")
    keep_last: int = Field(2, ge=1, description="checkpoints kept while a stage runs")
    log_every: int = Field(1, ge=1, description="optimiser steps between logged metrics")
    loader_workers: int = Field(4, ge=0, description="processes per worker that decode images ahead of the step")
    max_failures: int = Field(3, ge=0, description="how often a failed worker group is started again")
    on_nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="a step whose gradient is not finite: end the run, or go on without that step"
    )

    @model_validator(mode="after")
    def _offload(self) -> TrainerConfig:
        needed = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        if self.zero_stage < needed:
            raise ValueError(
                f"offload = {self.offload} needs zero_stage {needed} or more (it is {self.zero_stage}); set zero_stage"
            )
        return self


MIN_HELDOUT = 16
"""Fewer samples say too little of the loss."""


class HeldoutConfig(Settings):
    """Samples of the training split that no stage trains on; their loss is followed while a stage trains."""

    samples: int = Field(
        0, ge=0, description=f"at most a tenth of the split, and none where that is below {MIN_HELDOUT}; 0: none"
    )
    every: int | None = Field(
        None,
        ge=1,
        description="optimiser steps between two held-out losses; None: as many as keep the cost at about 2 % of the "
        "time (`amvl_core/data/heldout.py`)",
    )

    @model_validator(mode="after")
    def _enough(self) -> HeldoutConfig:
        if 0 < self.samples < MIN_HELDOUT:
            raise ValueError(f"samples must be 0 or at least {MIN_HELDOUT}, not {self.samples}: fewer say too little")
        if self.every is not None and not self.samples:
            raise ValueError("every says nothing where no samples are held out; set samples, or leave it out")
        return self


class ClusterConfig(Settings):
    """The machines: one worker per GPU, or CPU workers where there is none."""

    address: str = Field("auto", description="auto: a Ray of its own; or an address. RAY_ADDRESS wins where it is set")
    num_workers: int = Field(16, ge=1)
    min_workers: int | None = Field(
        None, ge=1, description="where machines are lost, go on with as few until they are back; else wait for them"
    )
    device: Literal["auto", "cuda", "cpu"] = "auto"
    evaluation_gpus: int = Field(
        1,
        ge=1,
        description="GPUs of one machine that hold one model in an evaluation; more than 1 where one is too small for "
        "it, as for 72B (`python -m infra.plan` says so). Workers on CPUs have no use for it",
    )

    @property
    def gpus_of_a_model(self) -> int:
        """Of one in an evaluation; 0 where workers run on CPUs, whatever the machine has."""
        return 0 if self.device == "cpu" else self.evaluation_gpus

    @model_validator(mode="after")
    def _fewer(self) -> ClusterConfig:
        if self.device != "cpu" and self.evaluation_gpus > self.num_workers:
            raise ValueError(
                f"evaluation_gpus ({self.evaluation_gpus}) must be at most num_workers ({self.num_workers}), the GPUs "
                "of the run"
            )
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers ({self.min_workers}) must be at most num_workers ({self.num_workers})")
        return self


BenchmarkName = Literal[
    "vstar",
    "hrbench_4k",
    "hrbench_8k",
    "blink",
    "visual_puzzles",
    "mmvp",
    "cv_bench",
    "mmstar",
    "vsi_bench",
    "vsi_bench_vlmevalkit",
]


class BenchmarkSource(Settings):
    """A published benchmark and where its files are (`amvl_core/eval/benchmarks/`)."""

    name: BenchmarkName
    uri: Uri = Field(description="the folder or file that its reader takes (docs/evaluation.md)")


class EvaluationConfig(Settings):
    """Greedy generation on the test split and on published benchmarks, prior latents only (App. I)."""

    benchmarks: tuple[BenchmarkSource, ...] = Field((), description="published benchmarks to evaluate beside it")
    max_pixels: int = Field(
        16384 * 28 * 28,
        ge=1,
        description="an image of a published benchmark is scaled down to at most this many pixels, as VLMEvalKit and "
        "the base model do; the test split keeps data.max_pixels",
    )
    batch_size: int = Field(16, ge=1, description="questions that a worker answers at once, at most")
    batch_tokens: int = Field(32768, ge=1, description="their tokens with padding, at most")
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens that a model may write for an answer; None: the longest target of the dataset and a "
        "quarter more, 512 on published benchmarks (`amvl_core/contracts/answer_length.py`)",
    )
    tau: float = Field(0.0, ge=0, description="Z = mu + tau sigma eps (Table 11)")
    latent_mode: Literal["written", "first_step", "every_step", "never"] | None = Field(
        None,
        description="where a model that writes latent blocks has them in its reply: where it writes one, and besides "
        "at the start or before every line; or nowhere. Left out: as its checkpoint says",
    )
    latent_steps: int | None = Field(
        None, ge=0, description="slots of each block that a model writes; left out: as many as in training"
    )
    seed: Seed = 0
    video: ShownAs = Field("video", description=f"of a published benchmark: {SHOWN_AS}")
    faithfulness_items: int = Field(
        256,
        ge=0,
        description="questions of the test split, and of each published benchmark, that are asked again with changed "
        "latents (docs/faithfulness.md); 0: none",
    )
    controls: tuple[str, ...] = Field(
        ("sft", "pause"),
        description="models without latents that are trained to hold a latent one against, from the same base and for "
        "as many steps: plain fine-tuning, learned pause tokens. Each costs about as much as the latent stages",
    )
    analysis_items: int = Field(256, ge=0, description="test samples whose latents are analysed (docs/analysis.md)")
    sampled_items: int = Field(
        0,
        ge=0,
        description="questions of the test split that are answered several times, by drawn latents and by drawn tokens "
        "(docs/evaluation.md); 0: none",
    )

    @model_validator(mode="after")
    def _possible(self) -> EvaluationConfig:
        if self.faithfulness_items == 1:
            raise ValueError("faithfulness_items must be 0 or at least 2: latents are swapped between questions")
        names = [source.name for source in self.benchmarks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"benchmarks names {twice[0]} more than once")
        known = [name for name, method in configurations().items() if method.is_control()]
        if unknown := [name for name in self.controls if name not in known]:
            raise ValueError(f"controls: {unknown[0]!r} is no control; choose of {', '.join(known)}")
        return self


def untaken(method: MethodConfig) -> dict[str, Any]:
    """The fields of the evaluation that say nothing of a method's models, with their defaults."""
    drawn = {} if method.draws_latents else {"tau": 0.0}
    return drawn if method.writes_blocks else {**drawn, "latent_mode": None, "latent_steps": None}


CHALLENGER = "challenger"
"""The alias of a registered version that did not pass the gate (`infra/registry.py`)."""


class TrackingConfig(Settings):
    """Where MLflow writes. Without `uri`: MLFLOW_TRACKING_URI, else SQLite below a local storage root."""

    uri: str | None = None
    experiment: str = "amvl"
    registered_model: str = Field("amvl", max_length=256, description="as MLflow takes it; a dot is allowed")
    alias: str = Field("champion", description="of the version that has passed the gate (docs/registry.md)")
    margin: float = Field(
        1.0,
        ge=0,
        le=100,
        description="points of accuracy: a new version takes the alias where the whole 95 % interval of its difference "
        "to the one that holds it lies above minus this",
    )

    @field_validator("uri")
    @classmethod
    def _without_password(cls, uri: str | None) -> str | None:
        login = LOGIN.search(uri) if uri else None
        if uri and (holds_secret(uri) or (login and login["password"])):
            raise ValueError(
                f"{SAID} on MLflow's page; leave it out and set MLFLOW_TRACKING_URI, for a server also "
                "MLFLOW_TRACKING_USERNAME and _PASSWORD, or _TOKEN"
            )
        return uri

    @model_validator(mode="after")
    def _gated(self) -> TrackingConfig:
        if self.alias == CHALLENGER:
            raise ValueError(f"alias {CHALLENGER!r} is that of versions that are worse; choose another")
        return self


STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Names folders, metrics and tags in MLflow, tasks and artifacts in Prefect: what all of them take."""


class Parents(NamedTuple):
    """Stages before a stage, by name."""

    start: str | None
    """Whose checkpoint it starts from; None: it starts from the base model."""
    teacher: str | None
    """Whose model is its frozen teacher; None: it has none."""


class RunConfig(Settings):
    """Everything that a run is. Every default is the paper's; the preset `paper` adds its stages."""

    storage: Uri = Field("s3://amvl/runs", description="root of data, checkpoints and records: path, file:// or s3://")
    seed: Seed = 0
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    latent: LatentConfig = LatentConfig()
    stages: dict[str, StageConfig] = Field(
        min_length=1, description="in order; each starts where the one before ends, if its method asks for no other"
    )
    heldout: HeldoutConfig = HeldoutConfig()
    trainer: TrainerConfig = TrainerConfig()
    cluster: ClusterConfig = ClusterConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if not self.data.sources:
            raise ValueError("data.sources is empty")
        if self.evaluation.max_pixels < self.data.min_pixels:
            raise ValueError(
                f"evaluation.max_pixels ({self.evaluation.max_pixels}) must be at least data.min_pixels "
                f"({self.data.min_pixels}), which images of benchmarks are scaled up to"
            )
        for name, default in untaken(self.method).items():
            if getattr(self.evaluation, name) != default:
                lack = "draw no latents" if name == "tau" else "write no latent blocks"
                raise ValueError(f"evaluation.{name}: the models of {self.method.kind} {lack}; leave it out")
        for name, stage in self.stages.items():
            if not STAGE_NAME.fullmatch(name):
                raise ValueError(
                    f"stages: {name!r} is no name of a stage: give letters, digits, - and _, at most 64 (it is part of "
                    "metrics' names and pages' addresses)"
                )
            size, workers = stage.global_batch, self.cluster.num_workers
            longest = stage.method.sequences * self.data.max_tokens + stage.method.added_tokens(self.latent)
            if size < workers:
                raise ValueError(
                    f"stages.{name}.global_batch ({size}) must be at least cluster.num_workers ({workers})"
                )
            for some in range(workers, (self.cluster.min_workers or workers) - 1, -1):
                if size % some and stage.micro_tokens < 2 * longest:
                    which = "cluster.num_workers" if some == workers else "the workers that cluster.min_workers allows"
                    raise ValueError(
                        f"stages.{name}.global_batch ({size}) is no multiple of {which} ({some}), so "
                        f"a worker may have to run two samples at once: micro_tokens ({stage.micro_tokens}) must be at "
                        f"least twice the longest sample's {longest} (data.max_tokens and the method's own tokens)"
                    )
            try:
                start = self.parents(name).start
            except ValueError as error:
                raise ValueError(f"stages.{name}: {error}") from error
            before = None if start is None else self.stages[start].method
            if before is not None and not stage.method.follows(before):
                raise ValueError(f"stages.{name}: {stage.method.kind} cannot follow {before.kind}; put it first")
            layers = self.model.tiny.num_layers if self.model.base == "tiny" else None
            if problem := stage.method.problem(self.latent, layers, self.trainer.zero_stage):
                raise ValueError(f"stages.{name}: {problem}")
        return self

    def parents(self, stage: str) -> Parents:
        """The earlier stages that a stage needs. Raises ValueError where one of them is missing."""
        before = list(self.stages)[: list(self.stages).index(stage)]
        method, methods = self.stages[stage].method, [self.stages[name].method for name in before]
        start, teacher = method.starts_from(methods), method.taught_by(methods)
        return Parents(*(None if number is None else before[number] for number in (start, teacher)))

    @property
    def method(self) -> MethodConfig:
        """The method of the last stage: what the run is about."""
        return list(self.stages.values())[-1].method

    @property
    def encoders(self) -> tuple[EncoderConfig, ...]:
        """The frozen encoders that the stages' methods align with, each once."""
        return tuple(dict.fromkeys(one for stage in self.stages.values() for one in stage.method.aligned_with))


def trained_by(config: Mapping[str, Any], stage: str) -> tuple[MethodConfig, LatentConfig]:
    """The method and latent block of a stage, from a configuration as a checkpoint's record keeps it.

    Raises ConfigError where they have a setting that is not known, or not any more.
    """
    try:
        method = TypeAdapter(Method).validate_python(config["stages"][stage]["method"])
        return method, LatentConfig.model_validate(config["latent"])
    except ValidationError as error:
        raise ConfigError(
            f"the checkpoint of stage {stage} was trained with settings that this version does not know; train it "
            f"again: {error}"
        ) from error


def override(base: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """`base` with the fields in `changes` replaced, nested fields one by one, and validated again.

    Lists are replaced whole; a union whose `kind` changes starts from its own defaults. Raises ConfigError that names
    each wrong field by its path.
    """
    return validate(merge(base.model_dump(mode="json"), changes))


def validate(fields: dict[str, Any]) -> RunConfig:
    """A RunConfig from plain data, or a ConfigError that names each wrong field by its path."""
    try:
        return RunConfig.model_validate(fields)
    except ValidationError as error:
        lines = [f"  {_path(item['loc'])}: {item['msg']}" for item in error.errors()]
        raise ConfigError("the configuration has an error:\n" + "\n".join(lines)) from error


def flatten(config: BaseModel) -> dict[str, str]:
    """Every field by its dotted path, as text: what a tracker calls parameters."""
    return dict(_flatten(config.model_dump(mode="json"), ""))


def _flatten(value: Any, path: str) -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [pair for key, item in value.items() for pair in _flatten(item, f"{path}.{key}" if path else key)]
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return [pair for i, item in enumerate(value) for pair in _flatten(item, f"{path}.{i}")]
    return [(path, str(value))]


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` laid over `base`, field by field; an object of another `kind` replaces the one before it."""
    merged = dict(base)
    for key, value in changes.items():
        old = base.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and _kind(value, old) == _kind(old, value):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def _kind(fields: dict[str, Any], other: dict[str, Any]) -> Any:
    """What `fields` say which of a union's models they are, else what `other` says."""
    return fields.get("kind", other.get("kind"))


def _path(location: tuple[int | str, ...]) -> str:
    parts = [str(part) for i, part in enumerate(location) if not (_is_union_tag(location, i) and part in _KINDS)]
    return ".".join(parts) or "configuration"


def _is_union_tag(location: tuple[int | str, ...], i: int) -> bool:
    return i > 0 and (location[i - 1] == "method" or (i > 1 and location[i - 2] == "sources"))


_KINDS = {*configurations(), *(member.model_fields["kind"].default for member in get_args(get_args(Source)[0]))}
"""What pydantic puts into the path of an error beside the fields."""
