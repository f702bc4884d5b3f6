"""Segments and images -> token ids, labels and pixels. Imports no torch, so that preparation stays light."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from amvl_core.contracts.config import ModelConfig
from amvl_core.contracts.errors import ConfigError, DataError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.method import MethodConfig
from amvl_core.contracts.sample import (
    IMAGE_PLACEHOLDER,
    PLACEHOLDER,
    VIDEO_PLACEHOLDER,
    Crop,
    Fill,
    Segment,
    Shown,
    StoredSample,
    Video,
)
from amvl_core.data.pixels import PictureError, decode, square
from amvl_core.data.template import base_template

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IGNORED = -100
"""Label of a token that no loss is taken on."""

MAX_ASPECT = 200
"""Longer to shorter side of an image; Qwen2-VL's image processor raises beyond it."""


@dataclass(frozen=True)
class PixelBudget:
    """What the model takes: `min_pixels <= width x height <= max_pixels`, sides in multiples of `unit` pixels.

    Raises ConfigError where not one unit squared fits in.
    """

    min_pixels: int
    max_pixels: int
    unit: int

    def __post_init__(self) -> None:
        if self.max_pixels < self.unit**2:
            raise ConfigError(
                f"data.max_pixels or evaluation.max_pixels is {self.max_pixels}, which holds no image token: the "
                f"model's are {self.unit} x {self.unit} pixels; set it to at least {self.unit**2}"
            )

    @classmethod
    def of(cls, image_processor: Any) -> PixelBudget:
        """The budget that an image processor of Qwen2-VL holds."""
        size, unit = image_processor.size, image_processor.patch_size * image_processor.merge_size
        return cls(size["shortest_edge"], size["longest_edge"], unit)

    def units(self, width: int, height: int) -> tuple[int, int]:
        """Columns and rows of units that an image is resized to, never of more than `max_pixels`.

        The rule is that of Qwen2-VL's image processor (`smart_resize`). The processor's result may be larger in two
        cases: when growing to `min_pixels`, or a side of less than one unit, leads over `max_pixels`.
        """
        unit, most = self.unit, self.max_pixels // self.unit**2
        columns, rows = round(width / unit), round(height / unit)
        if columns * rows * unit**2 < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            columns, rows = math.ceil(width * grow / unit), math.ceil(height * grow / unit)
        if columns * rows <= most:
            return columns, rows
        shrink = math.sqrt(height * width / self.max_pixels)
        short, long = (max(1, math.floor(side / shrink / unit)) for side in sorted((width, height)))
        long = min(long, most // short)
        return (short, long) if width <= height else (long, short)

    def with_at_most(self, tokens: int) -> PixelBudget:
        """The same for an image of so many tokens at most, if need be below `min_pixels`."""
        most = tokens * self.unit**2
        return PixelBudget(min(self.min_pixels, most), min(self.max_pixels, most), self.unit)


@dataclass(frozen=True)
class Targets:
    """What the blocks of a sample are aligned with.

    `about` says of each block in order which target it is about, or None. `arrays` hold all targets in their first
    dimension, by the name of the encoder: its features [P, D], or the image that it is shown, uint8 [3, S, S].
    """

    about: tuple[int | None, ...]
    arrays: Mapping[str, np.ndarray]


NO_TARGETS = Targets((), {})


@dataclass(frozen=True)
class Encoded:
    """One sample: T tokens with labels (`IGNORED` but on steps, answer and end of turn), P patches of its images.

    `hidden_tokens` are those of steps that are not to be written, right behind the latent block. `observed` are the
    tokens of observations, by number.
    `filled_with` says of each slot of a `Fill`, in order, which of the T tokens' embeddings it takes. `words` are the
    token ids of what each latent block stands for; empty where it stands for none. `teacher` is the sample's second
    sequence, where its method has one.
    """

    sample_id: str
    input_ids: np.ndarray
    labels: np.ndarray
    pixel_values: np.ndarray | None
    image_grid_thw: np.ndarray | None
    seconds: np.ndarray | None = None
    """Of each image or video, the seconds that a step in time covers; 0: it is a still image."""
    targets: Targets = NO_TARGETS
    hidden_tokens: int = 0
    filled_with: tuple[int, ...] = ()
    observed: tuple[int, ...] = ()
    words: tuple[tuple[int, ...], ...] = ()
    teacher: Encoded | None = None


class Encoder:
    """Segments and images as a model of `processor` takes them."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.template = base_template(processor)
        self.end_of_turn = processor.tokenizer.eos_token

    def prompt(self, question: str) -> str:
        """The chat prompt up to the assistant's turn; `<image>` becomes the processor's image placeholder."""
        text: str = self.processor.apply_chat_template(
            chat(question), chat_template=self.template, add_generation_prompt=True, tokenize=False
        )
        return text

    def encode(
        self,
        sample_id: str,
        segments: Sequence[Segment],
        images: Sequence[bytes],
        videos: Sequence[Video] = (),
        crops: Mapping[int, Crop] | None = None,
    ) -> Encoded:
        """Token ids, labels and patches; a DataError names the sample where parts do not match.

        Of the images in `crops`, by their place in `images`, only that part is shown.
        """
        visuals = in_places(sample_id, "".join(segment.text for segment in segments), images, videos)
        pixels, grids, seconds, sizes = self._pixels(sample_id, images, visuals, crops or {})
        merge = self.processor.image_processor.merge_size**2
        counts = [] if grids is None else [int(grid.prod()) // merge for grid in grids]
        features, firsts, stills = iter(counts), [0, *accumulate(counts)], _stills(visuals)
        ids: list[int] = []
        labels: list[int] = []
        fills: list[int] = []
        observed: list[int] = []
        words: list[tuple[int, ...]] = []
        hidden = 0
        for position, segment in enumerate(segments):
            text = self._text(segment, last=position == len(segments) - 1)
            if (fill := segment.fill) is not None:
                if fill.image not in stills:
                    raise DataError(f"{sample_id}: a region lies in a frame of a video, whose tokens are of two frames")
                shown = stills[fill.image]
                cells = cells_within(fill, sizes[fill.image], grids_of_tokens(grids, self.processor)[shown])
                fills += [firsts[shown] + cell for cell in cells]
                text *= len(cells)
            tokens = self._tokens(self.processor.repeated(text, features))
            observed += range(len(ids), len(ids) + len(tokens)) if segment.observation else ()
            ids += tokens
            if segment.kind == "latent":
                words.append(tuple(self._tokens(segment.words or "")))
            hidden += len(tokens) if segment.kind == "hidden" else 0
            labels += tokens if segment.kind in ("step", "answer") else [IGNORED] * len(tokens)
        ids_T, labels_T = np.array(ids, dtype=np.int64), np.array(labels, dtype=np.int64)
        shown_T = (ids_T == self.processor.image_token_id) | (ids_T == self.processor.video_token_id)
        for shown in self.processor.shown_ids:  # np.isin takes a tenth of the time of a whole small sample
            labels_T[ids_T == shown] = IGNORED
        filled_with = tuple(shown_T.nonzero()[0][fills].tolist()) if fills else ()
        return Encoded(
            sample_id,
            ids_T,
            labels_T,
            pixels,
            grids,
            seconds,
            hidden_tokens=hidden,
            filled_with=filled_with,
            observed=tuple(observed),
            words=tuple(words),
        )

    def _tokens(self, text: str) -> list[int]:
        """As the tokenizer's own call, which takes several times as long for a text of a few words."""
        ids: list[int] = self.processor.tokenizer.backend_tokenizer.encode(text).ids
        return ids

    def _text(self, segment: Segment, last: bool) -> str:
        if segment.kind == "prompt":
            return self.prompt(segment.text)
        text = segment.text.replace(IMAGE_PLACEHOLDER, self.processor.image_text)
        return text + (self.end_of_turn if last else "")

    def _pixels(
        self,
        sample_id: str,
        images: Sequence[bytes],
        visuals: Sequence[Video | None],
        crops: Mapping[int, Crop],
    ) -> tuple[Any, Any, Any, list[tuple[int, int]]]:
        """Patches, grids and seconds of `visuals`: videos, and still images, which are None.

        And the (width, height) of each image, or of the part of it that is shown, as stored.
        """
        if not images:
            return None, None, None, []
        budget = PixelBudget.of(self.processor.image_processor)
        try:
            stored = [
                cut(decode(data), crops[place].box) if place in crops else decode(data)
                for place, data in enumerate(images)
            ]
            pictures = [
                fitted(picture, budget.with_at_most(crops[place].most) if place in crops else budget)
                for place, picture in enumerate(stored)
            ]
        except PictureError as error:
            raise DataError(f"{sample_id}: an image of the prepared dataset cannot be read: {error}") from error
        try:
            pixels, grids = self.processor.pixels(pictures, [video.frames if video else 0 for video in visuals])
        except ValueError as error:
            raise DataError(f"{sample_id}: {error}") from error
        step = self.processor.image_processor.temporal_patch_size
        seconds = np.array([step / video.fps if video else 0.0 for video in visuals])
        return pixels, grids, seconds, [picture.size for picture in stored]


def _stills(visuals: Sequence[Video | None]) -> dict[int, int]:
    """Number of each still image among all images -> its place among `visuals`."""
    found: dict[int, int] = {}
    image = 0
    for place, video in enumerate(visuals):
        if video is None:
            found[image] = place
        image += video.frames if video else 1
    return found


def grids_of_tokens(grids: Any, processor: Any) -> list[tuple[int, int]]:
    """Rows and columns of each image's merged vision tokens, from its grid of patches."""
    merge = processor.image_processor.merge_size
    return [] if grids is None else [(int(rows) // merge, int(columns) // merge) for _, rows, columns in grids]


def cells_within(fill: Fill, size: tuple[int, int], grid: tuple[int, int]) -> list[int]:
    """The merged vision tokens that a fill's box reaches into, row by row, and one at least.

    The box is in pixels of an image of `size` (width, height), whose tokens are `grid` (rows, columns).
    """
    (rows, columns), (width, height), (x1, y1, x2, y2) = grid, size, fill.box
    left = min(max(math.floor(x1 * columns / width), 0), columns - 1)
    top = min(max(math.floor(y1 * rows / height), 0), rows - 1)
    right = min(max(math.ceil(x2 * columns / width), left + 1), columns)
    bottom = min(max(math.ceil(y2 * rows / height), top + 1), rows)
    cells = [row * columns + column for row in range(top, bottom) for column in range(left, right)]
    if len(cells) <= fill.most:
        return cells
    return [cells[place * len(cells) // fill.most] for place in range(fill.most)]


def laid_out(encoder: Encoder, method: MethodConfig, latent: LatentConfig, sample: StoredSample) -> Encoded:
    """A stored sample as `method` lays it out."""
    return _encoded(encoder, sample, method.layout(sample, latent), method.shown(sample))


def _encoded(encoder: Encoder, sample: StoredSample, segments: Sequence[Segment], shown: Sequence[Shown]) -> Encoded:
    images = [sample.images[one.image if isinstance(one, Crop) else one] for one in shown]
    crops = {place: one for place, one in enumerate(shown) if isinstance(one, Crop)}
    return encoder.encode(sample.sample_id, segments, images, sample.videos, crops)


def laid_out_to_train(
    encoder: Encoder,
    method: MethodConfig,
    latent: LatentConfig,
    sample: StoredSample,
    features: Mapping[str, Sequence[np.ndarray]],
) -> Encoded:
    """As `laid_out`, with the sample's second sequence and what the blocks are aligned with.

    `features` are those of all the sample's images by encoder, where they have been computed; an encoder that is not
    among them is shown the image.
    """
    method = method.for_training(sample, latent)
    encoded = laid_out(encoder, method, latent, sample)
    if (segments := method.teacher(sample, latent)) is not None:
        encoded = replace(encoded, teacher=_encoded(encoder, sample, segments, method.shown_to_teacher(sample)))
    if not method.aligned_with:
        return encoded
    about = [segment.image for segment in method.layout(sample, latent) if segment.kind == "latent"]
    images = sorted({image for image in about if image is not None})
    arrays: dict[str, np.ndarray] = {}
    for config in method.aligned_with if images else ():
        if config.name in features:
            found = [features[config.name][image] for image in images]
        else:
            found = [_square(sample, image, config.size) for image in images]
        arrays[config.name] = np.stack(found)
    targets = Targets(tuple(None if image is None else images.index(image) for image in about), arrays)
    return replace(encoded, targets=targets)


def _square(sample: StoredSample, image: int, size: int) -> np.ndarray:
    try:
        return square(sample.images[image], size)
    except PictureError as error:
        raise DataError(f"{sample.sample_id}: image {image + 1} cannot be read: {error}") from error


def in_places(name: str, text: str, images: Sequence[bytes], videos: Sequence[Video]) -> list[Video | None]:
    """What stands in each place of the text: a video, or a still image (None). Raises DataError where one is left."""
    places = PLACEHOLDER.findall(text)
    stills = len(images) - sum(video.frames for video in videos)
    for place, wanted, kind in ((IMAGE_PLACEHOLDER, stills, "image"), (VIDEO_PLACEHOLDER, len(videos), "video")):
        if (found := places.count(place)) > wanted:
            raise DataError(f"{name}: more {kind} placeholders than its {wanted} {kind}s")
        if found < wanted:
            raise DataError(f"{name}: {wanted - found} of its {wanted} {kind}s have no placeholder in the text")
    left = iter(videos)
    return [next(left) if place == VIDEO_PLACEHOLDER else None for place in places]


def cut(image: Image.Image, box: Sequence[float]) -> Image.Image:
    """The pixels of a decoded image that a box on it reaches into."""
    x1, y1, x2, y2 = box
    return image.crop((math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)))


def fitted(image: Image.Image, budget: PixelBudget) -> Image.Image:
    """A decoded image as the image processor takes it with `do_resize=False`."""
    columns, rows = budget.units(image.width, image.height)
    return image.resize((columns * budget.unit, rows * budget.unit), Image.Resampling.BICUBIC)


def chat(question: str) -> list[dict[str, Any]]:
    """A one-turn conversation; each `<image>` or `<video>` in `question` stands for one."""
    kinds = {IMAGE_PLACEHOLDER: "image", VIDEO_PLACEHOLDER: "video"}
    parts = [part for part in re.split(f"({PLACEHOLDER.pattern})", question) if part]
    content = [{"type": kinds[part]} if part in kinds else {"type": "text", "text": part} for part in parts]
    return [{"role": "user", "content": content}]


@dataclass(frozen=True)
class TokenCounter:
    """Counts a sample's tokens from its text and image sizes alone. It is small and picklable and needs no torch.

    `overhead` is what the chat template puts around a text of the user.
    """

    tokenizer_json: str
    overhead: int
    patch_size: int
    merge_size: int
    temporal_patch_size: int

    @classmethod
    def from_model(cls, model: ModelConfig) -> TokenCounter:
        """For the processor of `model.base`."""
        from amvl_core.backbones.loading import base_processor

        processor = base_processor(model)
        tokenizer = processor.tokenizer
        empty = Encoder(processor).prompt("")
        return cls(
            tokenizer_json=tokenizer.backend_tokenizer.to_str(),
            overhead=len(tokenizer(empty)["input_ids"]) + 1,
            patch_size=processor.image_processor.patch_size,
            merge_size=processor.image_processor.merge_size,
            temporal_patch_size=processor.image_processor.temporal_patch_size,
        )

    def count(
        self,
        texts: Sequence[str],
        image_sizes: Sequence[tuple[int, int]],
        min_pixels: int,
        max_pixels: int,
        videos: Sequence[Video] = (),
    ) -> int:
        """Tokens of a sample without what a method adds. `image_sizes` are widths and heights in pixels.

        Those of the frames of `videos` stand where the texts have a place for each; without places, in front.
        """
        tokenizer = _tokenizer(self.tokenizer_json)
        total = self.overhead
        for text in texts:
            plain = PLACEHOLDER.sub("", text)
            total += len(tokenizer.encode(plain, add_special_tokens=False).ids) if plain else 0
        places = [place for text in texts for place in PLACEHOLDER.findall(text)]
        alone = len(image_sizes) - sum(video.frames for video in videos)
        sizes, left = iter(image_sizes), iter(videos)
        for place in places or [VIDEO_PLACEHOLDER] * len(videos) + [IMAGE_PLACEHOLDER] * alone:
            frames = next(left).frames if place == VIDEO_PLACEHOLDER else 1
            (width, height), *_ = (next(sizes) for _ in range(frames))
            steps = math.ceil(frames / self.temporal_patch_size)
            total += steps * self.image_tokens(width, height, min_pixels, max_pixels) + 2
        return total

    def image_tokens(self, width: int, height: int, min_pixels: int, max_pixels: int) -> int:
        """Merged patches of an image after it is resized into the budget."""
        columns, rows = PixelBudget(min_pixels, max_pixels, self.patch_size * self.merge_size).units(width, height)
        return columns * rows


_TOKENIZERS: dict[int, Tokenizer] = {}


def _tokenizer(state: str) -> Tokenizer:
    """One tokenizer per process for each serialised state."""
    from tokenizers import Tokenizer

    key = hash(state)
    if key not in _TOKENIZERS:
        _TOKENIZERS[key] = Tokenizer.from_str(state)
    return _TOKENIZERS[key]
