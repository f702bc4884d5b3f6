"""What a run is going to read: rows, and the tokens of a mean sample and of the longest one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from amvl_core.contracts.config import DataConfig
from infra.plan.shapes import ModelShape

ROWS = 450_000
"""Training samples of the paper's four sources as this project plans with them; the paper gives no number."""
TEXT_TOKENS = 96
"""Words of a question with its chat template, and of steps with an answer: a paragraph."""


@dataclass(frozen=True)
class Workload:
    """A mean sample: x of `prompt` tokens, y of `answer` tokens, `labels` of which are predicted.

    `images` pictures make up `image_tokens` of both. No sample is longer than `longest`.
    """

    rows: int
    prompt: int
    answer: int
    labels: int
    images: int
    image_tokens: int
    longest: int

    def filling(self, budget: int) -> list[Workload]:
        """The samples of a micro-batch of `budget` tokens that are as long as can be: what memory has to hold."""
        whole, rest = divmod(budget, self.longest)
        return [self.of_length(self.longest)] * max(1, whole) + [self.of_length(rest)] * (whole > 0 and rest > 1)

    def of_length(self, tokens: int) -> Workload:
        """A sample of `tokens` tokens, in the proportions of the mean one."""
        scale = tokens / (self.prompt + self.answer)
        answer = max(1, round(self.answer * scale))
        return replace(
            self,
            prompt=tokens - answer,
            answer=answer,
            labels=max(1, round(self.labels * scale)),
            image_tokens=round(self.image_tokens * scale),
        )


def assumed(
    data: DataConfig, shape: ModelShape, rows: int | None = None, prompt: int | None = None, answer: int | None = None
) -> Workload:
    """What `data` lead to where nothing is prepared yet; `rows`, `prompt` and `answer` are taken as given.

    A prompt is a question and one image, of the geometric mean of the tokens that the pixel budget allows. A target
    with steps is their text and one image, a crop, of the fewest tokens; without steps it is text alone. Rows are
    counted where the sources say how many they draw, else they are `ROWS`.
    """
    known = [getattr(source, "train", getattr(source, "train_limit", None)) for source in data.sources]
    counted = ROWS if None in known else sum(count for count in known if count is not None)
    pixels = (shape.vision.patch_size * shape.vision.spatial_merge_size) ** 2
    text = min(TEXT_TOKENS, data.max_tokens // 4)
    image = min(round(math.sqrt(data.min_pixels * data.max_pixels) / pixels), data.max_tokens // 4)
    crop = min(round(data.min_pixels / pixels), image) if data.target == "steps_and_answer" else 0
    prompt = image + text if prompt is None else prompt
    answer = crop + text if answer is None else answer
    return Workload(
        rows=counted if rows is None else rows,
        prompt=prompt,
        answer=answer,
        labels=min(text, answer),
        images=1 + (crop > 0),
        image_tokens=min(image + crop, prompt + answer),
        longest=max(data.max_tokens, prompt + answer),
    )
