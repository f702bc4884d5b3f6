"""`CoconutForConditionalGeneration`: Qwen2.5-VL whose reply begins with a block of fed-back states."""

from __future__ import annotations

from amvl_core.methods.feedback.modeling import FeedbackConfig, FeedbackForConditionalGeneration, register


class CoconutConfig(FeedbackConfig):
    """One block, which is forced at the reply's start. `num_slots` is that of the last stage."""

    model_type = "coconut"
    latent_mode: str = "first_step"
    max_blocks: int = 1


class CoconutForConditionalGeneration(FeedbackForConditionalGeneration):
    """Writes no marker itself."""

    config_class = CoconutConfig
    config: CoconutConfig


register(CoconutForConditionalGeneration)
