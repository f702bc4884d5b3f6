"""The last layer of a pass on the columns that are read.

Of all others nothing but keys and values is needed there, as in a packed row (`amvl_core/rows/packed.py`). The stock
norm and projections give these. Then the stock layer runs on the rest with the same cache, as if the prompt came in two
parts. So hooks of modules, kernels and kinds of caches go on working.

Shape suffixes: B samples, T columns of a pass, N columns of all samples that are not read, G key-value heads, C head
size, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from amvl_core.backbones.backbone import Rope, TextStack, backbone_of

_columns: ContextVar[int] = ContextVar("columns that are read", default=0)


def columns_read(model: Any, logits_to_keep: int | Tensor, options: Mapping[str, Any]) -> int:
    """How many last columns of a forward are read, by its arguments; 0: all.

    Hidden states and attention weights, where `options` or the model's configuration ask for them, are of all columns.
    """
    config = model.config.get_text_config()
    names = ("output_hidden_states", "output_attentions")
    if any(options.get(name, getattr(config, name, False)) for name in names):
        return 0
    return max(0, logits_to_keep) if isinstance(logits_to_keep, int) else 0


@contextmanager
def reading(model: Any, columns: int) -> Iterator[None]:
    """While it is open, a pass that has a cache gives the states of its last `columns` columns alone (0: of all).

    Inside another one it takes that one's place. Other threads are not concerned.
    """
    text = backbone_of(model).text(model)
    outer = _columns.set(columns)
    handle = text.layers[-1].register_forward_pre_hook(partial(_cut, text), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        _columns.reset(outer)


def _cut(text: TextStack, layer: nn.Module, given: tuple[Tensor], options: dict[str, Any]) -> Any:
    """The last layer's arguments for the columns that are read; the cache then has the others.

    None, and the layer runs whole, where it would not find them there: it has no cache or drops it to be run again in
    backward. Likewise where its mask cannot be cut, or its weights are elsewhere and are brought when it is called.
    """
    (hidden_BTD,), cache, mask = given, options["past_key_values"], options["attention_mask"]
    samples, total, _ = hidden_BTD.shape
    device, columns = hidden_BTD.device, _columns.get()
    if not 0 < columns < total or cache is None or (layer.training and getattr(layer, "gradient_checkpointing", False)):
        return None
    if not isinstance(mask, Tensor | None) or next(layer.parameters()).device != device:
        return None
    cos_BTC, sin_BTC = (part.expand(samples, -1, -1).to(device) for part in options["position_embeddings"])
    rope = Rope(*(part[:, :-columns].flatten(0, 1) for part in (cos_BTC, sin_BTC)))
    normed_ND = text.normed(layer, hidden_BTD[:, :-columns].flatten(0, 1))
    found = text.keys_values(layer, normed_ND, rope)
    keys_BGTC, values_BGTC = (part.unflatten(0, (samples, -1)).transpose(1, 2) for part in found)
    held = cache.update(keys_BGTC, values_BGTC, len(text.layers) - 1)[0].shape[-2]
    if mask is not None and mask.ndim == 4:
        mask = mask[..., -columns:, :]
    elif mask is None and text.attention(layer).config._attn_implementation == "sdpa":
        # Without a mask the stock model has nothing before the pass, and masks from the first key on.
        keys = max(held, total)
        if columns > 1 or keys > total:
            mask = torch.ones(columns, keys, dtype=torch.bool, device=device).tril(total - columns)[None, None]
    positions = options["position_ids"]
    cut = {
        "attention_mask": mask,
        "position_embeddings": (cos_BTC[:, -columns:], sin_BTC[:, -columns:]),
        "position_ids": None if positions is None else positions[..., -columns:],
    }
    return (hidden_BTD[:, -columns:],), options | cut
