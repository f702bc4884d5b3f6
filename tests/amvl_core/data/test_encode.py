import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amvl_core.backbones.processor import load_processor
from amvl_core.backbones.tiny import build_processor
from amvl_core.contracts.config import ModelConfig
from amvl_core.contracts.errors import DataError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.sample import Segment
from amvl_core.data.encode import IGNORED, Encoder, TokenCounter
from amvl_core.methods.block import add_latent_tokens, slot_tokens
from tests.tiny import TINY, picture, stock_folder

SLOTS = slot_tokens(LatentConfig(num_slots=3))


@pytest.fixture(scope="module")
def processor():
    loaded = load_processor(stock_folder())
    add_latent_tokens(loaded, SLOTS)
    return loaded


def segments(question: str, answer: str, steps: tuple[str, ...] = (), slots: int = 3) -> list[Segment]:
    middle = [Segment("step", step) for step in steps]
    return [Segment("prompt", question), Segment("latent", num_slots=slots), *middle, Segment("answer", answer)]


text = st.text(st.characters(codec="utf-8", exclude_characters="<>\0"), min_size=1, max_size=30)


@settings(max_examples=40, deadline=None)
@given(question=text, steps=st.lists(text, max_size=2), answer=text)
def test_text_out_is_text_in_with_one_block_and_labels_only_behind_it(processor, question, steps, answer) -> None:
    encoded = Encoder(processor, SLOTS).encode("s", segments(question, answer, tuple(steps)), [])
    ids = encoded.input_ids.tolist()
    slots = processor.tokenizer.convert_tokens_to_ids([f"<latent_pad_{i}>" for i in (1, 2, 3)])
    start = ids.index(slots[0])
    assert [i for i in ids if i in slots] == slots and ids[start : start + 3] == slots
    assert (encoded.labels[: start + 4] == IGNORED).all()
    assert encoded.labels[start + 4 :].tolist() == ids[start + 4 :]
    decoded = processor.tokenizer.decode(ids[start + 4 :])
    assert decoded == "".join(steps) + answer + "<|im_end|>"
    assert question in processor.tokenizer.decode(ids[:start])


def test_without_slots_the_block_is_left_out(processor) -> None:
    encoded = Encoder(processor, []).encode("s", segments("Is it?", "yes"), [])
    assert "pad" not in processor.tokenizer.decode(encoded.input_ids)
    assert "abs_token" not in processor.tokenizer.decode(encoded.input_ids)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_smaller_block_takes_the_first_slots(processor, count: int) -> None:
    encoded = Encoder(processor, SLOTS).encode("s", segments("Is it?", "yes", slots=count), [])
    text = processor.tokenizer.decode(encoded.input_ids)
    assert f"<abs_token>{''.join(SLOTS[:count])}</abs_token>yes" in text
    assert text.count("latent_pad") == count


def test_the_training_prompt_is_the_generation_prompt(processor) -> None:
    from amvl_core.data.encode import chat

    encoded = Encoder(processor, SLOTS).encode("s", segments("Is it?", "yes"), [])
    prompt = processor.apply_chat_template(chat("Is it?"), add_generation_prompt=True, tokenize=False)
    ids = processor.tokenizer(prompt)["input_ids"]
    assert encoded.input_ids[: len(ids)].tolist() == ids


@pytest.mark.parametrize(
    ("question", "images", "slots", "message"),
    [
        ("<image><image>Q?", 1, 3, "sample-9: more image placeholders than its 1 images"),
        ("Q?", 1, 3, "sample-9: 1 of its 1 images have no placeholder"),
        ("Q?", 0, 5, "sample-9: the sample has a block of 5 latent slots, the model has 3"),
    ],
)
def test_parts_that_do_not_match_name_the_sample(processor, question, images, slots, message) -> None:
    with pytest.raises(DataError, match=message):
        Encoder(processor, SLOTS).encode("sample-9", segments(question, "yes", slots=slots), [picture(0)] * images)


def test_an_unreadable_image_names_the_sample(processor) -> None:
    with pytest.raises(DataError, match="sample-9: an image of the prepared dataset cannot be read"):
        Encoder(processor, SLOTS).encode("sample-9", segments("<image>Q?", "yes"), [picture(0)[:60]])


@settings(max_examples=25, deadline=None)
@given(width=st.integers(16, 200), height=st.integers(16, 200), question=text)
def test_counting_agrees_with_encoding(width: int, height: int, question: str) -> None:
    model, latent = ModelConfig(base="tiny", tiny=TINY), LatentConfig(num_slots=3)
    counter = TokenCounter.from_model(model, latent)
    processor = build_processor(TINY)
    processor.image_processor.size = {"shortest_edge": 32 * 32, "longest_edge": 128 * 128}
    add_latent_tokens(processor, SLOTS)
    parts = segments(f"<image>{question}", "A", ("Look.",))
    encoded = Encoder(processor, SLOTS).encode("s", parts, [picture(0, width, height)])
    counted = counter.count(parts, [(width, height)], 32 * 32, 128 * 128)
    # The chat template ends a turn right behind the question, so a token may join across that border.
    assert abs(counted - len(encoded.input_ids)) <= 1
    assert encoded.image_grid_thw is not None and encoded.pixel_values is not None
    assert counter.image_tokens(width, height, 32 * 32, 128 * 128) == np.prod(encoded.image_grid_thw) // 4
