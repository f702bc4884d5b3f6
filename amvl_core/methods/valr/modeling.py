"""`VaLRForConditionalGeneration`: Qwen2.5-VL with blocks of fed-back states in its replies."""

from __future__ import annotations

from typing import Any

from amvl_core.backbones.processor import AMVLProcessor
from amvl_core.contracts.errors import CheckpointError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.methods.feedback.modeling import (
    FeedbackConfig,
    FeedbackForConditionalGeneration,
    load_feedback,
    register,
)


class VaLRConfig(FeedbackConfig):
    """That of VaLR's checkpoints."""

    model_type = "valr"


class VaLRForConditionalGeneration(FeedbackForConditionalGeneration):
    """Writes its blocks itself."""

    config_class = VaLRConfig
    config: VaLRConfig


def load_valr(folder: str, processor: AMVLProcessor, latent: LatentConfig, **kwargs: Any) -> Any:
    """As `load_feedback`; a CheckpointError names another number of slots too."""
    model = load_feedback(VaLRForConditionalGeneration, folder, processor, latent.num_slots, **kwargs)
    if model.config.num_slots != latent.num_slots:
        raise CheckpointError(
            f"{folder} has {model.config.num_slots} latent slots, the run asks for {latent.num_slots}"
        )
    return model


register(VaLRForConditionalGeneration)
