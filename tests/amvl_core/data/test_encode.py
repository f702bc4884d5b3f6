from io import BytesIO
from math import ceil, floor
from unicodedata import normalize

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from amvl_core.backbones.processor import load_processor
from amvl_core.backbones.tiny import build_processor
from amvl_core.contracts.config import ModelConfig
from amvl_core.contracts.errors import ConfigError, DataError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.sample import Crop, Fill, Segment
from amvl_core.data.encode import IGNORED, Encoder, PixelBudget, TokenCounter, cells_within, fitted
from amvl_core.methods.block import add_latent_tokens, block_text, slot_tokens
from tests.data_prep.pictures import noise
from tests.tiny import TINY, picture, stock_folder

SLOTS = slot_tokens(LatentConfig(num_slots=3))


@pytest.fixture(scope="module")
def processor():
    loaded = load_processor(stock_folder())
    add_latent_tokens(loaded, SLOTS)
    return loaded


def segments(question: str, answer: str, steps: tuple[str, ...] = ()) -> list[Segment]:
    middle = [Segment("latent", block_text(SLOTS)), *(Segment("step", step) for step in steps)]
    return [Segment("prompt", question), *middle, Segment("answer", answer)]


# The stock tokenizer brings text to NFC before it reads it.
text = st.text(st.characters(codec="utf-8", exclude_characters="<>\0"), min_size=1, max_size=30).map(
    lambda drawn: normalize("NFC", drawn)
)


@settings(max_examples=40, deadline=None)
@given(question=text, steps=st.lists(text, max_size=2), answer=text)
def test_text_out_is_text_in_with_one_block_and_labels_only_behind_it(processor, question, steps, answer) -> None:
    encoded = Encoder(processor).encode("s", segments(question, answer, tuple(steps)), [])
    ids = encoded.input_ids.tolist()
    slots = processor.tokenizer.convert_tokens_to_ids([f"<latent_pad_{i}>" for i in (1, 2, 3)])
    start = ids.index(slots[0])
    assert [i for i in ids if i in slots] == slots and ids[start : start + 3] == slots
    assert (encoded.labels[: start + 4] == IGNORED).all()
    assert encoded.labels[start + 4 :].tolist() == ids[start + 4 :]
    decoded = processor.tokenizer.decode(ids[start + 4 :])
    assert decoded == "".join(steps) + answer + "<|im_end|>"
    assert question in processor.tokenizer.decode(ids[:start])


@settings(max_examples=40, deadline=None)
@given(words=text)
def test_tokens_are_those_of_the_tokenizers_own_call(processor, words) -> None:
    for written in (words, "", f"{processor.image_text}{words}<|im_end|>\n"):
        assert Encoder(processor)._tokens(written) == processor.tokenizer(written)["input_ids"]


def test_the_training_prompt_is_the_generation_prompt(processor) -> None:
    from amvl_core.data.encode import chat

    encoded = Encoder(processor).encode("s", segments("Is it?", "yes"), [])
    prompt = processor.apply_chat_template(chat("Is it?"), add_generation_prompt=True, tokenize=False)
    ids = processor.tokenizer(prompt)["input_ids"]
    assert encoded.input_ids[: len(ids)].tolist() == ids


def test_a_crop_is_the_part_that_its_box_reaches_into_with_as_many_tokens_as_it_may_have(processor) -> None:
    image, unit = picture(1, 64, 48), processor.image_processor.patch_size * processor.image_processor.merge_size
    parts = [Segment("prompt", "Q?"), Segment("image", "<image>"), Segment("step", "It."), Segment("answer", "yes")]
    for box, most, (columns, rows) in (
        ((16.5, 0.0, 47.5, 32.0), 9, (2, 2)),
        ((16.0, 0.0, 64.0, 48.0), 4, (2, 2)),
        ((0.0, 0.0, 64.0, 16.0), 2, (2, 1)),
        ((3.0, 3.0, 3.5, 3.5), 1, (1, 1)),
    ):
        encoded = Encoder(processor).encode("s", parts, [image], crops={0: Crop(0, box, most)})
        shown = encoded.input_ids == processor.image_token_id
        assert shown.sum() == columns * rows <= most
        assert (encoded.labels[: int(shown.nonzero()[0][-1]) + 2] == IGNORED).all()  # nothing of an image is written
        area = Image.open(BytesIO(image)).crop((*map(floor, box[:2]), *map(ceil, box[2:])))
        resized = area.resize((columns * unit, rows * unit), Image.Resampling.BICUBIC)
        expected, _ = processor.pixels([resized], [0])
        assert np.array_equal(encoded.pixel_values, expected)


@pytest.mark.parametrize(
    ("question", "images", "message"),
    [
        ("<image><image>Q?", 1, "sample-9: more image placeholders than its 1 images"),
        ("Q?", 1, "sample-9: 1 of its 1 images have no placeholder"),
    ],
)
def test_parts_that_do_not_match_name_the_sample(processor, question, images, message) -> None:
    with pytest.raises(DataError, match=message):
        Encoder(processor).encode("sample-9", segments(question, "yes"), [picture(0)] * images)


def test_an_unreadable_image_names_the_sample(processor) -> None:
    with pytest.raises(DataError, match="sample-9: an image of the prepared dataset cannot be read"):
        Encoder(processor).encode("sample-9", segments("<image>Q?", "yes"), [picture(0)[:60]])


@settings(max_examples=25, deadline=None)
@given(width=st.integers(16, 200), height=st.integers(16, 200), question=text)
def test_counting_agrees_with_encoding(width: int, height: int, question: str) -> None:
    counter = TokenCounter.from_model(ModelConfig(base="tiny", tiny=TINY))
    processor = build_processor(TINY)
    processor.image_processor.size = {"shortest_edge": 32 * 32, "longest_edge": 128 * 128}
    add_latent_tokens(processor, SLOTS)
    parts = segments(f"<image>{question}", "A", ("Look.",))
    encoded = Encoder(processor).encode("s", parts, [picture(0, width, height)])
    texts = [part.text for part in parts if part.kind != "latent"]
    counted = counter.count(texts, [(width, height)], 32 * 32, 128 * 128) + len(SLOTS) + 2
    # The chat template ends a turn right behind the question, so a token may join across that border.
    assert abs(counted - len(encoded.input_ids)) <= 1
    assert encoded.image_grid_thw is not None and encoded.pixel_values is not None
    assert counter.image_tokens(width, height, 32 * 32, 128 * 128) == np.prod(encoded.image_grid_thw) // 4


sides = st.integers(1, 4000)


@settings(deadline=None)
@given(sides, sides, st.integers(1, 10**6), st.integers(0, 10**6))
def test_sizes_are_those_of_the_stock_image_processor_where_these_are_within_the_budget(
    width: int, height: int, least: int, room: int
) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    assume(max(width, height) <= 200 * min(width, height))
    budget = PixelBudget(least, max(28 * 28, least + room), 28)
    columns, rows = budget.units(width, height)
    assert columns >= 1 and rows >= 1 and columns * rows * 28 * 28 <= budget.max_pixels
    stock_height, stock_width = smart_resize(height, width, 28, budget.min_pixels, budget.max_pixels)
    if stock_height * stock_width <= budget.max_pixels:
        assert (columns * 28, rows * 28) == (stock_width, stock_height)


@pytest.mark.parametrize("size", [(200, 1), (8, 160), (3, 3), (40, 41), (500, 300)])
@pytest.mark.parametrize("pixels", [(1, 256), (1024, 1024), (256, 1100), (4096, 65536)])
def test_no_image_is_larger_than_its_budget_and_it_is_counted_as_it_is(size, pixels) -> None:
    counter, processor = TokenCounter("", 0, 8, 2, 2), build_processor(TINY)
    processor.image_processor.size = {"shortest_edge": pixels[0], "longest_edge": pixels[1]}
    encoded = Encoder(processor).encode(
        "s", [Segment("prompt", "<image>Q?"), Segment("answer", "A")], [picture(0, *size)]
    )
    tokens = np.prod(encoded.image_grid_thw) // 4
    assert tokens * 16 * 16 <= pixels[1]
    assert counter.image_tokens(*size, *pixels) == tokens


@pytest.mark.parametrize("size", [(48, 32), (100, 70), (20, 9), (150, 149)])
def test_what_is_fitted_here_the_stock_image_processor_fits_alike(size) -> None:
    stock = build_processor(TINY).image_processor
    stock.size = {"shortest_edge": 32 * 32, "longest_edge": 96 * 96}
    image = noise(*size)
    ours = stock(images=[fitted(image, PixelBudget.of(stock))], do_resize=False, return_tensors="np")
    theirs = stock(images=[image], return_tensors="np")
    assert np.array_equal(ours["pixel_values"], theirs["pixel_values"])
    assert np.array_equal(ours["image_grid_thw"], theirs["image_grid_thw"])


def test_a_budget_that_holds_no_token_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"max_pixels is 783, .* 28 x 28 pixels; set it to at least 784"):
        PixelBudget(1, 783, 28)


pixels = st.integers(0, 200)


@given(st.tuples(pixels, pixels, pixels, pixels), st.integers(1, 9), st.integers(1, 9))
def test_a_box_is_the_vision_tokens_it_overlaps_with(box: tuple[int, int, int, int], rows: int, columns: int) -> None:
    x1, x2 = sorted(box[::2])
    y1, y2 = sorted(box[1::2])
    size = (24 * columns, 16 * rows)  # the image is stored in another size than it is shown in
    found = cells_within(Fill(0, (x1, y1, x2, y2), 1000), size, (rows, columns))
    expected = [
        row * columns + column
        for row in range(rows)
        for column in range(columns)
        if x1 < 24 * (column + 1) and 24 * column < x2 and y1 < 16 * (row + 1) and 16 * row < y2
    ]
    if expected and x1 < x2 and y1 < y2:
        assert found == expected
    else:  # empty, or outside the image
        assert found and set(found) <= set(range(rows * columns))


def test_of_too_many_vision_tokens_as_many_as_may_be_are_spread_evenly() -> None:
    assert cells_within(Fill(0, (0, 0, 80, 20), 4), (80, 20), (2, 5)) == [0, 2, 5, 7]
    assert cells_within(Fill(0, (0, 0, 80, 20), 10), (80, 20), (2, 5)) == list(range(10))
