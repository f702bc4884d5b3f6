"""`VaLRForConditionalGeneration`: Qwen2.5-VL with blocks of fed-back states in its replies."""

from __future__ import annotations

from amvl_core.methods.feedback.modeling import FeedbackConfig, FeedbackForConditionalGeneration, register


class VaLRConfig(FeedbackConfig):
    """That of VaLR's checkpoints."""

    model_type = "valr"


class VaLRForConditionalGeneration(FeedbackForConditionalGeneration):
    """Writes its blocks itself."""

    config_class = VaLRConfig
    config: VaLRConfig


register(VaLRForConditionalGeneration)
