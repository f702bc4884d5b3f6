"""The parts of a run's page that are computed: tables, and the drawing of a faithfulness suite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amvl_core.contracts.records import (
    LATENTS,
    TEST_SPLIT,
    TOKENS,
    FaithfulnessRecord,
    SampledScore,
    SamplingRecord,
    VariantScore,
)
from amvl_core.eval.faithfulness import nats, points
from amvl_core.eval.significance import p_text


def suite(record: FaithfulnessRecord) -> dict[str, Any]:
    """What the template shows of one suite."""
    accuracy, likelihood = [], []
    for i, row in enumerate(record.rows):
        about = {"latents": row.variant, "n": f"{row.n:,}"}
        accuracy.append(
            {
                **about,
                "accuracy": f"{100 * row.accuracy:.1f} % ({100 * row.low:.1f}-{100 * row.high:.1f})",
                "difference": points(row) if i else "-",
                "p": p_text(row.p_value) if i else "-",
                "test": row.test if i else "-",
            }
        )
        likelihood.append(
            {
                **about,
                "log p(answer), nats": f"{row.log_likelihood:.3f} ({row.log_likelihood_low:.3f} to "
                f"{row.log_likelihood_high:.3f})",
                "difference, nats": nats(row) if i else "-",
                "p": p_text(row.log_likelihood_p) if i else "-",
                "test": "sign flips" if i else "-",
            }
        )
    return {
        "asked": f"the {TEST_SPLIT}" if record.benchmark == TEST_SPLIT else record.benchmark,
        "forest": forest(record.rows),
        "verdict": record.verdict,
        "accuracy": accuracy,
        "likelihood": likelihood,
    }


SAMPLING = (
    "Several answers to each question, in per cent with 95 % intervals over questions. Drawn latents are answered with "
    "the most likely tokens; drawn tokens stand behind the latents' mean. passed: one of the answers is right; voted: "
    "the commonest of them is."
)
"""How `sampling` is read."""


def sampling(record: SamplingRecord) -> list[dict[str, str]]:
    """One line for each source and number of answers."""

    def shown(value: float, interval: tuple[float, float]) -> str:
        return f"{100 * value:.1f} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"

    return [
        {
            "source": sampled_by(score),
            "answers": str(score.answers),
            "n": f"{score.n:,}",
            "passed": shown(score.passed, score.passed_interval),
            "voted": shown(score.voted, score.voted_interval),
        }
        for score in record.scores
    ]


def sampled_by(score: SampledScore) -> str:
    """What a source is called."""
    scale = {LATENTS: f", tau {score.scale:g}", TOKENS: f", temperature {score.scale:g}"}
    return score.source + scale.get(score.source, "")


def forest(rows: Sequence[VariantScore]) -> dict[str, Any]:
    """A dot and an interval for each variant; variants that differ from the first with p < 0.05 stand out.

    Places are per cent of the axis's length, whatever width the page gives it.
    """
    low = max(0.0, min(row.low for row in rows) - 0.02)
    high = min(1.0, max(row.high for row in rows) + 0.02)

    def x(value: float) -> str:
        return f"{100 * (value - low) / max(high - low, 1e-9):.1f}%"

    return {
        "unchanged": x(rows[0].accuracy),
        "ticks": [f"{100 * (low + tick * (high - low) / 4):.0f} %" for tick in range(5)],
        "rows": [
            {
                "name": row.variant,
                "low": x(row.low),
                "high": x(row.high),
                "x": x(row.accuracy),
                "colour": "#1d2430" if i == 0 else "#d55e00" if row.p_value < 0.05 else "#2f7d6b",
                "text": f"{100 * row.accuracy:.1f} %" + (f", p {p_text(row.p_value)}" if i else ""),
            }
            for i, row in enumerate(rows)
        ],
    }
