"""An experiment for people: the charts, its tables as Markdown, and where they are shown."""

from amvl_core.contracts import storage
from amvl_core.contracts.comparisons import ArmRecord, ExperimentRecord
from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.records import CONSTANT, NO_BLOCK, SWAPPED, VariantScore
from amvl_core.eval.experiment import mean_probes
from amvl_core.eval.faithfulness import excludes_zero, points
from amvl_core.eval.significance import p_text, wilson
from amvl_core.experiments.experiment import Experiment, difficulty
from flows.outbox import create_link_artifact, create_markdown_artifact, create_table_artifact
from flows.pages import mlflow_page
from flows.report import markdown_table
from infra.reports.experiment import chart, slots_chart
from infra.tracking import Tracker

CHART, SLOTS_CHART, TEXT = "chart.png", "slots.png", "tables.md"
"""Below the experiment's place in the storage."""
CHANGES = (SWAPPED, CONSTANT, "zeroed", "noise", NO_BLOCK, "posterior")
"""The changes of latents that are shown; `posterior` is AMVL's oracle, which has seen the answer."""


def accuracy_rows(record: ExperimentRecord) -> list[dict[str, str]]:
    """One line an arm: accuracy by difficulty and in all, what its replies have, and what its training took."""
    tasks = sorted(record.chance, key=difficulty)
    cheapest = min(arm.flops for arm in record.arms)
    rows = [
        {
            "arm": arm.label,
            "replies": "steps in words" if arm.writes else "bare answers",
            "lr": f"{arm.rate:g}",
            **({"tried": _tried(arm)} if any(each.validated for each in record.arms) else {}),
            **{str(difficulty(task)): _mean([one.accuracies[task] for one in arm.trained.values()]) for task in tasks},
            "all": f"{100 * arm.scores.mean:.1f}" if arm.trained else "failed",
            "each seed": " ".join(f"{100 * value:.1f}" for value in arm.scores.accuracies.values()) or "-",
            "over seeds": _range(arm.scores.over_seeds),
            "over items": _range(arm.scores.over_items) if arm.trained else "-",
            "tokens": _number([one.tokens for one in arm.trained.values()]),
            "slots": _number([one.slots for one in arm.trained.values()]),
            "FLOPs": f"{arm.flops / cheapest:.2f}",
        }
        for arm in record.arms
    ]
    return [*rows, {**dict.fromkeys(rows[0], "-"), "arm": "commonest answer", **_chance(record)}]


def seed_rows(record: ExperimentRecord) -> list[dict[str, str]]:
    """One line a training: accuracy by difficulty. What one seed learns another may not."""
    tasks = sorted(record.chance, key=difficulty)
    return [
        {
            "arm": arm.label,
            "seed": str(seed),
            **{str(difficulty(task)): f"{100 * one.accuracies[task]:.1f}" for task in tasks},
        }
        for arm in record.arms
        for seed, one in arm.trained.items()
    ]


def latent_rows(record: ExperimentRecord) -> list[dict[str, str]]:
    """What each change of the latents costs, in points for each seed; nats of the swap; and what the rule says."""
    return [
        {
            "arm": arm.label,
            **{change: _each(arm, change) for change in CHANGES},
            "swapped, nats": " ".join(f"{row.log_likelihood_difference:+.2f}" for row in _of(arm, SWAPPED)) or "-",
            "latents matter": {True: "yes", False: "no", None: "-"}[arm.matters],
        }
        for arm in record.arms
        if arm.role == "latent"
    ]


def control_rows(record: ExperimentRecord) -> list[dict[str, str]]:
    """Each latent arm against each control that writes as much: points with their 95 % interval, seeds pooled."""
    controls = list(dict.fromkeys(label for arm in record.arms for label in arm.against))
    return [
        {"arm": arm.label, **{label: _against(arm, label) for label in controls}} for arm in record.arms if arm.against
    ]


def probe_rows(record: ExperimentRecord) -> list[dict[str, str]]:
    """One line a latent arm and step: what linear probes read from the state before the block, and from the slots."""
    return [
        {
            "arm": arm.label,
            "step": str(probe.step),
            "n": f"{probe.n:,}",
            "commonest": f"{100 * probe.majority:.1f}",
            "prompt": _interval(probe.prompt, probe.n),
            "best slot": f"{1 + probe.slots.index(max(probe.slots))}: {_interval(max(probe.slots), probe.n)}",
            "all slots": " ".join(f"{100 * value:.0f}" for value in probe.slots),
        }
        for arm in record.arms
        for probe in mean_probes(arm)
    ]


def markdown(chosen: Experiment, record: ExperimentRecord) -> str:
    """The tables with what must be known to read them."""
    seeds = sorted({seed for arm in record.arms for seed in arm.trained})
    parts = [
        f"## {chosen.title}",
        f"Experiment `{record.name}`, record `{record.fingerprint}`, dataset `{record.dataset}`, seeds "
        f"{', '.join(map(str, seeds))}. All arms start from one checkpoint and train for as many steps.",
        "Accuracy in per cent by the number of dependent steps, mean of the seeds. `over seeds`: Student's 95 % "
        "interval of the seeds' means. `over items`: 95 % bootstrap over questions, with one seed of independent "
        "questions Wilson's interval. `tokens`, `slots`: of a reply, on the average. `FLOPs`: of all matrix "
        "products of the arm's own training, the cheapest arm being 1. `tried`, where rates were chosen: the accuracy "
        "of each on the validation questions.",
        markdown_table(accuracy_rows(record)),
        "Each training: accuracy in per cent by the number of dependent steps.",
        markdown_table(seed_rows(record)),
    ]
    if latents := latent_rows(record):
        parts += [
            "What changed latents cost, in points, each seed with its 95 % interval; `posterior` has seen the answer. "
            "Latents matter where `swapped` and `constant` cost accuracy in every seed and the arm beats every "
            "control that writes as much, each with its interval on one side of 0 and p < 0.05. p is given where it "
            "is not, and the interval is on one side.",
            markdown_table(latents),
            "Latent arms against controls: difference in points with its 95 % interval, paired by question, seeds "
            "pooled.",
            markdown_table(control_rows(record)),
        ]
    if probes := probe_rows(record):
        parts += [
            "What the slots hold: the share of test questions for which a linear probe gives the text of a written "
            "step, in per cent, mean of the seeds. Each question is held out of its probe's fit. `n`: questions with "
            "that step. `commonest`: the share of its commonest text. `prompt`: the probe of the state at the last "
            "token before the block. `all slots`: from the first on. Intervals are Wilson's 95 % over the questions of "
            "one seed; the best of several slots is too high by chance.",
            markdown_table(probes),
        ]
    failed = [f"- {arm.label}, seed {seed}: {why}" for arm in record.arms for seed, why in arm.failed.items()]
    if failed:
        parts.append("Failed, and not in the means:\n\n" + "\n".join(failed))
    return "\n\n".join(parts) + "\n"


def show(config: RunConfig, chosen: Experiment, record: ExperimentRecord, tracker: Tracker) -> str:
    """Charts and tables: in the storage, on the run's page, and on the tracking page, whose address is returned."""
    text, figures = markdown(chosen, record), {CHART: chart(record, chosen.title)}
    if slots := slots_chart(record):
        figures[SLOTS_CHART] = slots
    storage.write_bytes(storage.join(record.uri, TEXT), text.encode())
    for name, figure in figures.items():
        with storage.writing(storage.join(record.uri, name)) as path:
            figure.savefig(path, format="png", dpi=150)
    create_markdown_artifact(text, key=f"experiment-{record.name}", description=chosen.title)
    create_table_artifact(accuracy_rows(record), key=f"experiment-{record.name}-accuracy", description=chosen.title)
    page = mlflow_page(config, record.run_id)
    create_link_artifact(page, key="mlflow-run", link_text="the experiment in MLflow", description="Nested runs, chart")
    if tracker.run_id == record.run_id:  # else the run that computed it has them
        for name, figure in figures.items():
            tracker.figure(f"figures/{name}", figure)
        tracker.note(text, f"tables/{TEXT}")
    return page


def _tried(arm: ArmRecord) -> str:
    return ", ".join(f"{rate}: {100 * score:.1f}" for rate, score in arm.validated.items()) or "-"


def _of(arm: ArmRecord, change: str) -> list[VariantScore]:
    return [row for one in arm.trained.values() for row in one.variants if row.variant == change]


def _each(arm: ArmRecord, change: str) -> str:
    found = _of(arm, change)
    told = (f"{points(row)}{_why(row.difference_low, row.difference_high, row.p_value)}" for row in found)
    return "; ".join(told) or "-"


def _against(arm: ArmRecord, label: str) -> str:
    scores = arm.against.get(label)
    if scores is None or scores.difference is None or scores.difference_interval is None or scores.p_value is None:
        return "-"
    low, high = scores.difference_interval
    return f"{100 * scores.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}){_why(low, high, scores.p_value)}"


def _why(low: float, high: float, p: float) -> str:
    """The p of a difference that its interval alone would show."""
    return f", p {p_text(p)}" if excludes_zero(low, high) and p >= 0.05 else ""


def _chance(record: ExperimentRecord) -> dict[str, str]:
    by_task = {str(difficulty(task)): f"{100 * value:.1f}" for task, value in record.chance.items()}
    return {**by_task, "all": _mean(list(record.chance.values()))}


def _interval(share: float, n: int) -> str:
    low, high = wilson(share * n, n)
    return f"{100 * share:.1f} ({100 * low:.0f} to {100 * high:.0f})"


def _mean(values: list[float]) -> str:
    return f"{100 * sum(values) / len(values):.1f}" if values else "-"


def _number(values: list[float]) -> str:
    return f"{sum(values) / len(values):.1f}" if values else "-"


def _range(bounds: tuple[float, float] | None) -> str:
    return "-" if bounds is None else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}"
