"""Qwen2.5-VL, by the stock modules of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import rotate_half

from amvl_core.backbones.backbone import Backbone, Rope, TextStack
from amvl_core.contracts.errors import CheckpointError


class QwenText(TextStack):
    """Its text model: grouped-query attention, multimodal rotary positions, RMSNorm before each part of a layer."""

    def __init__(self, text_model: Any) -> None:
        self.model, self.layers = text_model, text_model.layers
        self.query_groups = text_model.config.num_attention_heads // text_model.config.num_key_value_heads

    def rope(self, embeds_ND: Tensor, positions_3N: Tensor) -> Rope:
        """The stock module's, of one sequence."""
        cos_1NC, sin_1NC = self.model.rotary_emb(embeds_ND, positions_3N[:, None])
        return Rope(cos_1NC[0], sin_1NC[0])

    def attention(self, layer: Any) -> Any:
        """The layer's own."""
        return layer.self_attn

    def normed(self, layer: Any, hidden_ND: Tensor) -> Tensor:
        """Behind the first norm."""
        return layer.input_layernorm(hidden_ND)

    def keys_values(self, layer: Any, normed_ND: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """By the stock projections."""
        attention = layer.self_attn
        key_NGC = attention.k_proj(normed_ND).unflatten(-1, (-1, attention.head_dim))
        return _rotate(key_NGC, rope), attention.v_proj(normed_ND).unflatten(-1, (-1, attention.head_dim))

    def queries(self, layer: Any, normed_RD: Tensor, rope: Rope) -> Tensor:
        """By the stock projection."""
        attention = layer.self_attn
        return _rotate(attention.q_proj(normed_RD).unflatten(-1, (-1, attention.head_dim)), rope)

    def finished(self, layer: Any, hidden_RD: Tensor, attended_RHC: Tensor) -> Tensor:
        """Output projection, residual, MLP, residual."""
        hidden_RD = hidden_RD + layer.self_attn.o_proj(attended_RHC.flatten(1))
        return hidden_RD + layer.mlp(layer.post_attention_layernorm(hidden_RD))

    def final_norm(self, hidden_RD: Tensor) -> Tensor:
        """The stock module's."""
        return self.model.norm(hidden_RD)


def _rotate(value_NHC: Tensor, rope: Rope) -> Tensor:
    """Rotary embedding, as the stock model applies it."""
    return value_NHC * rope.cos[:, None] + rotate_half(value_NHC) * rope.sin[:, None]


class Qwen25VL(Backbone):
    """Qwen2.5-VL."""

    model_class = Qwen2_5_VLForConditionalGeneration

    def text(self, model: Any) -> TextStack:
        """The text model in its parts."""
        return QwenText(self.language_model(model))

    def language_model(self, model: Any) -> Any:
        """`model.language_model` of the stock class."""
        return model.model.language_model

    def vision(self, model: Any) -> nn.Module:
        """Patch embedding, blocks and merger."""
        return model.model.visual

    def image_features(self, model: Any, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        """Behind the merger; the vision encoder tells a video by its grid alone."""
        return torch.cat(list(model.model.get_image_features(pixel_values, image_grid_thw).pooler_output))

    def feature_pixels(self, model: Any) -> int:
        """Of a merged patch."""
        vision = model.config.vision_config
        return int(vision.patch_size * vision.spatial_merge_size)

    def square_images(self, model: Any, pixels_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """Patches in the order in which they are merged; a still image is shown at all times of a patch."""
        vision = model.config.vision_config
        patch, merge, frames = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        sides = (-1, merge, patch)
        blocks_B3RmpQmp = pixels_B3SS.unflatten(3, sides).unflatten(2, sides)
        patches_BRQmm3pp = blocks_B3RmpQmp.permute(0, 2, 5, 3, 6, 1, 4, 7)
        over_time = patches_BRQmm3pp.unsqueeze(6).expand(*[-1] * 6, frames, -1, -1)
        side = pixels_B3SS.shape[-1] // patch
        return over_time.flatten(5).flatten(0, 4), torch.tensor([[1, side, side]] * len(pixels_B3SS))

    def blank_image(self, model: Any) -> tuple[Tensor, Tensor]:
        """One merged patch of zeros."""
        vision = model.config.vision_config
        merge = vision.spatial_merge_size
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        return torch.zeros(merge**2, width), torch.tensor([[1, merge, merge]])

    def features_per_image(self, model: Any, image_grid_thw: Tensor) -> Tensor:
        """One for each merged patch."""
        return image_grid_thw.prod(-1) // model.config.vision_config.spatial_merge_size**2

    def stands_for_features(self, model: Any, ids: Tensor) -> Tensor:
        """Both kinds of pad."""
        return (ids == model.config.image_token_id) | (ids == model.config.video_token_id)

    def positions(
        self,
        model: Any,
        ids_BT: Tensor,
        image_grid_thw: Tensor | None,
        attention_mask: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        second_per_grid_ts: Tensor | None = None,
    ) -> Tensor:
        """M-RoPE positions; the same in all three dimensions where there is no image and no video."""
        if image_grid_thw is None and video_grid_thw is None:
            if attention_mask is None:
                return torch.arange(ids_BT.shape[1], device=ids_BT.device).expand(3, *ids_BT.shape)
            return (attention_mask.long().cumsum(-1) - 1).clamp_min(0).expand(3, *ids_BT.shape)
        kind_BT = (ids_BT == model.config.image_token_id).int() + 2 * (ids_BT == model.config.video_token_id).int()
        positions_3BT: Tensor = model.model.get_rope_index(
            ids_BT,
            kind_BT,
            image_grid_thw=image_grid_thw,
            video_grid_thw=video_grid_thw,
            second_per_grid_ts=second_per_grid_ts,
            attention_mask=attention_mask,
        )[0]
        return positions_3BT

    def packed_positions(
        self, model: Any, ids_N: Tensor, lengths: Sequence[int], grid_I3: Tensor | None, seconds_I: Tensor | None
    ) -> Tensor:
        """M-RoPE positions, counted for all samples at once: the stock function takes 9 % of a small model's step.

        A token of text moves on by one, an image or a video by its longer side.
        """
        shown_N = self.stands_for_features(model, ids_N)
        moves_N, count_B = (~shown_N).long(), torch.tensor(lengths)
        if grid_I3 is not None:
            places_F = shown_N.nonzero()[:, 0]
            merge = model.config.vision_config.spatial_merge_size
            times_I, rows_I, columns_I = (grid_I3 // torch.tensor([1, merge, merge])).unbind(-1)
            area_I, ends_I = rows_I * columns_I, (times_I * rows_I * columns_I).cumsum(0)
            moves_N[places_F[ends_I - 1]] = torch.maximum(rows_I, columns_I)
            own_F = torch.arange(len(grid_I3)).repeat_interleave(times_I * area_I)
            within_F = torch.arange(len(places_F)) - (ends_I - times_I * area_I)[own_F]
            time_F, within_F = within_F // area_I[own_F], within_F % area_I[own_F]
            if seconds_I is not None:  # a still image has one step in time, at 0
                time_F = (time_F * self.time_steps(model, seconds_I)[own_F]).long()
            offset_3F = torch.stack([time_F, within_F // columns_I[own_F], within_F % columns_I[own_F]])
        before_N = moves_N.cumsum(0) - moves_N
        before_N -= before_N[count_B.cumsum(0) - count_B].repeat_interleave(count_B)
        if grid_I3 is None:
            return before_N.expand(3, -1)
        return before_N.repeat(3, 1).index_add_(1, places_F, offset_3F)

    def time_steps(self, model: Any, seconds_I: Tensor) -> Tensor:
        """By how much a step in time moves the positions of images and videos on, whose steps cover `seconds_I`."""
        return model.config.vision_config.tokens_per_second * seconds_I

    def check(self, model: Any) -> None:
        """Sliding windows are refused."""
        if "sliding_attention" in model.config.text_config.layer_types:
            raise CheckpointError("the model uses sliding-window attention; turn use_sliding_window off")


BACKBONE = Qwen25VL()
