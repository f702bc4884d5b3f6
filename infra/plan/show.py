"""The plan as text: what a person reads before renting machines."""

from __future__ import annotations

from rich.console import Console, Group
from rich.table import Table

from infra.plan.machines import GIB
from infra.plan.planner import Change, Plan, StagePlan


def text(plan: Plan, width: int = 120) -> str:
    """The plan as plain text."""
    console = Console(width=width, no_color=True, force_terminal=False)
    with console.capture() as captured:
        console.print(tables(plan))
    return captured.get()


def tables(plan: Plan) -> Group:
    """Parameters, memory and time as tables, with what limits each stage under them."""
    load, machines = plan.workload, plan.machines
    head = (
        f"{plan.base} (shape: {plan.shape_source}) on {plan.num_gpus} x {machines.gpu}, "
        f"{machines.gpus_per_node} a node that sends {machines.node_gb_s:g} GB/s\n"
        f"{load.rows:,} rows; mean sample {load.prompt} + {load.answer} tokens, {load.labels} of them labels; "
        f"longest {load.longest}\n"
    )
    return Group(head, _parameters(plan), "", _memory(plan), "", _time(plan), "", *_conclusions(plan))


def _parameters(plan: Plan) -> Table:
    table = _table("Parameters", "part", "count", "GiB in bf16", *(f"{name}" for name in plan.stages))
    for part, count in plan.parameters.items():
        trained = ["trained" if part in stage.trained else "frozen" for stage in plan.stages.values()]
        table.add_row(part, f"{count:,}", f"{2 * count / GIB:.2f}", *(trained if count else ["-"] * len(trained)))
    total = sum(plan.parameters.values())
    table.add_row("all", f"{total:,}", f"{2 * total / GIB:.2f}", *[""] * len(plan.stages), style="bold")
    return table


def _memory(plan: Plan) -> Table:
    table = _table(f"Memory per GPU, GiB of {plan.machines.memory_gib:g}, longest samples", "part", *plan.stages)
    stages = list(plan.stages.values())
    for part in stages[0].memory_gib:
        table.add_row(part, *(f"{stage.memory_gib[part]:.2f}" for stage in stages))
    table.add_row("all", *(f"{stage.needed_gib:.2f}" for stage in stages), style="bold")
    if any(stage.host_gib for stage in stages):
        table.add_row("in the memory of a node's CPUs", *(f"{stage.host_gib:.2f}" for stage in stages))
    table.add_row("at", *(stage.peak_at for stage in stages))
    table.add_row("while the weights come", *(f"{stage.start_gib:.2f}" for stage in stages))
    table.add_row("and of a node's CPUs, at most", *(f"{stage.start_host_gib:.2f}" for stage in stages))
    table.add_row("largest micro_tokens that fits", *(f"{stage.largest_micro_tokens:,}" for stage in stages))
    return table


def _time(plan: Plan) -> Table:
    stages = list(plan.stages.values())
    title = f"Time at {plan.utilisation:.0%} of {plan.machines.peak_flops / 1e12:.0f} TFLOP/s a GPU"
    table = _table(title, "", *plan.stages, "run")
    table.add_row("optimiser steps", *(f"{s.steps:,}" for s in stages), f"{sum(s.steps for s in stages):,}")
    table.add_row("tokens per step", *(f"{s.tokens_per_step:,}" for s in stages), "")
    for way, total in plan.hours_by_way.items():
        name = way.replace("_", " ")
        chosen = [s if way in s.hours else None for s in stages]
        table.add_row(
            f"PFLOP per step, {name}",
            *("-" if s is None else f"{s.flops_per_step[way] / 1e15:.3g}" for s in chosen),
            "",
        )
        hours = ["-" if s is None else f"{s.hours[way]:.3g}" for s in chosen]
        table.add_row(f"hours, {name}", *hours, f"{total:.3g}", style="bold")
    table.add_row("GB that each GPU sends per step", *(f"{s.sent_gb:.1f}" for s in stages), "")
    table.add_row("seconds of the network per step", *(f"{s.network_seconds:.2f}" for s in stages), "")
    table.add_row("share of the network", *(f"{s.network_share:.0%}" for s in stages), "")
    table.add_row("GB of a checkpoint that each GPU writes", *(f"{s.checkpoint_gb:.2f}" for s in stages), "")
    return table


def _conclusions(plan: Plan) -> list[str]:
    found = [f"{name}: {_conclusion(stage, plan)}" for name, stage in plan.stages.items()]
    found.append(_evaluation(plan))
    if plan.control_hours:
        each = ", ".join(f"{label} {hours:.3g} h" for label, hours in plan.control_hours.items())
        found.append(f"controls, trained besides: {each}; --param 'evaluation.controls=[]' leaves them out")
    return found


def _evaluation(plan: Plan) -> str:
    asked = plan.evaluation
    gpus = asked.gpus
    needed = f"{asked.needed_gib:.1f} GiB{' each' * (gpus > 1)}; ZeRO shares nothing there"
    on = "one GPU" if gpus == 1 else f"{gpus} GPUs a model"
    if asked.fits:
        return f"evaluation fits {on} ({needed})"
    if gpus > (most := plan.machines.gpus_per_node):
        return f"evaluation does not fit: {on}, and a node has {most}; set cluster.evaluation_gpus lower"
    fields = {"evaluation.batch_tokens": asked.fitting_tokens, "cluster.evaluation_gpus": asked.fitting_gpus}
    changes = " or ".join(f"--param {path}={value}" for path, value in fields.items() if value)
    return (
        f"evaluation does not fit {on}: it needs {needed}, and the GPU has {plan.machines.memory_gib:g}; "
        f"{changes or 'no evaluation.batch_tokens and no cluster.evaluation_gpus'} makes it fit"
    )


SENT_TWICE = (
    "; its layers' gradients are sent twice a micro-batch, once after each part of backward, "
    "which trainer.zero_stage 0 and 1 do not do"
)


def _conclusion(stage: StagePlan, plan: Plan) -> str:
    if stage.fits:
        return _limit(stage) + (SENT_TWICE if stage.sent_twice and stage.network_share >= 0.1 else "")
    needed = f"needs {stage.needed_gib:.1f} GiB, the GPU has {plan.machines.memory_gib:g}; "
    if stage.change is None:
        waiting = stage.memory_gib["waiting gradients"]
        why = f" ({waiting:.1f} GiB are gradients that wait, whatever ZeRO shares)" if waiting else ""
        return f"{needed}no setting makes it fit{why}"
    return needed + f"{_change(stage.change)} makes it fit ({stage.change.gib:.1f} GiB)"


def _limit(stage: StagePlan) -> str:
    if stage.limited_by == "network":
        advice = " or ".join(map(_change, stage.less_network))
        return f"fits; limited by the network between the nodes ({stage.network_share:.0%} of the time): " + (
            f"{advice} sends less" if advice else "no other micro_tokens or trainer.zero_stage that fits sends less"
        )
    return "fits; limited by the GPUs' matrix products"


def _change(change: Change) -> str:
    return " ".join(f"--param {field}" for field in change.parameters)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table
