"""Videos in training: patches, positions, loss and gradients are those of the stock model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

from amvl_core.backbones.backbone import backbone_of
from amvl_core.backbones.processor import load_processor
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.sample import Segment, Video
from amvl_core.data.batch import Batch, collate
from amvl_core.data.encode import Encoded, Encoder
from amvl_core.eval.predict import Answerer
from amvl_core.methods.method import Clock
from amvl_core.methods.sft.config import SftMethod
from amvl_core.methods.sft.method import Sft
from amvl_core.rows.decode import greedy, prefill
from benchmarks.tiny import picture
from tests.tiny import amvl_model, stock_folder

SAMPLES: list[tuple[str, str, int, tuple[Video, ...]]] = [
    # question, answer, images, videos; the second has an image before its video, the third a video of odd length first
    ("<video>How many circles are there?", "two", 4, (Video(4, 2.0),)),
    ("<image>Is this in<video>or not?", "yes", 7, (Video(6, 0.8),)),
    ("<video><image><video>Which is red?", "the first", 6, (Video(3, 10.0), Video(2, 1.0))),
    ("Is there a circle?", "no", 0, ()),
    ("<image>What colour is it?", "red", 1, ()),
]


def encoded(number: int) -> Encoded:
    question, answer, images, videos = SAMPLES[number]
    segments = [Segment("prompt", question), Segment("answer", answer)]
    shown = [picture(10 * number + i, 32, 48) for i in range(images)]
    return Encoder(load_processor(stock_folder())).encode(f"sample-{number}", segments, shown, videos)


def stock_inputs(model: Any, samples: list[Encoded]) -> dict[str, torch.Tensor]:
    """Padded on the right, images and videos apart, as the stock processor gives them."""
    ids, labels = (
        torch.nn.utils.rnn.pad_sequence([torch.from_numpy(x) for x in rows], batch_first=True, padding_value=fill)
        for rows, fill in (([s.input_ids for s in samples], 0), ([s.labels for s in samples], -100))
    )
    parts: dict[bool, list[tuple[np.ndarray, np.ndarray, float]]] = {False: [], True: []}
    for sample in samples:
        first = 0
        for grid, seconds in zip(
            *([] if x is None else x for x in (sample.image_grid_thw, sample.seconds)), strict=True
        ):
            assert sample.pixel_values is not None
            last = first + int(grid.prod())
            parts[seconds > 0].append((sample.pixel_values[first:last], grid, seconds))
            first = last
    pixels, grids = (
        {moves: torch.from_numpy(join([part[i] for part in found])) for moves, found in parts.items()}
        for i, join in ((0, np.concatenate), (1, np.stack))
    )
    kinds = (ids == model.config.image_token_id).int() + 2 * (ids == model.config.video_token_id).int()
    lengths = torch.tensor([len(sample.input_ids) for sample in samples])
    return {
        "input_ids": ids,
        "labels": labels,
        "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long(),
        "mm_token_type_ids": kinds,
        "pixel_values": pixels[False],
        "image_grid_thw": grids[False],
        "pixel_values_videos": pixels[True],
        "video_grid_thw": grids[True],
        "second_per_grid_ts": torch.tensor([part[2] for part in parts[True]]),
    }


def test_patches_are_two_frames_each_in_the_order_in_which_they_are_merged() -> None:
    """By the definition: [channel, frame, row, column] of each patch; patches in squares of 2 x 2."""
    processor = load_processor(stock_folder())
    processor.image_processor.size = {"shortest_edge": 32 * 48, "longest_edge": 32 * 48}
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)) for _ in range(5)]
    pixels, grids = processor.pixels(frames, [5])
    size, merge = processor.image_processor.patch_size, processor.image_processor.merge_size
    mean, std = (np.array(x) for x in (processor.image_processor.image_mean, processor.image_processor.image_std))
    values = [(np.asarray(frame) / 255 - mean) / std for frame in [*frames, frames[-1]]]
    expected = [
        np.stack([values[2 * t + dt][y : y + size, x : x + size].transpose(2, 0, 1) for dt in range(2)], 1).ravel()
        for t in range(3)
        for top in range(0, 32, size * merge)
        for left in range(0, 48, size * merge)
        for y in (top + i * size for i in range(merge))
        for x in (left + i * size for i in range(merge))
    ]
    assert grids.tolist() == [[3, 32 // size, 48 // size]]
    # float32 against float64; the worst measured is 2e-7.
    np.testing.assert_allclose(pixels, np.stack(expected), atol=1e-6)


def test_a_still_image_is_the_image_processors_own() -> None:
    processor = load_processor(stock_folder())
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8))
    own = processor.image_processor(images=[image, image], do_resize=False, return_tensors="np")
    pixels, grids = processor.pixels([image, image, image, image], [0, 2, 0])
    still = len(pixels) // 3
    assert np.array_equal(np.concatenate([pixels[:still], pixels[2 * still :]]), own["pixel_values"])
    assert grids.tolist() == [own["image_grid_thw"][0].tolist()] * 3
    # A video of one picture twice is that picture.
    assert np.array_equal(pixels[still : 2 * still], pixels[:still])


def test_loss_and_gradients_are_those_of_the_stock_model() -> None:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(stock_folder(), dtype=torch.float64)
    samples = [encoded(number) for number in range(len(SAMPLES))]
    data = collate(samples)
    method = Sft(model, SftMethod())
    ours = method(data, Clock(0, 0, data.num_label_tokens, len(data.lengths))).loss
    ours.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    given = stock_inputs(model, samples)
    labels = given.pop("labels")[:, 1:].flatten()  # the stock loss is taken in float32
    theirs = torch.nn.functional.cross_entropy(model(**given).logits[:, :-1].flatten(0, 1), labels)
    theirs.backward()
    # Measured: 0 to 3e-16 relative on the loss.
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=0)
    whole = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert len(grads) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        # Measured worst case: 9e-16.
        assert (grads[name] - p.grad).norm() < 1e-13 * torch.maximum(p.grad.norm(), 1e-3 * whole), name


@pytest.mark.parametrize("numbers", [*((number,) for number in range(len(SAMPLES))), range(len(SAMPLES)), (3, 3, 4)])
def test_positions_of_a_packed_row_are_the_stock_models(numbers: Sequence[int]) -> None:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(stock_folder(), dtype=torch.float32)
    samples = [encoded(number) for number in numbers]
    found = Sft(model, SftMethod()).positions(collate(samples))
    given = stock_inputs(model, [*samples, encoded(0), encoded(1)])  # it takes no batch without an image or a video
    names = (
        "input_ids",
        "mm_token_type_ids",
        "image_grid_thw",
        "video_grid_thw",
        "second_per_grid_ts",
        "attention_mask",
    )
    theirs, _ = model.model.get_rope_index(**{name: given[name] for name in names})
    own = [theirs[:, row, : len(sample.input_ids)] for row, sample in enumerate(samples)]
    assert torch.equal(found, torch.cat(own, 1))


def test_time_passes_in_a_video_at_its_own_rate() -> None:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(stock_folder(), dtype=torch.float32)
    sample = encoded(0)
    times = Sft(model, SftMethod()).positions(collate([sample]))[0]
    in_video = torch.from_numpy(sample.input_ids) == model.config.video_token_id
    # Two frames a step, two frames a second: a step of one second.
    assert times[in_video].diff().unique().tolist() == [0, model.config.vision_config.tokens_per_second]


@pytest.mark.parametrize(
    ("question", "images", "videos", "message"),
    [
        ("<image><video>?", 1, (), "more video placeholders than its 0 videos"),
        ("?", 4, (Video(4, 1.0),), "1 of its 1 videos have no placeholder in the text"),
        ("<video><image>?", 4, (Video(4, 1.0),), "more image placeholders than its 0 images"),
        ("<video>?", 5, (Video(4, 1.0),), "1 of its 1 images have no placeholder in the text"),
    ],
)
def test_places_that_do_not_match_are_an_error(question: str, images: int, videos: Any, message: str) -> None:
    segments = [Segment("prompt", question), Segment("answer", "a")]
    shown = [picture(i, 32, 32) for i in range(images)]
    with pytest.raises(DataError, match=f"s: {message}"):
        Encoder(load_processor(stock_folder())).encode("s", segments, shown, videos)


def test_frames_of_two_sizes_are_no_video() -> None:
    segments = [Segment("prompt", "<video>?"), Segment("answer", "a")]
    shown = [picture(0, 32, 32), picture(1, 64, 64)]
    with pytest.raises(DataError, match="s: the frames of a video differ in size"):
        Encoder(load_processor(stock_folder())).encode("s", segments, shown, [Video(2, 1.0)])


def test_no_loss_is_taken_on_the_places_of_frames() -> None:
    data: Batch = collate([encoded(0)])
    assert data.num_images == [1] and data.seconds_I is not None and data.seconds_I.tolist() == [1.0]
    assert (
        data.num_label_tokens
        == len(Encoder(load_processor(stock_folder())).processor.tokenizer("two")["input_ids"]) + 1
    )


def asked() -> tuple[list[list[bytes]], list[str], list[tuple[Video, ...]]]:
    shown = [[picture(10 * number + i, 32, 48) for i in range(sample[2])] for number, sample in enumerate(SAMPLES)]
    return shown, [sample[0] for sample in SAMPLES], [sample[3] for sample in SAMPLES]


@pytest.mark.parametrize("kind", ["stock", "amvl"])
def test_an_answer_is_that_of_generate_on_the_stock_inputs(kind: str) -> None:
    if kind == "stock":
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(stock_folder(), dtype=torch.float64)
        answerer = Answerer(model, load_processor(stock_folder()))
    else:
        answerer = Answerer(*amvl_model())
    images, questions, videos = asked()
    inputs = answerer.encode(images, questions, None, 0, videos).inputs
    assert inputs["video_grid_thw"][:, 0].tolist() == [2, 3, 2, 1]
    # Behind the second question's video the time of its last frames is later than the text that follows.
    positions = backbone_of(answerer.model).positions(
        answerer.model,
        inputs["input_ids"],
        *(inputs[name] for name in ("image_grid_thw", "attention_mask", "video_grid_thw", "second_per_grid_ts")),
    )
    assert positions[0, 1].max() > positions[0, 1, -1]
    with torch.inference_mode():
        found = greedy(answerer.model, prefill(answerer.model, inputs), 6)
        theirs = answerer.model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert found == theirs[:, inputs["input_ids"].shape[1] :].tolist()


def test_a_prompt_is_the_same_in_training_and_when_it_is_asked() -> None:
    processor = load_processor(stock_folder())
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(stock_folder(), dtype=torch.float32)
    images, questions, videos = asked()
    for number, (group, question, own) in enumerate(zip(images, questions, videos, strict=True)):
        inputs = Answerer(model, processor).encode([group], [question], None, 0, [own]).inputs
        sample = encoded(number)
        prompt = inputs["input_ids"][0].tolist()
        assert sample.input_ids[: len(prompt)].tolist() == prompt
        if not own:
            continue
        seconds = inputs["second_per_grid_ts"].tolist()
        assert sample.seconds is not None and [second for second in sample.seconds if second] == seconds
        assert sample.image_grid_thw is not None
        moving = torch.from_numpy(sample.seconds) > 0
        assert torch.equal(torch.from_numpy(sample.image_grid_thw)[moving], inputs["video_grid_thw"])


def test_a_question_without_a_place_shows_its_video_first() -> None:
    processor = load_processor(stock_folder())
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(stock_folder(), dtype=torch.float32)
    images, _, videos = asked()
    with_place, without = (
        Answerer(model, processor).encode([images[0]], [question], None, 0, [videos[0]]).inputs["input_ids"]
        for question in ("<video>How many?", "How many?")
    )
    assert torch.equal(with_place, without)
