"""The rows of the paper's ablations, with its figures beside them (arXiv 2602.04476), and the controls."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

from amvl_core.contracts.ablations import (
    BLINK,
    CV_BENCH,
    MMVP,
    VSTAR,
    Change,
    Row,
    Table,
    control_row,
    method_stages,
    shared_stages,
)
from amvl_core.contracts.config import RunConfig, override
from amvl_core.contracts.encoders import BASE, EncoderConfig
from amvl_core.contracts.method import MethodConfig
from amvl_core.methods.markers.config import MarkersMethod
from amvl_core.methods.pause.config import PauseMethod
from amvl_core.methods.sft.config import SftMethod
from amvl_core.methods.valr.config import ValrMethod

ENCODERS = {
    "dinov3": "facebook/dinov3-vitl16-pretrain-lvd1689m",
    "siglip2": "google/siglip2-large-patch16-256",
    "dinov2": "facebook/dinov2-with-registers-large",
    "clip": "openai/clip-vit-large-patch14",
}
"""The ViT-L of each name. pi3's features come from a file (docs/valr.md)."""
TINY = {"dinov3": "dinov3", "siglip2": "siglip", "dinov2": "dinov2", "clip": "clip"}
"""The tiny encoder of each kind."""
DEPTH = 28
"""Decoder layers of the paper's model."""


def _method(fields: Callable[[RunConfig, ValrMethod], dict[str, Any]]) -> Change:
    """Sets fields of the method of each VaLR stage."""

    def change(config: RunConfig) -> RunConfig:
        found = {
            name: {"method": fields(config, stage.method)}
            for name, stage in method_stages(config).items()
            if isinstance(stage.method, ValrMethod)
        }
        return override(config, {"stages": found})

    return change


def _as_configured(config: RunConfig) -> RunConfig:
    return config


def _aligned(*names: str) -> Change:
    """With these encoders and no others: tiny ones for a tiny base, else the paper's, each at the configured size."""

    def fields(config: RunConfig, method: ValrMethod) -> dict[str, Any]:
        encoders = [_encoder(name, config, method) for name in names]
        return {"encoders": [encoder.model_dump(mode="json") for encoder in encoders]}

    return _method(fields)


def _encoder(name: str, config: RunConfig, method: ValrMethod) -> EncoderConfig:
    size = method.encoders[0].size
    if name == BASE:
        return EncoderConfig(name="qwen", source=BASE, size=size)
    source = f"tiny:{TINY[name]}" if config.model.base == "tiny" else ENCODERS[name]
    return EncoderConfig(name=name, source=source, size=size)


def _layer(layer: int) -> Change:
    """`layer` of the paper's 28, in proportion where the model has fewer."""

    def fields(config: RunConfig, method: ValrMethod) -> dict[str, Any]:
        depth = config.model.tiny.num_layers if config.model.base == "tiny" else DEPTH
        return {"align_layer": ceil(layer * depth / DEPTH)}

    return _method(fields)


def _weight(weight: float) -> Change:
    return _method(lambda _, __: {"align_weight": weight})


def _evaluated(**fields: Any) -> Change:
    return lambda config: override(config, {"evaluation": fields})


def _share(method: type[MethodConfig] | None, share: float) -> Change:
    """On a share of the samples, VaLR or the control `method`; take the preset `valr-data`, which has one stage."""

    def change(config: RunConfig) -> RunConfig:
        found = control_row(method)(config) if method else config
        own = [name for name in found.stages if name not in shared_stages(config)]
        return override(found, {"stages": {name: {"data_share": share} for name in own}})

    return change


def _slots(number: int) -> Change:
    return lambda config: override(config, {"latent": {"num_slots": number}})


def _scores(blink: float, vstar: float, mmvp: float | None = None, cv_bench: float | None = None) -> dict[str, float]:
    given = {BLINK: blink, VSTAR: vstar, MMVP: mmvp, CV_BENCH: cv_bench}
    return {name: score for name, score in given.items() if score is not None}


_BASE = _scores(55.7, 76.4, 56.0, 74.5)
"""The paper's Qwen2.5-VL-7B."""
_SFT = _scores(56.6, 78.0, 58.7, 77.0)
_NONE = _scores(57.1, 75.9, 56.7)
_S = _scores(63.1, 86.4, 60.3, 83.1)

_SHARES = {1 / 32: "1/32 of the samples", 1 / 8: "1/8", 1 / 2: "1/2", 1.0: "all samples"}

TABLES: dict[str, Table] = {
    "alignment": Table(
        "What the slots are aligned with",
        "DINOv3",
        (
            Row("none", _weight(0.0), _NONE),
            Row("Qwen's encoder", _aligned(BASE), _scores(58.9, 81.7, 60.0)),
            Row("CLIP", _aligned("clip"), _scores(62.3, 83.2, 59.3, 79.1)),
            Row("SigLIPv2", _aligned("siglip2"), _scores(62.8, 83.2, 59.7, 81.9)),
            Row("DINOv2", _aligned("dinov2"), _scores(62.7, 83.8, 60.0, 81.8)),
            Row("DINOv3", _aligned("dinov3"), _S),
        ),
        _BASE,
    ),
    "encoders": Table(
        "Several encoders; the paper's VaLR-M adds pi3 to the pair",
        "DINOv3 + SigLIPv2",
        (
            Row("DINOv3", _aligned("dinov3"), _S),
            Row("DINOv3 + CLIP", _aligned("dinov3", "clip")),
            Row("DINOv3 + SigLIPv2", _aligned("dinov3", "siglip2")),
            Row("DINOv3 + SigLIPv2 + DINOv2 + CLIP", _aligned("dinov3", "siglip2", "dinov2", "clip")),
        ),
        _BASE,
    ),
    "layer": Table(
        "The layer that is aligned, of 28",
        "12",
        (
            Row("4", _layer(4), _scores(59.2, 83.8, 55.7, 78.6)),
            Row("12", _layer(12), _S),
            Row("27", _layer(27), _scores(62.8, 85.3, 60.0, 82.5)),
        ),
        _BASE,
    ),
    "slots": Table(
        "The number of slots in a block",
        "K = 16",
        tuple(
            Row(f"K = {number}", _slots(number), _scores(blink, vstar))
            for number, blink, vstar in (
                (1, 58.6, 78.0),
                (4, 62.0, 85.3),
                (9, 62.8, 85.3),
                (16, 63.1, 86.4),
                (25, 63.2, 87.4),
            )
        ),
        _BASE,
    ),
    "lambda": Table(
        "The weight of the alignment",
        "lambda = 0.5",
        tuple(
            Row(f"lambda = {weight:g}", _weight(weight), _scores(blink, vstar))
            for weight, blink, vstar in (
                (0.0, 57.1, 75.9),
                (0.25, 61.7, 78.5),
                (0.5, 63.1, 86.4),
                (0.75, 62.8, 84.8),
                (1.0, 60.9, 84.3),
            )
        ),
        _BASE,
    ),
    "test_time": Table(
        "Latent steps at inference, forced on one model: blocks, and the slots of each",
        "as the model writes them",
        (
            Row("no block", _evaluated(latent_mode="never")),
            *(
                Row(f"a block at the start, {steps} slots", _evaluated(latent_mode="first_step", latent_steps=steps))
                for steps in (0, 1, 2, 4, 8, 16, 32)
            ),
            Row("a block before every line", _evaluated(latent_mode="every_step")),
            Row("as the model writes them", _as_configured),
        ),
        _BASE,
    ),
    "data": Table(
        "Training samples: plain fine-tuning and VaLR on the same share",
        "VaLR, all samples",
        tuple(
            Row(f"{label}, {_SHARES[share]}", _share(method, share))
            for share in _SHARES
            for label, method in ((SftMethod.label, SftMethod), (ValrMethod.label, None))
        ),
        _BASE,
    ),
    "controls": Table(
        "Controls: the same steps without fed-back states, or without alignment",
        "VaLR",
        (
            Row("SFT, equal steps", control_row(SftMethod), _SFT),
            Row(PauseMethod.label, control_row(PauseMethod)),
            Row(MarkersMethod.label, control_row(MarkersMethod)),
            Row("lambda = 0", _weight(0.0), _NONE),
            Row(ValrMethod.label, _as_configured, _S),
        ),
        _BASE,
    ),
}
