"""`MonetForConditionalGeneration`: Qwen2.5-VL that reasons in its own states where an auxiliary image would stand."""

from __future__ import annotations

from amvl_core.methods.feedback.modeling import FeedbackConfig, FeedbackForConditionalGeneration, register


class MonetConfig(FeedbackConfig):
    """Blocks stand wherever the model writes them; a given answer is scored without one."""

    model_type = "monet"
    num_slots: int = 8
    block_first: bool = False


class MonetForConditionalGeneration(FeedbackForConditionalGeneration):
    """Writes its blocks itself."""

    config_class = MonetConfig
    config: MonetConfig


register(MonetForConditionalGeneration)
