"""Checkpoints of methods that feed states back: from a stock base model, or of their own."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, Qwen2_5_VLConfig

from amvl_core.backbones.processor import AMVLProcessor
from amvl_core.contracts.errors import CheckpointError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.data.template import end_prompts_plainly
from amvl_core.methods.block import BLOCK_FIELDS
from amvl_core.methods.feedback.modeling import FeedbackForConditionalGeneration
from amvl_core.methods.loading import block_ids, check_weights, grow, quiet
from amvl_core.methods.reply_blocks import LATENT_END, LATENT_START, SLOT


def load_feedback(
    kind: type[FeedbackForConditionalGeneration],
    folder: str,
    processor: AMVLProcessor,
    latent: LatentConfig,
    **kwargs: Any,
) -> Any:
    """A model of class `kind` from a folder of its own, or, with new tokens and K slots, from a base model's.

    `processor` is the one that was loaded from the same folder; it gets the tokens. A CheckpointError names another
    model type, a tokenizer without the block's tokens, and weights that do not fit.
    """
    config = AutoConfig.from_pretrained(folder)
    stock, own = Qwen2_5_VLConfig.model_type, kind.config_class.model_type
    if config.model_type == stock:
        return _from_base(kind, folder, config, processor, latent, **kwargs)
    if config.model_type != own:
        name = kind.__name__.removesuffix("ForConditionalGeneration")
        raise CheckpointError(f"{folder} holds a {config.model_type!r} model; {name} starts from {stock} or {own}")
    for name, number in token_ids(processor).items():
        if number != getattr(config, name):
            raise CheckpointError(
                f"the tokenizer in {folder} has {number} as {name}, the model {getattr(config, name)}; they do not "
                "belong together"
            )
    model, report = kind.from_pretrained(folder, output_loading_info=True, **kwargs)
    check_weights(folder, report)
    return model


def _from_base(
    kind: type[FeedbackForConditionalGeneration],
    folder: str,
    base: Any,
    processor: AMVLProcessor,
    latent: LatentConfig,
    **kwargs: Any,
) -> Any:
    """Adds the three tokens; their rows start as `latent.token_init` says."""
    tokenizer = processor.tokenizer
    old_tokens = len(tokenizer)
    tokens = [LATENT_START, SLOT, LATENT_END]
    tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)
    end_prompts_plainly(processor)  # a base that another method has trained may have its block
    skipped = ("model_type", "architectures", *BLOCK_FIELDS)
    fields = {key: value for key, value in base.to_dict().items() if key not in skipped}
    config = kind.config_class(
        **fields, **token_ids(processor), num_slots=latent.num_slots, line_end_token_ids=line_ends(tokenizer)
    )
    with quiet():
        model, report = kind.from_pretrained(folder, config=config, output_loading_info=True, **kwargs)
    check_weights(folder, report, kind.new_parts)
    grow(model, old_tokens, processor, latent.token_init)
    model.generation_config.suppress_tokens = block_ids(model)[1:]  # the entry marker is the model's to write
    return model


def token_ids(processor: AMVLProcessor) -> dict[str, int | None]:
    """The block's token ids, as fields of a model's configuration."""
    convert = processor.tokenizer.convert_tokens_to_ids
    return {
        "block_start_token_id": convert(LATENT_START),
        "block_end_token_id": convert(LATENT_END),
        "slot_token_id": convert(SLOT),
    }


def line_ends(tokenizer: Any) -> list[int]:
    """Ids of the tokens whose text ends a line, in order. They are byte-level: a line feed is written as one letter."""
    return sorted(number for token, number in tokenizer.get_vocab().items() if token.endswith("\u010a"))
