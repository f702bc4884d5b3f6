"""Our decoding loop and scores with a model that feeds back, against its `generate` and one forward per candidate."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText

from amvl_core.eval.predict import Answerer
from amvl_core.rows.decode import greedy, prefill
from tests.numerics.test_decode import CANDIDATES, asked, scored_as_one_forward, scoring_leaves_the_prompts
from tests.numerics.test_valr_generation import K, slots_in_blocks, valr_model
from tests.tiny import SAMPLES

NEW = 24


def answerer(mode: str = "written") -> Answerer:
    model, processor = valr_model()
    model.config.latent_mode = mode
    return Answerer(model, processor)


def end_late(model, inputs) -> None:
    """Makes tokens that two rows write behind a block, or where one might be, end tokens."""
    tokens = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    free = ~torch.isin(
        tokens, torch.tensor([model.config.block_start_token_id, *model.generation_config.suppress_tokens])
    )
    ends = [tokens[row, place:][free[row, place:]][0] for row, place in ((0, 9), (1, 17))]
    model.generation_config.eos_token_id = [model.generation_config.eos_token_id, *map(int, ends)]


@pytest.mark.parametrize("mode", ["written", "first_step", "every_step", "never"])
def test_greedy_gives_the_tokens_of_generate_whichever_rows_end_early(mode: str) -> None:
    ours = answerer(mode)
    prompts = ours.encode(*asked())
    end_late(ours.model, prompts.inputs)
    with torch.inference_mode():
        expected = ours.model.generate(**prompts.inputs, max_new_tokens=6 * NEW, do_sample=False)
        found = greedy(ours.model, prefill(ours.model, prompts.inputs), NEW)
        drafted = greedy(ours.model, prefill(ours.model, prompts.inputs), NEW, found[1:] + found[:1])
    assert drafted == found
    block = set(ours.model.uncounted())
    for tokens, whole in zip(found, expected[:, prompts.inputs["input_ids"].shape[1] :].tolist(), strict=True):
        assert tokens == whole[: len(tokens)]
        ended = tokens[-1] in ours.model.generation_config.eos_token_id
        assert ended or sum(token not in block for token in tokens) == NEW
    assert len({len(tokens) for tokens in found}) > 1
    assert any(slots_in_blocks(ours.model.config, torch.tensor(tokens)) for tokens in found) is (mode != "never")


@pytest.mark.parametrize(("mode", "first"), [("written", True), ("written", False), ("never", True)])
def test_a_given_answer_is_scored_behind_a_block_where_replies_begin_with_one(mode: str, first: bool) -> None:
    """Worst difference seen in float64: 2e-14 nats."""
    ours = answerer(mode)
    c = ours.model.config
    c.block_first = first
    block = [c.block_start_token_id, *[c.slot_token_id] * K, c.block_end_token_id]
    before = block if first and mode != "never" else []
    scored_as_one_forward(ours, before)


def test_scoring_leaves_the_prompts_as_they_were() -> None:
    scoring_leaves_the_prompts(answerer())


def test_an_answer_does_not_depend_on_its_batch_and_says_what_it_wrote(tmp_path) -> None:
    ours = answerer("first_step")
    ours.model.save_pretrained(tmp_path)
    loaded = Answerer(AutoModelForImageTextToText.from_pretrained(tmp_path, dtype="auto"), ours.processor)
    images, questions = asked()
    together = ours.predict(ours.encode(images, questions), NEW, CANDIDATES)
    for row in range(len(SAMPLES)):
        one = slice(row, row + 1)
        (alone,) = loaded.predict(loaded.encode(images[one], questions[one]), NEW, CANDIDATES[one])
        assert alone._replace(log_likelihoods=[]) == together[row]._replace(log_likelihoods=[])
        assert alone.log_likelihoods == pytest.approx(together[row].log_likelihoods, abs=1e-12)
        assert "<latent" not in alone.text and "</latent" not in alone.text
        assert alone.blocks >= 1 and alone.latent_steps >= K
        assert alone.tokens == NEW
