"""The bottleneck mask of a model's own passes: nothing but slots and images attends to images.

Shape suffixes: B prompts, T columns that ask, S columns that are seen, the last T of which ask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from amvl_core.backbones.backbone import backbone_of
from amvl_core.rows.spans import TokenKind


def has_bottleneck(model: Any) -> bool:
    """Whether nothing but slots and images attends to images: a field of its configuration, if it is so."""
    return bool(getattr(model.config, "bottleneck", False))


def token_kinds(model: Any, ids_T: Tensor) -> list[TokenKind]:
    """What each token is to the mask. Without the bottleneck all is text, from which nothing is hidden."""
    if not has_bottleneck(model):
        return ["text"] * len(ids_T)
    shown, slots = backbone_of(model).stands_for_features(model, ids_T), _slots(model, ids_T)
    return [
        "image" if image else "slot" if slot else "text"
        for image, slot in zip(shown.tolist(), slots.tolist(), strict=True)
    ]


def through_slots(
    model: Any,
    ids_BT: Tensor,
    mask: Tensor | None,
    dtype: torch.dtype,
    images_BP: Tensor | None = None,
    slots_see: bool = True,
) -> Tensor:
    """What columns of tokens `ids_BT` see under the bottleneck mask: an additive mask [B, 1, T, S].

    `mask` is what they would see without it: [B, S], where padding then sees itself; additive, [B, 1, T, S]; or None,
    all before them. `images_BP` says which of the columns before them are images (None: there are none). Where not
    `slots_see`, they are as text: they hold what has been read.
    """
    is_image_BT = backbone_of(model).stands_for_features(model, ids_BT)
    is_image_BS = is_image_BT if images_BP is None else torch.cat([images_BP, is_image_BT], 1)
    asks_BT = is_image_BT | _slots(model, ids_BT) if slots_see else is_image_BT
    hidden_BTS = ~asks_BT[..., None] & is_image_BS[:, None]
    if mask is None:
        mask = torch.ones_like(is_image_BS)
    if mask.ndim == 2:
        mask = causal(mask, ids_BT.shape[1], dtype)
    return mask.masked_fill(hidden_BTS[:, None], torch.finfo(dtype).min)


def causal(mask_BS: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """An additive mask [B, 1, T, S] of the last `columns`: each sees itself, and what `mask_BS` has up to it."""
    before = mask_BS.shape[1] - columns
    diagonal_TT = torch.eye(columns, dtype=torch.bool, device=mask_BS.device)
    seen_BTS = (mask_BS.bool()[:, None] | pad(diagonal_TT, (before, 0))).tril(before)
    return additive(seen_BTS[:, None], dtype)


def as_wide_as(cache: Any, mask: Tensor | None, columns: int) -> Tensor | None:
    """`mask` of the last `columns`; an additive one, [B, 1, T, S], also hides what a static cache has not filled."""
    if mask is None or mask.ndim == 2 or cache is None:
        return mask
    width = cache.get_mask_sizes(columns, 0)[0]
    return pad(mask, (0, width - mask.shape[-1]), value=torch.finfo(mask.dtype).min)


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a column is seen, the lowest number where it is not."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def _slots(model: Any, ids: Tensor) -> Tensor:
    slots = getattr(model.config, "slot_token_ids", None) or []
    return torch.isin(ids, torch.tensor(slots, dtype=ids.dtype, device=ids.device))
