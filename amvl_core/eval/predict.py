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
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import Video, placed
from amvl_core.data.encode import PixelBudget, chat, fitted, in_places
from amvl_core.data.pixels import PictureError, decode
from amvl_core.methods.loading import load_model, method_of_model
from amvl_core.rows.decode import greedy, log_likelihoods, prefill


class Answer(NamedTuple):
    """What a model says to one question."""

    text: str
    """As the model wrote it, without special tokens."""
    log_likelihoods: list[float]
    """log p(candidate, end of turn | question, latents) in nats, one per candidate."""


@dataclass(frozen=True)
class Prompts:
    """Encoded questions, on the CPU; `keys` seed the noise of drawn latents."""

    inputs: Any
    keys: list[int]


class _Clip(NamedTuple):
    """A video as the model takes it."""

    pixels: np.ndarray
    grid: np.ndarray
    seconds: float


class _Shown(NamedTuple):
    prompt: str
    stills: list[Image.Image]
    clips: list[_Clip]


class Answerer:
    """A model and its processor. A prompt ends with what the model's method adds, so a latent model reasons first."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model.eval(), processor
        self.method = method_of_model(model.config.model_type)

    @classmethod
    def from_pretrained(cls, folder: str) -> Answerer:
        """From a folder (or Hub id) of a method's model or a stock one; on the GPU where there is one."""
        model = load_model(folder, dtype="auto")
        return cls(model.to("cuda" if torch.cuda.is_available() else "cpu"), load_processor(folder))

    def answer(
        self,
        images: Sequence[Sequence[bytes]],
        questions: Sequence[str],
        max_new_tokens: int = 64,
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
        pictures = [one.stills for one in asked]
        inputs = self.processor(
            text=[one.prompt for one in asked],
            images=pictures if any(pictures) else None,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            images_kwargs={"do_resize": False},
        )
        if clips := [clip for one in asked for clip in one.clips]:
            inputs["pixel_values_videos"] = torch.from_numpy(np.concatenate([clip.pixels for clip in clips]))
            inputs["video_grid_thw"] = torch.from_numpy(np.concatenate([clip.grid for clip in clips]))
            inputs["second_per_grid_ts"] = torch.tensor([clip.seconds for clip in clips], dtype=torch.float64)
            inputs["mm_token_type_ids"][inputs["input_ids"] == self.processor.video_token_id] = 2
        keys = [_key(seed, question, group) for question, group in zip(questions, images, strict=True)]
        return Prompts(inputs, keys)

    @torch.inference_mode()
    def predict(
        self, prompts: Prompts, max_new_tokens: int, candidates: Sequence[Sequence[str]], tau: float = 0.0
    ) -> list[Answer]:
        """An answer of at most `max_new_tokens` tokens to every question, and the log-likelihoods of its candidates.

        The prompts run once for both.
        """
        drawn = self.method.implementation().drawn(self.model, prompts.keys, tau) if self.method and tau > 0 else {}
        start = prefill(self.model, prompts.inputs.to(self.model.device), **drawn)
        tokenizer = self.processor.tokenizer
        # As in training: the answer's own tokens and the end of turn.
        continuations = [[tokenizer(text + tokenizer.eos_token)["input_ids"] for text in given] for given in candidates]
        scores = log_likelihoods(self.model, start, continuations)
        texts = tokenizer.batch_decode(greedy(self.model, start, max_new_tokens), skip_special_tokens=True)
        return [Answer(text, found) for text, found in zip(texts, scores, strict=True)]

    def _shown(self, question: str, images: Sequence[bytes], videos: Sequence[Video], budget: PixelBudget) -> _Shown:
        """The chat prompt that the model sees, with the places of videos as many as their features."""
        question = placed(question, len(images), videos)
        text: str = self.processor.apply_chat_template(chat(question), add_generation_prompt=True, tokenize=False)
        pictures = iter([fitted(_open(data), budget) for data in images])
        stills: list[Image.Image] = []
        clips: list[_Clip] = []
        step = self.processor.image_processor.temporal_patch_size
        for video in in_places("question", question, images, videos):
            if video is None:
                stills.append(next(pictures))
            else:
                pixels, grid = self.processor.pixels([next(pictures) for _ in range(video.frames)], [video.frames])
                clips.append(_Clip(pixels, grid, step / video.fps))
        merge = self.processor.image_processor.merge_size**2
        head, *tails = text.split(self.processor.video_token)
        places = [self.processor.video_token * (int(clip.grid.prod()) // merge) for clip in clips]
        prompt = head + "".join(place + tail for place, tail in zip(places, tails, strict=True))
        return _Shown(prompt, stills, clips)


def _key(seed: int, question: str, images: Sequence[bytes]) -> int:
    digest = hashlib.sha256(f"{seed}/{question}".encode())
    for data in images:
        digest.update(hashlib.sha256(data).digest())
    return int.from_bytes(digest.digest()[:7], "big")


def _open(data: bytes) -> Image.Image:
    try:
        return decode(data)
    except PictureError as error:
        raise DataError(f"the image cannot be read: {error}") from error
