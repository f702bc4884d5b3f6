"""What a family of base models must give, so that every method trains on it: one implementation a family.

The packed rows ask `TextStack` for the parts of a decoder layer. The methods ask `Backbone` for images and positions.
Neither knows a family; `backbone_of` finds it by the model.

Shape suffixes: N rows, R rows that go on, H heads, G key-value heads, C head size, D hidden size, F image features,
B images, S pixels along a side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple

from torch import Tensor, nn

from amvl_core.contracts.errors import CheckpointError

FAMILIES = {"qwen2_5_vl": "amvl_core.backbones.qwen2_5_vl"}
"""Hugging Face model type of the stock model -> the module with its `BACKBONE`."""


class Rope(NamedTuple):
    """Rotary embedding of each row, [N, C] each."""

    cos: Tensor
    sin: Tensor


class TextStack(ABC):
    """The parts of a stock text model, called as the stock model calls them."""

    layers: Sequence[nn.Module]
    query_groups: int
    """How many query heads share a key-value head."""

    @abstractmethod
    def rope(self, embeds_ND: Tensor, positions_3N: Tensor) -> Rope:
        """The rotary embedding of rows at these positions."""

    @abstractmethod
    def attention(self, layer: Any) -> Any:
        """The attention module of a layer: has `scaling`, `attention_dropout` and `training`."""

    @abstractmethod
    def normed(self, layer: Any, hidden_ND: Tensor) -> Tensor:
        """What a layer's attention reads."""

    @abstractmethod
    def keys_values(self, layer: Any, normed_ND: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """Keys after rotation and values, [N, G, C] each."""

    @abstractmethod
    def queries(self, layer: Any, normed_RD: Tensor, rope: Rope) -> Tensor:
        """Queries after rotation, [R, H, C]."""

    @abstractmethod
    def finished(self, layer: Any, hidden_RD: Tensor, attended_RHC: Tensor) -> Tensor:
        """The layer's output, [R, D], from its input and what attention gave."""

    @abstractmethod
    def final_norm(self, hidden_RD: Tensor) -> Tensor:
        """What the LM head reads."""


class Backbone(ABC):
    """A family of vision-language models; `model` is always a stock Hugging Face model or a class that extends one."""

    model_class: Any
    """The stock class for conditional generation."""

    @abstractmethod
    def text(self, model: Any) -> TextStack:
        """The text model in its parts."""

    @abstractmethod
    def language_model(self, model: Any) -> Any:
        """The text model as the stock library calls it, with a cache."""

    @abstractmethod
    def vision(self, model: Any) -> nn.Module:
        """The vision encoder."""

    @abstractmethod
    def image_features(self, model: Any, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        """Features of all images and videos in order, [F, D]."""

    @abstractmethod
    def feature_pixels(self, model: Any) -> int:
        """Pixels along the square that one feature of an image is of."""

    @abstractmethod
    def square_images(self, model: Any, pixels_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised square images as pixel values and grids, as the image processor gives them.

        S is a multiple of `feature_pixels`.
        """

    @abstractmethod
    def blank_image(self, model: Any) -> tuple[Tensor, Tensor]:
        """The smallest image, as pixel values and grid."""

    @abstractmethod
    def features_per_image(self, model: Any, image_grid_thw: Tensor) -> Tensor:
        """How many features each image or video has."""

    @abstractmethod
    def stands_for_features(self, model: Any, ids: Tensor) -> Tensor:
        """Which tokens stand in the place of a feature of an image or a video."""

    @abstractmethod
    def positions(
        self,
        model: Any,
        ids_BT: Tensor,
        image_grid_thw: Tensor | None,
        attention_mask: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        second_per_grid_ts: Tensor | None = None,
    ) -> Tensor:
        """Positions [3, B, T], as the stock model gives them.

        `second_per_grid_ts` are the seconds that a step in time of each video covers.
        """

    @abstractmethod
    def packed_positions(
        self, model: Any, ids_N: Tensor, lengths: Sequence[int], grid_I3: Tensor | None, seconds_I: Tensor | None
    ) -> Tensor:
        """Positions [3, N] of samples of `lengths` one behind another, each sample's as the stock model gives them.

        Images and videos are in the order of their places; of a still image `seconds_I` is 0.
        """

    @abstractmethod
    def check(self, model: Any) -> None:
        """A CheckpointError where the model uses what a packed row does not have."""


def backbone_of(model: Any) -> Backbone:
    """The family of a model. A CheckpointError names a family that is not known."""
    for kind in type(model).__mro__:
        for model_type in FAMILIES:
            found = family(model_type)
            if kind is found.model_class:
                return found
    raise CheckpointError(f"{type(model).__name__} extends no known base model; known are {', '.join(FAMILIES)}")


def family(model_type: str) -> Backbone:
    """The family of a Hugging Face model type. A CheckpointError where it is not known."""
    if model_type not in FAMILIES:
        raise CheckpointError(f"a {model_type!r} model is no known base model, which are {', '.join(FAMILIES)}")
    backbone: Backbone = import_module(FAMILIES[model_type]).BACKBONE
    return backbone
