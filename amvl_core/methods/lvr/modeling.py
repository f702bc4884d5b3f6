"""`LVRForConditionalGeneration`: Qwen2.5-VL that writes a block of its own states where it looks at a region."""

from __future__ import annotations

from amvl_core.methods.feedback.modeling import FeedbackConfig, FeedbackForConditionalGeneration, register


class LVRConfig(FeedbackConfig):
    """One block, which the model enters itself; it has `num_slots` slots, and then its end is forced."""

    model_type = "lvr"
    num_slots: int = 8
    max_blocks: int = 1


class LVRForConditionalGeneration(FeedbackForConditionalGeneration):
    """Writes its block itself."""

    config_class = LVRConfig
    config: LVRConfig


register(LVRForConditionalGeneration)
