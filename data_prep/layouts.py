"""Where the latent blocks stand: a conversation becomes a list of segments (Eq. 5; others' layouts)."""

from __future__ import annotations

from dataclasses import replace

from amvl_core.contracts.config import AfterPrompt, BeforeSteps, DataConfig
from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, Conversation, Segment

STEP_END = "\n"
"""Ends every step, so that steps and answer are lines: where steps are a target, the answer is the last line."""


def lay_out(conversation: Conversation, config: DataConfig, num_slots: int) -> list[Segment]:
    """Prompt, latent blocks, steps and answer in the order of `data.layout`; no text is changed.

    - `after_prompt`: prompt, latent(k), [step ...], answer; steps are left out where `data.target` is `answer`;
    - `before_steps`: prompt, (latent(k), step) ..., answer;
    - `replace_steps`: prompt, latent(c x n) for the first n steps, the other steps, answer; of a sample with fewer
      than n steps all are replaced, by c slots each, and a sample without steps has no block.
    """
    layout = config.layout
    steps = conversation.steps if config.target == "steps_and_answer" else ()
    texts = [Segment("step", step + STEP_END) for step in steps]
    if isinstance(layout, AfterPrompt):
        middle = [Segment("latent", num_slots=num_slots), *texts]
    elif isinstance(layout, BeforeSteps):
        middle = [segment for text in texts for segment in (Segment("latent", num_slots=num_slots), text)]
    else:
        replaced = min(layout.steps, len(texts))
        block = [Segment("latent", num_slots=layout.slots_per_step * replaced)] if replaced else []
        middle = [*block, *texts[replaced:]]
    return [Segment("prompt", conversation.question), *middle, Segment("answer", conversation.answer)]


def without_replaced_images(conversation: Conversation, config: DataConfig) -> Conversation:
    """Steps that a latent block replaces show nothing: their images go, with the regions on them; their words stay."""
    if config.layout.kind != "replace_steps":
        return conversation
    steps = conversation.steps
    first = conversation.question.count(IMAGE_PLACEHOLDER)
    last = first + sum(step.count(IMAGE_PLACEHOLDER) for step in steps[: config.layout.steps])
    return replace(
        conversation,
        images=conversation.images[:first] + conversation.images[last:],
        steps=tuple(step.replace(IMAGE_PLACEHOLDER, "") for step in steps[: config.layout.steps])
        + steps[config.layout.steps :],
        regions=tuple(
            region if region.image < first else replace(region, image=region.image - last + first)
            for region in conversation.regions
            if not first <= region.image < last
        ),
    )
