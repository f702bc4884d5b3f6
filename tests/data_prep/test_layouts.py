from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amvl_core.backbones.processor import load_processor
from amvl_core.contracts.config import AfterPrompt, BeforeSteps, DataConfig, Layout, ReplaceSteps, override
from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.sample import Conversation, Region, Segment
from amvl_core.data.encode import IGNORED, Encoder
from amvl_core.methods.amvl.presets import demo
from amvl_core.methods.block import BLOCK_END, BLOCK_START, add_latent_tokens, slot_tokens
from data_prep.filters import check_text, shown_images
from data_prep.layouts import STEP_END, lay_out, without_replaced_images
from tests.tiny import picture, stock_folder

MAX_SLOTS = 12
PADS = slot_tokens(LatentConfig(num_slots=MAX_SLOTS))

text = st.text(st.characters(codec="utf-8", exclude_characters="<>\0"), min_size=1, max_size=20).filter(str.strip)
layouts: st.SearchStrategy[Layout] = st.one_of(
    st.just(AfterPrompt()),
    st.just(BeforeSteps()),
    st.builds(ReplaceSteps, steps=st.integers(1, 4), slots_per_step=st.integers(1, 3)),
)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    """Texts with up to two images each, every image another one, and a region on each."""

    def shown(words: str) -> str:
        return "<image>" * draw(st.integers(0, 2)) + words

    question, steps = shown(draw(text)), tuple(shown(step) for step in draw(st.lists(text, max_size=4)))
    count = sum(part.count("<image>") for part in (question, *steps))
    return Conversation(
        "i", "s", "train", "t", tuple(picture(i) for i in range(count)), question, steps, draw(text),
        tuple(Region(str(i), (0, 0, 1, 1), i) for i in range(count)),
    )  # fmt: skip


def expected(conversation: Conversation, layout: Layout, slots: int) -> tuple[list[str], list[int]]:
    """(kinds, slots of each block), from the table of methods."""
    steps = len(conversation.steps)
    if isinstance(layout, AfterPrompt):
        return ["prompt", "latent", *["step"] * steps, "answer"], [slots]
    if isinstance(layout, BeforeSteps):
        return ["prompt", *["latent", "step"] * steps, "answer"], [slots] * steps
    replaced = min(layout.steps, steps)
    block = ["latent"] if replaced else []
    return ["prompt", *block, *["step"] * (steps - replaced), "answer"], [layout.slots_per_step * replaced] * len(block)


@given(conversations(), layouts, st.integers(1, MAX_SLOTS))
def test_text_out_is_text_in(conversation: Conversation, layout: Layout, slots: int) -> None:
    segments = lay_out(conversation, DataConfig(layout=layout), slots)
    kinds, blocks = expected(conversation, layout, slots)
    assert [segment.kind for segment in segments] == kinds
    assert [segment.num_slots for segment in segments if segment.kind == "latent"] == blocks
    left_out = layout.steps if isinstance(layout, ReplaceSteps) else 0
    wanted = [step + STEP_END for step in conversation.steps[left_out:]]
    assert [segment.text for segment in segments if segment.text] == [
        conversation.question, *wanted, conversation.answer,
    ]  # fmt: skip
    assert all((segment.num_slots > 0) == (segment.kind == "latent") for segment in segments)


@given(conversations(), st.integers(1, MAX_SLOTS))
def test_without_steps_as_a_target_they_are_left_out(conversation: Conversation, slots: int) -> None:
    segments = lay_out(conversation, DataConfig(target="answer"), slots)
    assert segments == [
        Segment("prompt", conversation.question), Segment("latent", num_slots=slots),
        Segment("answer", conversation.answer),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def processor() -> Any:
    loaded = load_processor(stock_folder())
    add_latent_tokens(loaded, PADS)
    return loaded


@settings(max_examples=40, deadline=None)
@given(conversations(), layouts, st.integers(1, MAX_SLOTS))
def test_a_tokenised_sample_has_its_slots_and_no_label_on_them(
    processor: Any, conversation: Conversation, layout: Layout, slots: int
) -> None:
    config = DataConfig(layout=layout)
    assert check_text(conversation, config) is None
    shown = without_replaced_images(conversation, config)
    segments = lay_out(shown, config, slots)
    blocks = [segment.num_slots for segment in segments if segment.kind == "latent"]
    # One encoder for samples with blocks of any size.
    encoded = Encoder(processor, PADS).encode("i", segments, shown_images(shown, config))
    convert = processor.tokenizer.convert_tokens_to_ids
    start, end, pads = convert(BLOCK_START), convert(BLOCK_END), convert(PADS)
    ids, labels = encoded.input_ids.tolist(), encoded.labels.tolist()
    starts = [i for i, token in enumerate(ids) if token == start]
    assert [ids[at : at + count + 2] for at, count in zip(starts, blocks, strict=True)] == [
        [start, *pads[:count], end] for count in blocks
    ]
    assert sum(token in {start, end, *pads} for token in ids) == sum(blocks) + 2 * len(blocks)
    unlabelled = {start, end, *pads, processor.image_token_id}
    first = next(i for i, label in enumerate(labels) if label != IGNORED)
    for i, (token, label) in enumerate(zip(ids, labels, strict=True)):
        assert label == (token if i >= first and token not in unlabelled else IGNORED)
    # The prompt has no label: the first is that of the first step that is left, or of the answer.
    prompt = Encoder(processor, []).encode("i", segments[:1], shown.images[: shown.question.count("<image>")])
    assert first >= len(prompt.input_ids) > 0


@given(conversations(), layouts)
def test_replaced_steps_take_their_images_and_regions_along(conversation: Conversation, layout: Layout) -> None:
    config = DataConfig(layout=layout)
    shown = without_replaced_images(conversation, config)
    if not isinstance(layout, ReplaceSteps):
        assert shown == conversation
        return
    counts = [part.count("<image>") for part in (conversation.question, *conversation.steps)]
    owner = np.repeat(np.arange(len(counts)), counts)
    kept = [i for i in range(len(conversation.images)) if owner[i] == 0 or owner[i] > layout.steps]
    assert shown.images == tuple(conversation.images[i] for i in kept)
    assert [(region.label, region.image) for region in shown.regions] == [(str(i), n) for n, i in enumerate(kept)]
    assert check_text(shown, config) is None
    laid_out = lay_out(shown, config, 1)
    assert sum(segment.text.count("<image>") for segment in laid_out) == len(shown_images(shown, config))


@pytest.mark.parametrize("kind", ["before_steps", "replace_steps"])
def test_layouts_of_steps_need_steps(kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"data: .*layout {kind} needs steps; set target = steps_and_answer"):
        override(demo(), {"data": {"layout": {"kind": kind}, "target": "answer"}})


def test_a_wrong_field_of_a_layout_is_named_by_its_path() -> None:
    with pytest.raises(ConfigError, match=r"data\.layout\.stpes: Extra inputs"):
        override(demo(), {"data": {"layout": {"kind": "replace_steps", "stpes": 2}}})
    tuning = demo().model_copy(update={"stages": {"sft": demo().stages["sft"]}})
    changed = override(tuning, {"data": {"layout": {"kind": "replace_steps", "steps": 2}}})
    assert changed.data.layout == ReplaceSteps(steps=2, slots_per_step=2)
