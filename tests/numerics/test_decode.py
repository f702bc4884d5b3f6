"""Our decoding loop and scores against the stock library: `generate`, and one full forward per candidate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import stats
from transformers import Qwen2_5_VLForConditionalGeneration

from amvl_core.backbones.processor import load_processor
from amvl_core.eval.predict import Answerer
from amvl_core.methods.amvl.method import Amvl
from amvl_core.rows.decode import Prefilled, _run, greedy, log_likelihoods, prefill, sampled
from tests.tiny import SAMPLES, amvl_model, picture, stock_folder

CANDIDATES = [["red", "green square", "A"], ["yes"], [], ["A", "B", "zyxwv?"]]
NEW = 12


def stock_answerer(dtype: torch.dtype = torch.float64) -> Answerer:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(stock_folder(), dtype=dtype)
    return Answerer(model, load_processor(stock_folder()))


def answerer(kind: str) -> Answerer:
    return Answerer(*amvl_model()) if kind == "amvl" else stock_answerer()


def asked() -> tuple[list[list[bytes]], list[str]]:
    images = [[picture(10 * n + i, *size) for i, size in enumerate(sizes)] for n, (_, _, sizes) in enumerate(SAMPLES)]
    return images, [question for question, _, _ in SAMPLES]


def end_early(model: Any, inputs: Any, latent: dict[str, Any]) -> None:
    """Makes tokens that some rows generate soon, and others late or never, end tokens; one is never generated."""
    never = int(model.generate(**inputs, max_new_tokens=1, do_sample=False, **latent)[3, -1])
    model.generation_config.suppress_tokens = [*(model.generation_config.suppress_tokens or []), never]
    tokens = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, **latent)[:, inputs["input_ids"].shape[1] :]
    ends = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [ends, int(tokens[0, 1]), int(tokens[1, 4])]


@pytest.mark.parametrize(("kind", "tau"), [("amvl", 0.0), ("amvl", 0.7), ("stock", 0.0)])
def test_greedy_gives_the_tokens_of_generate_whichever_rows_end_early(kind: str, tau: float) -> None:
    ours = answerer(kind)
    prompts = ours.encode(*asked())
    latent = Amvl.drawn(ours.model, prompts.keys, tau) if tau else {}
    end_early(ours.model, prompts.inputs, latent)
    with torch.inference_mode():
        expected = ours.model.generate(**prompts.inputs, max_new_tokens=NEW, do_sample=False, **latent)
        found = greedy(ours.model, prefill(ours.model, prompts.inputs, **latent), NEW)
    pad = ours.model.generation_config.pad_token_id
    lengths = {len(tokens) for tokens in found}
    assert len(lengths) > 1 and max(lengths) <= NEW
    columns = expected[:, prompts.inputs["input_ids"].shape[1] :].tolist()
    assert [tokens + [pad] * (len(columns[0]) - len(tokens)) for tokens in found] == columns


def test_drawn_tokens_are_greedy_ones_at_a_temperature_near_zero() -> None:
    ours = answerer("amvl")
    prompts = ours.encode(*asked())
    end_early(ours.model, prompts.inputs, {})
    with torch.inference_mode():
        expected = greedy(ours.model, prefill(ours.model, prompts.inputs), NEW)
        cold = sampled(ours.model, prefill(ours.model, prompts.inputs), NEW, 1e-9, prompts.keys)
        warm = sampled(ours.model, prefill(ours.model, prompts.inputs), NEW, 1.0, prompts.keys)
    assert cold == expected != warm


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_tokens_are_drawn_as_often_as_the_softmax_says(temperature: float) -> None:
    """One token behind 4,000 equal prompts; that which is never generated is not drawn."""
    logits = torch.tensor([0.3, -1.2, 2.0, 1.1, 0.0])
    rows = 4000
    settings = SimpleNamespace(suppress_tokens=[2], eos_token_id=99)
    model: Any = SimpleNamespace(generation_config=settings, dtype=torch.float32)
    columns = torch.ones(rows, 1, dtype=torch.bool)
    start = Prefilled(None, logits.repeat(rows, 1), columns, torch.zeros(rows, dtype=torch.long))
    counts = Counter(token for (token,) in sampled(model, start, 1, temperature, range(rows)))
    logits[2] = -torch.inf
    expected = rows * (logits.double() / temperature).softmax(0)
    kept = [0, 1, 3, 4]
    assert set(counts) == set(kept)
    observed = [counts[token] for token in kept]
    assert stats.chisquare(observed, expected[kept].numpy() * sum(observed) / rows).pvalue > 0.01


@pytest.mark.parametrize("kind", ["amvl", "stock"])
def test_a_draft_changes_no_token_however_much_of_it_is_right(kind: str) -> None:
    ours = answerer(kind)
    prompts = ours.encode(*asked())
    end_early(ours.model, prompts.inputs, {})

    def answered(drafts: list[list[int]]) -> list[list[int]]:
        with torch.inference_mode():
            return greedy(ours.model, prefill(ours.model, prompts.inputs), NEW, drafts)

    expected = answered([])
    rows, wrong = range(len(expected)), 5
    assert all(wrong not in tokens for tokens in expected)
    drafts = {
        "right": expected,
        "half": [tokens[: len(tokens) // 2] for tokens in expected],
        "another's": expected[1:] + expected[:1],
        "wrong from the start": [[wrong] * NEW for _ in rows],
        "wrong somewhere": [[*tokens[:row], wrong, *tokens[row + 1 :]] for row, tokens in enumerate(expected)],
        "goes on behind the end": [[*tokens, *tokens] for tokens in expected],
        "some empty": [tokens if row % 2 else [] for row, tokens in enumerate(expected)],
        "all empty": [[] for _ in rows],
    }
    for name, draft in drafts.items():
        assert answered(draft) == expected, name


def test_a_right_draft_costs_one_run_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = answerer("amvl")
    prompts = ours.encode(*asked())
    runs: list[int] = []
    monkeypatch.setattr("amvl_core.rows.decode._run", lambda *a: (runs.append(a[2].shape[1]), _run(*a))[1])
    with torch.inference_mode():
        expected = greedy(ours.model, prefill(ours.model, prompts.inputs), NEW)
        assert len(runs) == NEW - 1
        runs.clear()
        assert greedy(ours.model, prefill(ours.model, prompts.inputs), NEW, expected) == expected
    assert runs == [NEW]


@pytest.mark.parametrize("kind", ["amvl", "stock"])
def test_log_likelihoods_are_those_of_one_full_forward_per_candidate(kind: str) -> None:
    """Worst difference seen in float64: 3e-14 nats."""
    ours = answerer(kind)
    scored_as_one_forward(ours)


def scored_as_one_forward(ours: Answerer, before: Sequence[int] = ()) -> None:
    """Asserts that candidates are scored as by one forward each, right behind `before`."""
    images, questions = asked()
    found = ours.score(images, questions, CANDIDATES)
    assert [len(scores) for scores in found] == [len(texts) for texts in CANDIDATES]
    tokenizer = ours.processor.tokenizer
    for row, texts in enumerate(CANDIDATES):
        for column, text in enumerate(texts):
            inputs = dict(ours.encode(images[row : row + 1], questions[row : row + 1]).inputs)
            tokens = torch.tensor([tokenizer(text + "<|im_end|>")["input_ids"]])
            behind = torch.cat([torch.tensor([before], dtype=torch.long), tokens], 1)
            prompt = inputs["input_ids"].shape[1] + len(before)
            inputs["input_ids"] = torch.cat([inputs["input_ids"], behind], 1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, behind.shape[1]))
            with torch.inference_mode():
                logits = ours.model(**inputs).logits[:, prompt - 1 : -1].log_softmax(-1)
            expected = float(logits.gather(-1, tokens[..., None]).sum())
            assert found[row][column] == pytest.approx(expected, abs=1e-12)


def test_scoring_leaves_the_prompts_as_they_were() -> None:
    scoring_leaves_the_prompts(answerer("amvl"))


def scoring_leaves_the_prompts(ours: Answerer) -> None:
    prompts = ours.encode(*asked())
    continuations = [[[7, 8, 9], [3]], [[5]], [], [[4, 4]]]
    with torch.inference_mode():
        start = prefill(ours.model, prompts.inputs)
        first = log_likelihoods(ours.model, start, continuations)
        assert log_likelihoods(ours.model, start, continuations) == first
        after = greedy(ours.model, start, NEW)
        assert after == greedy(ours.model, prefill(ours.model, prompts.inputs), NEW)


@pytest.mark.parametrize(("tau", "temperature"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_an_answer_does_not_depend_on_its_batch(tau: float, temperature: float) -> None:
    ours = answerer("amvl")
    images, questions = asked()
    together = ours.predict(ours.encode(images, questions), NEW, CANDIDATES, tau, temperature)
    for row in range(len(questions)):
        one = slice(row, row + 1)
        (alone,) = ours.predict(ours.encode(images[one], questions[one]), NEW, CANDIDATES[one], tau, temperature)
        assert alone.text == together[row].text
        assert alone.log_likelihoods == pytest.approx(together[row].log_likelihoods, abs=1e-12)


def test_a_pixel_budget_holds_for_one_call() -> None:
    ours = stock_answerer()
    images, questions = [[picture(0, 256, 256)]], ["What is it?"]
    before = ours.encode(images, questions).inputs["image_grid_thw"]
    small = ours.encode(images, questions, pixels=(16 * 16, 64 * 64)).inputs["image_grid_thw"]
    assert small.prod() * 16 == before.prod()
    assert torch.equal(ours.encode(images, questions).inputs["image_grid_thw"], before)
