"""A processor of images and text for Qwen2.5-VL models that needs no video support and no torchvision.

It reads the stock processor folders (`Qwen/Qwen2.5-VL-7B-Instruct`) and is what `AutoProcessor` gives for AMVL models.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin


class AMVLProcessor(ProcessorMixin):
    """Chat template, tokenizer and image processor in one; `<|image_pad|>` is repeated per merged patch."""

    return_mm_token_type_ids = True

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self.image_token = "<|image_pad|>"
        self.image_text = f"<|vision_start|>{self.image_token}<|vision_end|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """The placeholder of image number `image_idx`, once per merged patch."""
        merge = self.image_processor.merge_size**2
        return self.image_token * int(image_inputs["image_grid_thw"][image_idx].prod() // merge)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that the model takes."""
        return [*super().model_input_names, "mm_token_type_ids"]


def load_processor(folder: str) -> AMVLProcessor:
    """The processor in `folder` (or of a Hub id), whatever class its configuration names."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    image_processor: BaseImageProcessor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    processor = AMVLProcessor(image_processor=image_processor, tokenizer=tokenizer)
    template = tokenizer.chat_template or AMVLProcessor.get_processor_dict(folder)[0].get("chat_template")
    processor.chat_template = template
    return processor
