import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from amvl_core.contracts.records import EvalRecord, VariantScore
from amvl_core.eval.predictions import sample
from amvl_core.methods.amvl.presets import demo
from infra.reports import figures
from tests.infra.reports.test_run_report import sampled


def test_curves_show_terms_above_and_schedules_below() -> None:
    history = {
        "sft/loss": [(1, 2.0), (2, 1.0)],
        "sft/heldout_ntp": [(2, 1.5)],
        "amvl/loss": [(1, 2.0)],
        "amvl/kl_forward": [(1, 0.1)],
        "amvl/beta": [(1, 0.0)],
        "amvl/grad_norm": [(1, 9.0)],
        "amvl/seconds_left": [(1, 275.0)],
        "amvl/nobody knows this": [(1, 1.0)],
    }
    axes = figures.curves(history, demo().stages).axes
    assert [axis.get_title(loc="left") for axis in axes[:2]] == ["sft", "amvl"]
    assert [line.get_label() for line in axes[1].lines] == ["loss", "kl_forward"]
    assert [(line.get_label(), line.get_linestyle()) for line in axes[0].lines] == [
        ("loss", "-"),
        ("ntp, held out", "--"),
    ]
    assert [line.get_label() for line in axes[3].lines] == ["beta (max 0)"]
    assert axes[1].get_ylim()[1] < 3
    assert [line.get_marker() for line in (*axes[0].lines, axes[1].lines[0])] == [
        "None",
        "o",
        "o",
    ]  # one point is no line


def test_scores_have_a_bar_for_each_model_and_task_with_its_length(evaluation: Callable[..., EvalRecord]) -> None:
    axis = figures.score_chart({"base": evaluation("sft", 5), "AMVL": evaluation("amvl", 8)}).axes[0]
    assert [round(bar.get_width(), 3) for bar in axis.patches] == [0.5, 0.5, 0.5, 0.8, 0.8, 0.8]
    assert axis.get_legend_handles_labels()[1].count("majority answer") == 1


def test_several_answers_have_a_line_a_source_and_one_greedy_one_across() -> None:
    left, right = figures.sampling_chart(sampled()).axes
    lines = {line.get_label(): line for line in left.lines}
    assert list(lines) == ["greedy", "latents, tau 0.5", "latents, tau 1", "tokens, temperature 0.6"]
    assert list(lines["latents, tau 1"].get_xdata()) == [1, 2]
    assert list(lines["latents, tau 1"].get_ydata()) == [pytest.approx(52.5), pytest.approx(55.0)]
    assert list(right.lines[1].get_ydata()) == [50.0, 50.0]
    colours = [line.get_color() for line in left.lines]
    assert colours[1] == colours[2] != colours[3]
    assert lines["latents, tau 0.5"].get_linestyle() != lines["latents, tau 1"].get_linestyle()
    assert list(left.get_xticks()) == [1, 2]


def with_tasks(record: EvalRecord, count: int) -> EvalRecord:
    """`record` with `count` tasks; task number i has 10 + i questions and i % 10 of 10 right."""
    one = record.scores[0]
    scores = [
        one.model_copy(update={"task": f"chat/task {i}", "n": 10 + i, "accuracy": i % 10 / 10}) for i in range(count)
    ]
    return record.model_copy(update={"scores": scores})


def test_the_names_of_tasks_can_be_read_the_first_on_top(evaluation: Callable[..., EvalRecord]) -> None:
    pair = {name: with_tasks(evaluation(name, 5), 20) for name in ("sft", "amvl")}
    figure = figures.score_chart(pair)
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == [*(f"task {i}" for i in range(20)), "all"]
    assert axis.get_ylim() == (20.5, -0.5)
    assert [round(bar.get_width(), 3) for bar in axis.patches] == 2 * [*(i % 10 / 10 for i in range(20)), 0.5]
    assert axis.get_xlabel() == "accuracy, 95 % interval"
    figure.savefig(io.BytesIO())
    boxes = [text.get_window_extent() for text in axis.get_yticklabels()]
    assert all(above.y0 >= below.y1 for above, below in pairwise(boxes))
    assert all(box.x0 >= 0 for box in boxes)


def test_a_chart_of_very_many_tasks_shows_those_with_most_questions(evaluation: Callable[..., EvalRecord]) -> None:
    record = with_tasks(evaluation("amvl", 5), 2000)
    axis = figures.score_chart({"base": record, "AMVL": record}).axes[0]
    names = [text.get_text() for text in axis.get_yticklabels()]
    assert names == [*(f"task {i}" for i in range(1900, 2000)), "all"]
    assert axis.get_xlabel() == ("accuracy, 95 % interval; 1,900 tasks with fewer questions\nare in the table alone")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a" * 300, f"{24 * 'a'}\n..."),
        ("docs/what is on the table in this picture, and where", "docs/what is on the\ntable in this ..."),
        ("$x^$", "$x^$"),
        ("_", "-"),
        ("a|b\n<i>", "a|b <i>"),
    ],
)
def test_a_task_of_any_name_is_drawn_in_two_lines(evaluation: Callable[..., EvalRecord], name: str, shown: str) -> None:
    record = with_tasks(evaluation("amvl", 5), 12)
    odd = record.scores[0].model_copy(update={"task": name})
    figure = figures.score_chart({"AMVL": record.model_copy(update={"scores": [odd, *record.scores]})})
    figure.savefig(io.BytesIO())
    assert figure.axes[0].get_yticklabels()[0].get_text() == shown


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
            "score": float(i >= 20),
            "raw_output": "a",
        }
        for task in ("x", "y")
        for i in range(30)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "predictions.parquet")
    columns = sample(evaluation("amvl", 5).model_copy(update={"uri": str(tmp_path)}))
    assert columns["task"] == ["x"] * 12 + ["y"] * 12
    assert columns["score"][:12] == [0.0] * 6 + [1.0] * 6


def variant(name: str, accuracy: float, width: float, likelihood: float) -> VariantScore:
    return VariantScore(
        variant=name,
        n=100,
        accuracy=0.5 + accuracy,
        low=0.4,
        high=0.6,
        difference=accuracy,
        difference_low=accuracy - width,
        difference_high=accuracy + width,
        p_value=0.01,
        test="McNemar exact",
        log_likelihood=-3.0 + likelihood,
        log_likelihood_low=-4.0,
        log_likelihood_high=-2.0,
        log_likelihood_difference=likelihood,
        log_likelihood_difference_low=likelihood - 0.1,
        log_likelihood_difference_high=likelihood + 0.1,
        log_likelihood_p=0.01,
    )


def test_faithfulness_colours_what_leaves_out_zero_and_has_a_small_p() -> None:
    rows = [variant("unchanged", 0, 0, 0), variant("swapped", -0.1, 0.05, 0.0), variant("tau 1", 0.1, 0.2, 0.5)]
    left, right = figures.faithfulness_chart(rows, "a verdict").axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["swapped  (40.0%)", "tau 1  (60.0%)"]
    shown = [line for line in left.lines if len(line.get_xdata()) == 2 and line.get_linewidth() > 2]
    assert [[round(float(x), 6) for x in line.get_xdata()] for line in shown] == [[-15, -5], [-10, 30]]
    colours = [line.get_color() for line in shown]
    assert colours[0] == figures.COLOURS[1]
    assert colours[1] not in figures.COLOURS
    shown = [line for line in right.lines if len(line.get_xdata()) == 2 and line.get_linewidth() > 2]
    assert [line.get_color() in figures.COLOURS for line in shown] == [False, True]
    unsure = rows[1].model_copy(update={"p_value": 0.0625, "log_likelihood_difference_low": 0.1})
    unsure = unsure.model_copy(update={"log_likelihood_difference_high": 0.2, "log_likelihood_p": 0.06})
    for axis in figures.faithfulness_chart([rows[0], unsure], "a verdict").axes:
        assert [line.get_color() for line in axis.lines if line.get_linewidth() > 2] == [figures.BASELINE]
