from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amvl_core.backbones.processor import load_processor
from amvl_core.contracts.latent import LatentConfig
from amvl_core.contracts.method import MethodConfig, configurations
from amvl_core.contracts.sample import STEP_END, StoredSample
from amvl_core.data.encode import IGNORED, Encoder, laid_out
from amvl_core.methods.block import BLOCK_END, BLOCK_START, add_latent_tokens, slot_tokens
from amvl_core.methods.reply_blocks import LATENT_END, LATENT_START, FeedbackBlocks
from tests.tiny import picture, stock_folder

MAX_SLOTS = 12
METHODS = [method.model_validate({}) for method in configurations().values() if not issubclass(method, FeedbackBlocks)]

text = st.text(st.characters(codec="utf-8", exclude_characters="<>\0"), min_size=1, max_size=20).filter(str.strip)
latents = st.builds(
    LatentConfig, num_slots=st.integers(1, MAX_SLOTS), slot_tokens=st.sampled_from(["distinct", "shared"])
)


@st.composite
def samples(draw: st.DrawFn) -> StoredSample:
    """Texts with up to two images each, every image another one."""

    def shown(words: str) -> str:
        return "<image>" * draw(st.integers(0, 2)) + words

    question, steps = shown(draw(text)), tuple(shown(step) for step in draw(st.lists(text, max_size=4)))
    count = sum(part.count("<image>") for part in (question, *steps))
    images = tuple(picture(i) for i in range(count))
    return StoredSample("i", "s", "t", question, steps, (None,) * len(steps), draw(text), images)


@given(samples(), latents, st.sampled_from(METHODS))
def test_text_out_is_text_in(sample: StoredSample, latent: LatentConfig, method: MethodConfig) -> None:
    segments = method.layout(sample, latent)
    steps = () if getattr(method, "replaced_steps", 0) is None else sample.steps
    block = ["latent"] if method.added_tokens(latent) else []
    assert [segment.kind for segment in segments] == ["prompt", *block, *["step"] * len(steps), "answer"]
    wanted = [sample.question, *(step + STEP_END for step in steps), sample.answer]
    assert [segment.text for segment in segments if segment.kind != "latent"] == wanted


@pytest.fixture(scope="module")
def processor() -> Any:
    loaded = load_processor(stock_folder())
    for kind in ("distinct", "shared"):
        add_latent_tokens(loaded, slot_tokens(LatentConfig(num_slots=MAX_SLOTS, slot_tokens=kind)))
    return loaded


@pytest.mark.parametrize(("hidden", "kinds"), [(0, []), (1, ["hidden"]), (5, ["hidden"] * 3), ("all", ["hidden"] * 3)])
def test_hidden_steps_stand_behind_the_block_without_a_label(processor: Any, hidden: Any, kinds: list[str]) -> None:
    latent, texts = LatentConfig(num_slots=MAX_SLOTS), ("First.", "Look: <image>", "Third.")
    sample = StoredSample("i", "s", "t", "Q?", texts, (None, 0, None), "yes", (picture(1),))
    method = configurations()["amvl"].model_validate({"hidden_steps": hidden})
    segments = method.layout(sample, latent)
    left = texts[len(kinds) :]
    assert [segment.kind for segment in segments] == ["prompt", "latent", *kinds, *["step"] * len(left), "answer"]
    assert [segment.text for segment in segments[2:]] == [*(text + STEP_END for text in texts), "yes"]
    assert method.answers_next(sample) == (not left)
    whole, plain = (
        laid_out(Encoder(processor), configurations()["amvl"].model_validate(fields), latent, sample)
        for fields in ({"hidden_steps": hidden}, {})
    )
    assert whole.input_ids.tolist() == plain.input_ids.tolist()
    behind = plain.input_ids.tolist().index(processor.tokenizer.convert_tokens_to_ids(BLOCK_END)) + 1
    first = behind + whole.hidden_tokens
    assert whole.labels.tolist() == [*[IGNORED] * first, *plain.labels[first:].tolist()]
    hidden_text, written = (
        processor.tokenizer.decode(part) for part in (whole.input_ids[behind:first], whole.input_ids[first:])
    )
    assert [hidden_text.count(STEP_END), written.count(STEP_END)] == [len(kinds), len(left)]
    assert written.startswith((*left, "yes")[0].partition("<")[0])


def test_markers_come_before_the_answer() -> None:
    bare = StoredSample("i", "s", "t", "Q?", (), (), "yes", ())
    markers = configurations()["markers"].model_validate({"replaced_steps": None})
    assert markers.layout(bare, LatentConfig())[1].text == LATENT_START + LATENT_END
    assert not markers.answers_next(bare)


def test_a_sample_without_steps_lacks_what_is_to_be_hidden() -> None:
    bare = StoredSample("i", "s", "t", "Q?", (), (), "yes", ())
    stepwise = replace(bare, steps=("Look.",), step_images=(None,))
    methods = [configurations()["amvl"].model_validate({"hidden_steps": hidden}) for hidden in (0, 1, "all")]
    assert [method.lacks(bare) for method in methods] == [None, "steps", "steps"]
    assert [method.lacks(stepwise) for method in methods] == [None] * 3


@settings(max_examples=40, deadline=None)
@given(samples(), latents, st.sampled_from(METHODS))
def test_a_sequence_has_one_block_in_order_no_label_on_it_and_as_many_tokens_as_its_method_says(
    processor: Any, sample: StoredSample, latent: LatentConfig, method: MethodConfig
) -> None:
    encoded = laid_out(Encoder(processor), method, latent, sample)
    sft = configurations()["sft"].model_validate({"replaced_steps": getattr(method, "replaced_steps", 0)})
    plain = laid_out(Encoder(processor), sft, latent, sample)
    assert len(encoded.input_ids) - len(plain.input_ids) == method.added_tokens(latent)
    convert = processor.tokenizer.convert_tokens_to_ids
    slots = convert(method.slots(latent))
    block = [convert(BLOCK_START), *slots, convert(BLOCK_END)] if method.added_tokens(latent) else []
    ids, labels = encoded.input_ids.tolist(), encoded.labels.tolist()
    places = [i for i, token in enumerate(ids) if token in {convert(BLOCK_START), *slots, convert(BLOCK_END)}]
    assert [ids[i] for i in places] == block
    assert places == list(range(places[0], places[0] + len(block))) if block else not places
    # No reply can show an image, so nothing of one is learned to be written.
    unlabelled = {*block, *convert(["<|vision_start|>", processor.image_token, "<|vision_end|>"])}
    first = next(i for i, label in enumerate(labels) if label != IGNORED)
    assert all(first > i for i in places)
    for i, (token, label) in enumerate(zip(ids, labels, strict=True)):
        assert label == (token if i >= first and token not in unlabelled else IGNORED)
