"""Checkpoints of stock models, and what every method that adds tokens does to one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig
from transformers.utils import logging

from amvl_core.backbones.backbone import backbone_of, family
from amvl_core.backbones.patches import project_patches
from amvl_core.backbones.processor import AMVLProcessor
from amvl_core.contracts.errors import CheckpointError
from amvl_core.contracts.method import MethodConfig, configurations
from amvl_core.data.template import end_prompts_plainly
from amvl_core.methods.block import BLOCK_FIELDS, add_latent_tokens, token_ids
from amvl_core.methods.exact import exact_mean


def method_of_model(model_type: str) -> type[MethodConfig] | None:
    """The method whose checkpoints are of this Hugging Face model type; None for a stock model's."""
    return next((method for method in configurations().values() if method.model_type == model_type), None)


def load_model(folder: str, **kwargs: Any) -> Any:
    """The model in `folder` (or of a Hub id), a method's or a stock one."""
    fields, _ = PreTrainedConfig.get_config_dict(folder)
    if method := method_of_model(fields["model_type"]):
        method.implementation()  # registers its classes
    model = AutoModelForImageTextToText.from_pretrained(folder, **kwargs)
    project_patches(backbone_of(model).vision(model))
    return model


def load_stock(
    folder: str, processor: AMVLProcessor, slots: Sequence[str] | None, like: str | None = None, **kwargs: Any
) -> Any:
    """A stock model. With `slots`, it and `processor` get the tokens of a block of these, or of no slot.

    Without them, neither has the block that another method gave them.

    `like` as in `grow`.

    A CheckpointError names weights that do not fit.
    """
    config = AutoConfig.from_pretrained(folder)
    model, report = family(config.model_type).model_class.from_pretrained(folder, output_loading_info=True, **kwargs)
    check_weights(folder, report)
    if slots is None:
        end_prompts_plainly(processor)
        for name in BLOCK_FIELDS:
            if hasattr(model.config, name):
                delattr(model.config, name)
    else:
        old_tokens = len(processor.tokenizer)
        add_latent_tokens(processor, slots)
        model.config.update(token_ids(processor, slots))
        grow(model, old_tokens, processor, like)
        model.generation_config.suppress_tokens = block_ids(model)
    return model


def add_tokens(model: Any, processor: AMVLProcessor, tokens: Sequence[str], like: str | None) -> None:
    """Adds those of `tokens` that the processor does not have, with rows for them; `like` as in `grow`."""
    old_tokens = len(processor.tokenizer)
    processor.tokenizer.add_special_tokens({"extra_special_tokens": list(tokens)}, replace_extra_special_tokens=False)
    grow(model, old_tokens, processor, like)


def block_ids(model: Any) -> list[int]:
    """Token ids of the block: start marker, slots (each id once), end marker."""
    config = model.config
    return [config.block_start_token_id, *dict.fromkeys(config.slot_token_ids), config.block_end_token_id]


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the library's warnings to itself."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def check_weights(folder: str, report: dict[str, Any], new_parts: tuple[str, ...] = ()) -> None:
    """A CheckpointError names weights in `folder` that do not fit; those of `new_parts` may be missing."""
    missing = sorted(key for key in report["missing_keys"] if not new_parts or not key.startswith(new_parts))
    wrong = {"missing": missing, "unexpected": report["unexpected_keys"], "misshapen": report["mismatched_keys"]}
    found = {name: sorted(keys)[:5] for name, keys in wrong.items() if keys}
    if found:
        raise CheckpointError(f"the weights in {folder} do not fit the model: {found}")


def grow(model: Any, old: int, processor: AMVLProcessor, like: str | None) -> None:
    """Rows for the tokens that the processor has beyond the first `old`: the same bits in every process.

    Each is the row of the token `like`, or, with None, the mean of the first `old` rows.
    """
    new = len(processor.tokenizer)
    if new == old:
        return
    if new > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(-(-new // 64) * 64, mean_resizing=False)
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            weight = module.weight
            row = exact_mean(weight[:old]) if like is None else weight[processor.token_id(like)]
            weight[old:new] = row.to(weight.dtype)
