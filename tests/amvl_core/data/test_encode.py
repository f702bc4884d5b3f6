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
from amvl_core.methods.block import add_latent_tokens, block_text, slot_tokens
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


text = st.text(st.characters(codec="utf-8", exclude_characters="<>\0"), min_size=1, max_size=30)


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


def test_the_training_prompt_is_the_generation_prompt(processor) -> None:
    from amvl_core.data.encode import chat

    encoded = Encoder(processor).encode("s", segments("Is it?", "yes"), [])
    prompt = processor.apply_chat_template(chat("Is it?"), add_generation_prompt=True, tokenize=False)
    ids = processor.tokenizer(prompt)["input_ids"]
    assert encoded.input_ids[: len(ids)].tolist() == ids


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
