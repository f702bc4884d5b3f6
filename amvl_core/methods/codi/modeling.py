"""`CODIForConditionalGeneration`: Qwen2.5-VL whose reply begins with a block of projected states.

Shape suffixes: N states, D hidden size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from amvl_core.methods.codi.config import CodiMethod
from amvl_core.methods.feedback.modeling import FeedbackConfig, FeedbackForConditionalGeneration, register


class CODIConfig(FeedbackConfig):
    """One block, which is forced at the reply's start."""

    model_type = "codi"
    num_slots: int = 6
    latent_mode: str = "first_step"
    max_blocks: int = 1


class CODIForConditionalGeneration(FeedbackForConditionalGeneration):
    """A slot is given the state before it through a perceptron of two layers and a norm."""

    config_class = CODIConfig
    config: CODIConfig
    new_parts = CodiMethod.own_parts

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        size = config.text_config.hidden_size
        self.projection = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.Linear(size, size), nn.LayerNorm(size))
        self.post_init()

    def fed(self, states_ND: Tensor) -> Tensor:
        """The projected states."""
        found: Tensor = self.projection(states_ND)
        return found


register(CODIForConditionalGeneration)
