from collections.abc import Callable
from pathlib import Path

from amvl_core.records import EvalRecord
from infra import figures
from infra.predictions import sample


def test_curves_show_terms_above_and_schedules_below() -> None:
    history = {
        "sft/loss": [(1, 2.0), (2, 1.0)],
        "amvl/loss": [(1, 2.0)],
        "amvl/kl_forward": [(1, 0.1)],
        "amvl/beta": [(1, 0.0)],
        "amvl/grad_norm": [(1, 9.0)],
    }
    axes = figures.curves(history, ["sft", "amvl"]).axes
    assert [axis.get_title(loc="left") for axis in axes[:2]] == ["sft", "amvl"]
    assert [line.get_label() for line in axes[1].lines] == ["loss", "kl_forward"]
    assert [line.get_label() for line in axes[3].lines] == ["beta (max 0)"]


def test_scores_have_a_bar_for_each_model_and_task_with_its_height(evaluation: Callable[..., EvalRecord]) -> None:
    axis = figures.score_chart({"base": evaluation("sft", 5), "AMVL": evaluation("amvl", 8)}).axes[0]
    assert [round(bar.get_height(), 3) for bar in axis.patches] == [0.5, 0.5, 0.5, 0.8, 0.8, 0.8]
    assert axis.get_legend_handles_labels()[1].count("majority answer") == 1


def test_the_sample_shows_every_task_and_prefers_mistakes(
    tmp_path: Path, evaluation: Callable[..., EvalRecord]
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "task": task,
            "sample_id": f"{task}{i:02d}",
            "prompt": "p",
            "answer": "a",
            "prediction": "a",
            "correct": i >= 20,
            "raw_output": "a",
        }
        for task in ("x", "y")
        for i in range(30)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "predictions.parquet")
    columns = sample(evaluation("amvl", 5).model_copy(update={"uri": str(tmp_path)}))
    assert columns["task"] == ["x"] * 12 + ["y"] * 12
    assert columns["correct"][:12] == [False] * 6 + [True] * 6
