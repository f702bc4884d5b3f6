"""What a method adds to a processor's chat template, and the template without it."""

from __future__ import annotations

from typing import Any

MARK = "{# what the method adds to a prompt #}"


def end_prompts_with(processor: Any, text: str) -> None:
    """Makes every generation prompt of `processor` end with `text`, and with nothing that was added before."""
    addition = MARK + "{% if add_generation_prompt %}" + text + "{% endif %}"
    processor.chat_template = processor.tokenizer.chat_template = base_template(processor) + addition


def end_prompts_plainly(processor: Any) -> None:
    """Makes them end with nothing that was added."""
    if MARK in (processor.chat_template or ""):
        processor.chat_template = processor.tokenizer.chat_template = base_template(processor)


def base_template(processor: Any) -> str:
    """The processor's chat template without what a method has added. Raises ValueError where it has none."""
    template = processor.chat_template or processor.tokenizer.chat_template
    if not template:
        raise ValueError("the processor has no chat template; a vision-language chat model is needed")
    return str(template).partition(MARK)[0]
