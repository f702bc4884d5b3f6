"""From a checkpoint folder to answers: greedy generation and log-likelihoods, prior latents only."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from amvl_core.backbones.processor import load_processor
from amvl_core.backbones.spread import spread
from amvl_core.contracts.answer_length import PUBLISHED
from amvl_core.contracts.errors import ClusterError, DataError
from amvl_core.contracts.sample import Video, placed
from amvl_core.data.batch import Visual, visual_inputs
from amvl_core.data.encode import PixelBudget, chat, fitted, in_places
from amvl_core.data.pixels import PictureError, decode
from amvl_core.methods.loading import block_ids, load_model, method_of_model
from amvl_core.rows.decode import end_tokens, greedy, log_likelihoods, prefill, sampled


class Answer(NamedTuple):
    """What a model says to one question."""

    text: str
    """As the model wrote it, without special tokens."""
    log_likelihoods: list[float]
    """log p(candidate, end of turn | question, latents) in nats, one per candidate."""
    tokens: int
    """Tokens that it wrote, its end of turn among them, and none of a latent block's."""
    blocks: int
    """Latent blocks that it wrote."""
    latent_steps: int
    """Their slots."""
    cut: bool
    """Whether it had written as many tokens as it may, and no end of turn."""


@dataclass(frozen=True)
class Prompts:
    """Encoded questions, on the CPU; `keys` seed the noise of drawn latents and tokens."""

    inputs: Any
    keys: list[int]

    def draw(self, number: int) -> Prompts:
        """The same questions with keys of their own for one of several draws."""
        return Prompts(self.inputs, [_seed(hashlib.sha256(f"{key}/{number}".encode())) for key in self.keys])


class _Shown(NamedTuple):
    prompt: str
    visuals: list[Visual]


class Answerer:
    """A model and its processor. A prompt ends with what the model's method adds, so a latent model reasons first."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor
        self.method = method_of_model(model.config.model_type)

    @classmethod
    def from_pretrained(
        cls, folder: str, latent_mode: str | None = None, latent_steps: int | None = None, gpus: int = 1
    ) -> Answerer:
        """From a folder (or Hub id) of a method's model or a stock one; on `gpus` GPUs, or the CPU where there is none.

        Raises ClusterError where there are fewer.

        `latent_mode` and `latent_steps` are those of the evaluation. A model that writes no blocks has no use for them.
        """
        there = torch.cuda.device_count() if gpus else 0
        if 0 < there < gpus:
            raise ClusterError(f"the model is to lie on {gpus} GPUs, and there are {there}; set their number lower")
        devices = [torch.device("cuda", number) for number in range(gpus)] if there else [torch.device("cpu")]
        model = load_model(folder, dtype="auto")
        answerer = cls(spread(model, devices), load_processor(folder))
        if answerer.method:
            answerer.method.implementation().set_blocks(model, latent_mode, latent_steps)
        return answerer

    def answer(
        self,
        images: Sequence[Sequence[bytes]],
        questions: Sequence[str],
        max_new_tokens: int = PUBLISHED,
        tau: float = 0.0,
        seed: int = 0,
        videos: Sequence[Sequence[Video]] | None = None,
    ) -> list[str]:
        """One answer per question, as the model wrote it.

        `images` holds each question's encoded images; a question without `<image>` gets them in front. Some are the
        frames of its `videos`. The noise of drawn latents (`tau` > 0) is keyed by seed, question and images: it does
        not depend on the batch.
        """
        none: list[list[str]] = [[] for _ in questions]
        answers = self.predict(self.encode(images, questions, None, seed, videos), max_new_tokens, none, tau)
        return [answer.text for answer in answers]

    def score(
        self,
        images: Sequence[Sequence[bytes]],
        questions: Sequence[str],
        candidates: Sequence[Sequence[str]],
        tau: float = 0.0,
        seed: int = 0,
    ) -> list[list[float]]:
        """log p(candidate, end of turn | question, latents) in nats of every candidate answer to every question."""
        answers = self.predict(self.encode(images, questions, seed=seed), 0, candidates, tau)
        return [answer.log_likelihoods for answer in answers]

    def encode(
        self,
        images: Sequence[Sequence[bytes]],
        questions: Sequence[str],
        pixels: tuple[int, int] | None = None,
        seed: int = 0,
        videos: Sequence[Sequence[Video]] | None = None,
    ) -> Prompts:
        """Decodes images and tokenizes, without the model: another thread may do it ahead.

        `pixels` is the least and the most that an image is scaled to; None: the processor's own, from training.
        """
        budget = PixelBudget.of(self.processor.image_processor)
        if pixels:
            budget = replace(budget, min_pixels=pixels[0], max_pixels=pixels[1])
        shown = zip(questions, images, videos or [()] * len(questions), strict=True)
        asked = [self._shown(question, group, own, budget) for question, group, own in shown]
        tokenizer = self.processor.tokenizer
        inputs = tokenizer([one.prompt for one in asked], padding=True, padding_side="left", return_tensors="pt")
        is_image_BT, is_video_BT = (
            inputs["input_ids"] == token for token in (self.processor.image_token_id, self.processor.video_token_id)
        )
        inputs["mm_token_type_ids"] = is_image_BT.int() + 2 * is_video_BT.int()
        inputs.update(visual_inputs([visual for one in asked for visual in one.visuals]))
        keys = [_key(seed, question, group) for question, group in zip(questions, images, strict=True)]
        return Prompts(inputs, keys)

    @torch.inference_mode()
    def predict(
        self,
        prompts: Prompts,
        max_new_tokens: int,
        candidates: Sequence[Sequence[str]],
        tau: float = 0.0,
        temperature: float = 0.0,
    ) -> list[Answer]:
        """An answer of at most `max_new_tokens` tokens to every question, and the log-likelihoods of its candidates.

        The prompts run once for both. At `temperature` 0 tokens are the most likely ones, else they are drawn.
        """
        drawn = self.method.implementation().drawn(self.model, prompts.keys, tau) if self.method and tau > 0 else {}
        start = prefill(self.model, prompts.inputs.to(self.model.device), **drawn)
        tokenizer = self.processor.tokenizer
        # As in training: the answer's own tokens and the end of turn.
        continuations = [[tokenizer(text + tokenizer.eos_token)["input_ids"] for text in given] for given in candidates]
        scores = log_likelihoods(self.model, start, continuations)
        if temperature > 0:
            written = sampled(self.model, start, max_new_tokens, temperature, prompts.keys)
        else:
            written = greedy(self.model, start, max_new_tokens)
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        ends = end_tokens(self.model)
        answers = []
        for text, found, tokens in zip(texts, scores, written, strict=True):
            counts = self._counts(tokens)
            answers.append(Answer(text, found, *counts, cut=counts[0] >= max_new_tokens > 0 and tokens[-1] not in ends))
        return answers

    def _counts(self, tokens: Sequence[int]) -> tuple[int, int, int]:
        """Of a reply: tokens outside blocks, blocks, slots."""
        if getattr(self.model.config, "slot_token_ids", None) is None:
            return len(tokens), 0, 0
        begin, *slots, end = (tokens.count(token) for token in block_ids(self.model))
        return len(tokens) - begin - sum(slots) - end, begin, sum(slots)

    def _shown(self, question: str, images: Sequence[bytes], videos: Sequence[Video], budget: PixelBudget) -> _Shown:
        """The chat prompt that the model sees, and what it shows."""
        question = placed(question, len(images), videos)
        text: str = self.processor.apply_chat_template(chat(question), add_generation_prompt=True, tokenize=False)
        shown = in_places("question", question, images, videos)
        if not shown:
            return _Shown(self.processor.repeated(text, iter(())), [])
        pictures = [fitted(_open(data), budget) for data in images]
        pixels, grids = self.processor.pixels(pictures, [video.frames if video else 0 for video in shown])
        parts = np.split(pixels, grids.prod(-1).cumsum()[:-1])
        step, merge = (getattr(self.processor.image_processor, name) for name in ("temporal_patch_size", "merge_size"))
        seconds = [step / video.fps if video else 0.0 for video in shown]
        prompt = self.processor.repeated(text, iter(int(grid.prod()) // merge**2 for grid in grids))
        return _Shown(prompt, [Visual(*one) for one in zip(parts, grids, seconds, strict=True)])


def _key(seed: int, question: str, images: Sequence[bytes]) -> int:
    digest = hashlib.sha256(f"{seed}/{question}".encode())
    for data in images:
        digest.update(hashlib.sha256(data).digest())
    return _seed(digest)


def _seed(digest: Any) -> int:
    return int.from_bytes(digest.digest()[:7], "big")


def _open(data: bytes) -> Image.Image:
    try:
        return decode(data)
    except PictureError as error:
        raise DataError(f"the image cannot be read: {error}") from error
