from __future__ import annotations

from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from amvl_core.config import DataConfig
from amvl_core.sample import Conversation
from data_prep.layouts import STEP_END, lay_out

texts = st.text(max_size=40)


@given(texts, st.lists(texts, max_size=4), texts, st.integers(1, 64), st.sampled_from(["answer", "steps_and_answer"]))
def test_text_out_is_text_in(
    question: str, steps: list[str], answer: str, slots: int, target: Literal["answer", "steps_and_answer"]
) -> None:
    conversation = Conversation("i", "s", "train", "t", (), question, tuple(steps), answer)
    segments = lay_out(conversation, DataConfig(target=target), slots)
    wanted = steps if target == "steps_and_answer" else []
    assert [segment.kind for segment in segments] == ["prompt", "latent", *["step"] * len(wanted), "answer"]
    assert segments[0].text == question
    assert segments[-1].text == answer
    assert [segment.text for segment in segments[2:-1]] == [step + STEP_END for step in wanted]
    assert [segment.num_slots for segment in segments] == [0, slots, *[0] * len(wanted), 0]
    assert segments[1].text == ""
