"""Where the latent block stands: a conversation becomes a list of segments (Eq. 5)."""

from __future__ import annotations

from amvl_core.config import DataConfig
from amvl_core.sample import Conversation, Segment

STEP_END = "\n"
"""Ends every step, so that steps and answer are lines: where steps are a target, the answer is the last line."""


def lay_out(conversation: Conversation, config: DataConfig, num_slots: int) -> list[Segment]:
    """`prompt, latent(k), [step ...], answer` (layout `after_prompt`); no text is changed.

    Steps are left out where `data.target` is `answer`.
    """
    steps = conversation.steps if config.target == "steps_and_answer" else ()
    return [
        Segment("prompt", conversation.question),
        Segment("latent", num_slots=num_slots),
        *(Segment("step", step + STEP_END) for step in steps),
        Segment("answer", conversation.answer),
    ]
