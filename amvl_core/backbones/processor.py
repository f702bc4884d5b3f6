"""A processor of images, videos' frames and text for Qwen2.5-VL models that needs no torchvision.

It reads the stock processor folders (`Qwen/Qwen2.5-VL-7B-Instruct`) and is what `AutoProcessor` gives for AMVL models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoTokenizer
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from amvl_core.contracts.errors import ConfigError, DataError


class AMVLProcessor(ProcessorMixin):
    """Chat template, tokenizer and image processor in one; `<|image_pad|>` is repeated per merged patch."""

    return_mm_token_type_ids = True

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self.image_token = "<|image_pad|>"
        self.image_text = f"<|vision_start|>{self.image_token}<|vision_end|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token = "<|video_pad|>"
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        self.shown_ids = [
            self.video_token_id,
            *map(tokenizer.convert_tokens_to_ids, ("<|vision_start|>", self.image_token, "<|vision_end|>")),
        ]
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """The placeholder of image number `image_idx`, once per merged patch."""
        merge = self.image_processor.merge_size**2
        return self.image_token * int(image_inputs["image_grid_thw"][image_idx].prod() // merge)

    def pixels(self, pictures: Sequence[Image.Image], frames: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Patches [P, ...] and grids [I, 3] of pictures that have their final sizes.

        `frames` says of each image or video in order how many of the pictures it is; 0: a still image. A video's
        patches each cover `temporal_patch_size` frames; its last frame fills up the last patch. Raises ValueError where
        the frames of a video differ in size.
        """
        features = self.image_processor(images=list(pictures), do_resize=False, return_tensors="np")
        grids: list[np.ndarray] = []
        parts: list[np.ndarray] = []
        first = start = 0
        for count in frames:
            own = features["image_grid_thw"][first : first + max(count, 1)]
            if (own != own[0]).any():
                raise ValueError(
                    f"the frames of a video differ in size: patches {sorted(map(tuple, own[:, 1:].tolist()))}"
                )
            patches = features["pixel_values"][start : start + int(own.prod(-1).sum())]
            first, start = first + len(own), start + len(patches)
            parts.append(_over_time(patches, count, self.image_processor.temporal_patch_size) if count else patches)
            grids.append(np.array([len(parts[-1]) // int(own[0].prod()), *own[0][1:]]))
        return np.concatenate(parts), np.stack(grids)

    def token_id(self, text: str) -> int:
        """The number of the token that `text` is. Raises ConfigError where it is none, or several."""
        numbers = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(numbers) != 1:
            raise ConfigError(
                f"latent.token_init is {text!r}, which is {len(numbers)} tokens of the base model; give the text of one"
            )
        return int(numbers[0])

    def repeated(self, text: str, features: Iterator[int]) -> str:
        """The text with the pad of each image and video as often as it has features.

        Raises DataError where there are more pads than images and videos.
        """

        def pads(found: re.Match[str]) -> str:
            if (count := next(features, None)) is None:
                raise DataError(f"the text holds {found[0]} where there is no image and no video")
            return found[0] * count

        return re.sub("|".join(map(re.escape, (self.image_token, self.video_token))), pads, text)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the tensors that the model takes."""
        return [*super().model_input_names, "mm_token_type_ids"]


def _over_time(patches: np.ndarray, frames: int, size: int) -> np.ndarray:
    """Patches of `frames` still images, each shown `size` times, as those of a video: channel, time, pixel in each."""
    stills_FPCX = patches.reshape(frames, len(patches) // frames, 3, size, -1)[:, :, :, 0]
    filled_FPCX = np.concatenate([stills_FPCX, np.repeat(stills_FPCX[-1:], -frames % size, 0)])
    clips_GTPCX = filled_FPCX.reshape(-1, size, *stills_FPCX.shape[1:])
    return clips_GTPCX.transpose(0, 2, 3, 1, 4).reshape(-1, patches.shape[-1])


def load_processor(folder: str) -> AMVLProcessor:
    """The processor in `folder` (or of a Hub id), whatever class its configuration names."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    image_processor: BaseImageProcessor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    processor = AMVLProcessor(image_processor=image_processor, tokenizer=tokenizer)
    template = tokenizer.chat_template or AMVLProcessor.get_processor_dict(folder)[0].get("chat_template")
    processor.chat_template = template
    return processor
