"""Published figures, in per cent, to stand beside ours: those of a benchmark's authors and of methods' papers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from amvl_core.contracts.method import MethodConfig
from amvl_core.eval.benchmarks.benchmark import Benchmark


def published_scores(benchmark: Benchmark, methods: Iterable[type[MethodConfig]]) -> dict[str, dict[str, str]]:
    """Columns of a table: `model (whose paper)` -> metric -> score with two digits. First the benchmark's own."""
    papers: dict[str, Mapping[str, Mapping[str, float]]] = {benchmark.name: benchmark.published}
    papers |= {method.label: method.published().get(benchmark.name, {}) for method in methods}
    columns: dict[str, dict[str, str]] = {}
    for paper, metrics in papers.items():
        for metric, scores in metrics.items():
            for model, score in scores.items():
                columns.setdefault(f"{model} ({paper} paper)", {})[metric] = f"{score:.2f}"
    return columns
