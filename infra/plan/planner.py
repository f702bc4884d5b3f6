"""What a run will take, before anything is rented: parameters, memory per GPU, FLOPs, hours, and what limits it."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from typing import Any, Literal, NamedTuple

from amvl_core.contracts import ablations
from amvl_core.contracts.config import RunConfig, StageConfig, override
from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.overrides import parse
from amvl_core.data.heldout import evaluations, interval, num_heldout
from amvl_core.data.order import num_steps, rows_of_share
from amvl_core.methods.cost import Cost, RowsOfStep
from amvl_core.rows.flops import vision_flops
from infra.plan import evaluation, memory
from infra.plan.evaluation import EvaluationPlan
from infra.plan.machines import GIB, MACHINES, NVLINK_GB_S, RESERVE_GIB, UTILISATION, Machines
from infra.plan.memory import OFFLOADS, Moment, Offload, States, Step
from infra.plan.shapes import ModelShape, model_shape, parameters
from infra.plan.workload import Workload, assumed

CHECKPOINT_BYTES = 12
"""Of a trained parameter: its float32 weight and AdamW's two moments (docs/decisions/17)."""


@dataclass(frozen=True)
class Change:
    """Fields that would have to be set, by their path, and the memory that would then be needed."""

    fields: dict[str, Any]
    gib: float

    @property
    def parameters(self) -> list[str]:
        """The fields as `--param` takes them."""
        return [f"{path}={v if isinstance(v, str) else json.dumps(v)}" for path, v in self.fields.items()]


@dataclass(frozen=True)
class StagePlan:
    """One stage. Memory is of its longest samples in GiB; FLOPs, tokens and seconds are of one optimiser step.

    `sent_gb` is what each GPU sends to others in a step, `checkpoint_gb` what it writes of a checkpoint (GB of 10^9
    bytes). `host_gib` is what the workers of one node keep in its CPUs' memory (`trainer.offload`). `start_gib` is what
    a GPU holds while the weights come, `start_host_gib` what a node's CPUs then hold of them. `change` makes a stage
    fit that does not; each of `less_network` fits and sends less, where the network limits a stage. `sent_twice`: the
    gradients of its layers go out twice a micro-batch, once after each part of backward. FLOPs and hours are by way:
    the first is how the stage is run, the others are what its method compares it with.
    """

    method: str
    trained: list[str]
    steps: int
    tokens_per_step: int
    memory_gib: dict[str, float]
    needed_gib: float
    host_gib: float
    start_gib: float
    start_host_gib: float
    peak_at: str
    fits: bool
    change: Change | None
    largest_micro_tokens: int
    flops_per_step: dict[str, float]
    hours: dict[str, float]
    way: str
    sent_gb: float
    network_seconds: float
    network_share: float
    sent_twice: bool
    checkpoint_gb: float
    limited_by: Literal["memory", "compute", "network"]
    less_network: list[Change]


@dataclass(frozen=True)
class Plan:
    """A whole run; `hours` by the way that each stage is run, `hours_by_way` with that way wherever a stage has it.

    `control_hours` come on top: training of `evaluation.controls`, by label.
    """

    base: str
    shape_source: str
    machines: Machines
    num_gpus: int
    utilisation: float
    workload: Workload
    parameters: dict[str, int]
    stages: dict[str, StagePlan]
    hours: float
    hours_by_way: dict[str, float]
    control_hours: dict[str, float]
    evaluation: EvaluationPlan

    @property
    def fits(self) -> bool:
        """Whether every stage and the evaluation fit."""
        return self.evaluation.fits and all(stage.fits for stage in self.stages.values())


def plan(
    config: RunConfig,
    machines: Machines = MACHINES["A100-80GB"],
    utilisation: float = UTILISATION,
    workload: Workload | None = None,
) -> Plan:
    """The plan of `config` on `cluster.num_workers` GPUs of `machines`.

    `workload` is assumed from `config.data` where it is not given. Raises ConfigError where the base is not known.
    """
    if not 0 < utilisation <= 1:
        raise ConfigError(f"utilisation is a share of the peak above 0 and at most 1, not {utilisation}")
    shape = model_shape(config.model)
    workload = workload or assumed(config.data, shape)
    job = _Job(config, shape, workload, machines, utilisation)
    stages = {name: job.stage(name) for name in config.stages}
    own = [job.parameters(stage) for stage in config.stages.values()]
    # The last stages have the most ways: they come first.
    ways = dict.fromkeys(way for stage in reversed(stages.values()) for way in stage.hours)
    return Plan(
        base=config.model.base,
        shape_source=shape.source,
        machines=machines,
        num_gpus=config.cluster.num_workers,
        utilisation=utilisation,
        workload=workload,
        parameters={part: count for parts in own for part, count in parts.items()},
        stages=stages,
        hours=sum(stage.hours[stage.way] for stage in stages.values()),
        hours_by_way={
            way: sum(stage.hours.get(way, stage.hours[stage.way]) for stage in stages.values()) for way in ways
        },
        control_hours={
            label: sum(_Job(control, shape, workload, machines, utilisation).hours(config))
            for label, control in ablations.controls(config).items()
        },
        evaluation=evaluation.plan(config, shape.text, job.largest_model(), job.width, workload.longest, machines),
    )


class _How(NamedTuple):
    """What may be changed to make a stage fit."""

    micro_tokens: int
    checkpointing: bool
    zero_stage: int
    workers: int
    offload: Offload


@dataclass(frozen=True)
class _Job:
    config: RunConfig
    shape: ModelShape
    workload: Workload
    machines: Machines
    utilisation: float

    def hours(self, known: RunConfig) -> Iterator[float]:
        """Of each stage that `known` does not have."""
        for name in self.config.stages:
            if name not in known.stages:
                stage = self.stage(name)
                yield stage.hours[stage.way]

    def stage(self, name: str) -> StagePlan:
        stage = self.config.stages[name]
        how = self.how(stage)
        parts, peak_at = self.memory(stage, how)
        needed = sum(parts.values())
        fits = needed <= self.machines.memory_gib
        per_step = {way: value * stage.global_batch for way, value in self.flops(stage).items()}
        way = next(iter(per_step))
        heldout = num_heldout(self.config.heldout.samples, self.workload.rows)
        rows = rows_of_share(self.workload.rows - heldout, stage.data_share)
        steps = num_steps(stage.epochs, stage.steps, rows, stage.global_batch)
        every = interval(self.config.heldout.every, heldout, stage.global_batch) if heldout else steps
        forwards, text = heldout * evaluations(steps, every), self.text(stage)
        ways = self.cost(stage).ways(self.workload.prompt, self.workload.answer)
        network = {name: self.network_seconds(stage, how, of) for name, of in ways.items()}
        pace = how.workers * self.machines.peak_flops * self.utilisation
        share = network[way] / (network[way] + per_step[way] / pace)
        limited_by: Literal["memory", "compute", "network"] = "memory"
        if fits:
            limited_by = "network" if share > 0.5 else "compute"
        return StagePlan(
            method=stage.method.kind,
            trained=[part for part, count in self.trained(stage).items() if count],
            steps=steps,
            tokens_per_step=stage.global_batch * (self.workload.prompt + self.workload.answer),
            memory_gib={part: round(gib, 3) for part, gib in parts.items()},
            needed_gib=round(needed, 2),
            host_gib=round(self.states(stage, how).host / GIB * min(how.workers, self.machines.gpus_per_node), 2),
            **self.start(stage, how),
            peak_at=peak_at,
            fits=fits,
            change=None if fits else self.smallest_change(name, how),
            largest_micro_tokens=max(self.fitting_budgets(stage, how), default=0),
            flops_per_step=per_step,
            hours={
                way: (steps * (network[way] + value / pace) + forwards * (text[way] + self.vision()) / pace) / 3600
                for way, value in per_step.items()
            },
            way=way,
            sent_gb=round(self.sent(stage, how, ways[way]) / 1e9, 2),
            network_seconds=round(network[way], 3),
            network_share=round(share, 3),
            sent_twice=how.workers > 1 and how.zero_stage >= 2 and ways[way].cut and stage.trainable != "new_rows",
            checkpoint_gb=round(CHECKPOINT_BYTES * sum(self.trained(stage).values()) / how.workers / 1e9, 3),
            limited_by=limited_by,
            less_network=list(self.less_network(name, how)) if limited_by == "network" else [],
        )

    def how(self, stage: StageConfig) -> _How:
        """What is configured."""
        trainer = self.config.trainer
        workers = self.config.cluster.num_workers
        return _How(stage.micro_tokens, trainer.gradient_checkpointing, trainer.zero_stage, workers, trainer.offload)

    def cost(self, stage: StageConfig) -> Cost:
        """What a step of its method takes."""
        return stage.method.cost(self.config.latent)

    def parameters(self, stage: StageConfig) -> dict[str, int]:
        return {**parameters(self.shape), **self.cost(stage).parts(self.shape.text.hidden_size)}

    def trained(self, stage: StageConfig) -> dict[str, int]:
        """Parameters with gradients and optimiser states (`amvl_core/train/engine.py`: set_trainable).

        Where only new rows are trained, the whole embedding has them: AdamW knows no rows.
        """
        counts = self.parameters(stage)
        if stage.trainable == "new_rows":
            text = self.shape.text
            return {part: text.vocab_size * text.hidden_size if part == "embeddings" else 0 for part in counts}
        return {part: 0 if part == "vision" and stage.trainable != "all" else n for part, n in counts.items()}

    def states(self, stage: StageConfig, how: _How) -> States:
        """What outlives a step."""
        total, trained = sum(self.parameters(stage).values()), sum(self.trained(stage).values())
        total *= 1 + self.cost(stage).frozen_models
        return memory.states(total, trained, self.width, how.zero_stage, how.workers, how.offload, self.largest)

    def start(self, stage: StageConfig, how: _How) -> dict[str, float]:
        """What a stage needs while its weights come.

        ZeRO-3 shares one weight after the other, so one of them is whole beside the shares; else the whole model moves.
        The workers of a node map one file. In float32 each makes its own of it, because bases are published in bf16.
        """
        states, whole = self.states(stage, how), self.width * sum(self.parameters(stage).values())
        whole *= 1 + self.cost(stage).frozen_models
        copies = 1 if self.width == 2 else min(how.workers, self.machines.gpus_per_node)
        gpu = states.weights + self.width * self.largest if how.zero_stage == 3 else whole
        return {"start_gib": round(gpu / GIB, 2), "start_host_gib": round(copies * whole / GIB, 2)}

    def largest_model(self) -> int:
        """Parameters of the largest model of a stage."""
        return max(sum(self.parameters(stage).values()) for stage in self.config.stages.values())

    @property
    def largest(self) -> int:
        """Parameters of the largest weight."""
        return self.shape.text.vocab_size * self.shape.text.hidden_size

    @property
    def width(self) -> int:
        """Bytes of a weight."""
        return 2 if self.config.trainer.precision == "bf16" else 4

    def memory(self, stage: StageConfig, how: _How) -> tuple[dict[str, float], str]:
        """GiB by part at the worst moment, and which moment that is."""
        samples = self.workload.filling(how.micro_tokens)
        vision = self.shape.vision
        patches = sum(sample.image_tokens for sample in samples) * vision.spatial_merge_size**2
        packed = [self.cost(stage).step(sample.prompt, sample.answer) for sample in samples]
        step = Step(
            rows=memory.joined([of.rows for of in packed]),
            labels=sum(sample.labels * of.draws for sample, of in zip(samples, packed, strict=True)),
            patches=patches if stage.trainable == "all" else 0,
            width=self.width,
            checkpointing=how.checkpointing,
            trained=stage.trainable != "new_rows",
            cut=packed[0].cut,
        )
        peak = memory.step_peak(self.shape.text, vision, step)
        states = self.states(stage, how)
        if states.stepping > peak.total:
            peak = Moment("optimiser step", workspace=states.stepping)
        parts = {
            "weights": states.weights,
            "gradients": states.gradients,
            "waiting gradients": peak.waiting_gradients,
            "optimiser": states.optimiser,
            "activations": peak.activations,
            "logits": peak.logits,
            "prefix K/V": peak.key_values,
            "buffers": states.buffers + peak.workspace,
        }
        return {**{part: value / GIB for part, value in parts.items()}, "reserve": RESERVE_GIB}, peak.name

    def flops(self, stage: StageConfig) -> dict[str, float]:
        """FLOPs of one mean sample by way, as they are run: with the recomputation, without gradients of frozen
        weights.
        """
        again = 1 if self.config.trainer.gradient_checkpointing else 0
        passes = 1 + again + (1 if stage.trainable == "new_rows" else 2)
        vision = self.vision() * (passes if stage.trainable == "all" else 1)
        return {way: text + vision for way, text in self.text(stage, passes).items()}

    def text(self, stage: StageConfig, passes: int = 1) -> dict[str, float]:
        """FLOPs of so many passes of one mean sample over the text stack, by way."""
        load = self.workload
        ways = self.cost(stage).ways(load.prompt, load.answer)
        return {way: of.flops(self.shape.text, load.labels, passes) for way, of in ways.items()}

    def vision(self) -> float:
        """FLOPs of the vision encoder's forward pass of one mean sample."""
        patches = self.workload.image_tokens * self.shape.vision.spatial_merge_size**2
        return vision_flops(self.shape.vision, patches, self.workload.images)

    def summed(self, stage: StageConfig, of: RowsOfStep) -> int:
        """Gradients that a micro-batch sums over ranks; those of the layers after each row where the graph is cut."""
        trained = self.trained(stage)
        return sum(trained.values()) + (trained["language"] * (len(of.rows) - 1) if of.cut else 0)

    def network_seconds(self, stage: StageConfig, how: _How, of: RowsOfStep) -> float:
        """Of one optimiser step of these rows, nothing overlapped: DeepSpeed's default below stage 3.

        One ring through all GPUs: the link between two nodes carries what one GPU sends.
        """
        speed = NVLINK_GB_S if how.workers <= self.machines.gpus_per_node else self.machines.node_gb_s
        return self.sent(stage, how, of) / (speed * 1e9)

    def sent(self, stage: StageConfig, how: _How, of: RowsOfStep) -> float:
        """Bytes that each GPU sends in one optimiser step of these rows.

        Gradients are summed once a step at stages 0 and 1 and after each backward call at 2 and 3; stage 3 gathers the
        weights for each row forward and backward.
        """
        total, trained = sum(self.parameters(stage).values()), sum(self.trained(stage).values())
        tokens = stage.global_batch * (self.workload.prompt + self.workload.answer)
        most = max(1, stage.global_batch // how.workers)
        micro_steps = min(most, math.ceil(tokens / (how.workers * how.micro_tokens)))
        summed = self.summed(stage, of)
        elements = {
            0: 2 * trained,
            1: 2 * trained,
            2: micro_steps * summed + trained,
            3: micro_steps * (summed + 2 * len(of.rows) * total),
        }[how.zero_stage]
        return elements * self.width * (how.workers - 1) / how.workers

    def needed(self, stage: StageConfig, how: _How) -> float:
        return sum(self.memory(stage, how)[0].values())

    def smallest_change(self, name: str, now: _How) -> Change | None:
        """As few fields as possible, the cheapest first; then more GPUs; None where nothing helps."""
        return next(self.changes(name, now, _alternatives(now, self.workload.longest)), None)

    def less_network(self, name: str, now: _How) -> Iterator[Change]:
        """Of micro_tokens and of the ZeRO stage the nearest value that sends least, where that is less than `now`."""
        stage = self.config.stages[name]
        of = self.cost(stage).step(self.workload.prompt, self.workload.answer)
        seconds = partial(self.network_seconds, stage, of=of)
        budgets = [budget for budget in self.fitting_budgets(stage, now) if budget > now.micro_tokens]
        zeros = [
            zero
            for zero in range(now.zero_stage - 1, max(1, OFFLOADS[now.offload]) - 1, -1)
            if all(  # it is every stage's
                self.needed(other, self.how(other)._replace(zero_stage=zero)) <= self.machines.memory_gib
                for other in self.config.stages.values()
            )
        ]
        for ways in (
            [now._replace(micro_tokens=budget) for budget in budgets],
            [now._replace(zero_stage=zero) for zero in zeros],
        ):
            less = sorted((how for how in ways if seconds(how) < seconds(now)), key=seconds)
            yield from islice(self.changes(name, now, less), 1)

    def changes(self, name: str, now: _How, ways: Iterable[_How]) -> Iterator[Change]:
        """Those of `ways` that fit and that the configuration allows."""
        stage = self.config.stages[name]
        paths = (
            f"stages.{name}.micro_tokens",
            "trainer.gradient_checkpointing",
            "trainer.zero_stage",
            "cluster.num_workers",
            "trainer.offload",
        )
        for how in ways:
            if (needed := self.needed(stage, how)) > self.machines.memory_gib:
                continue
            new = {path: value for path, value, old in zip(paths, how, now, strict=True) if value != old}
            change = Change(new, round(needed, 2))
            if self.allowed(change):
                yield change

    def allowed(self, change: Change) -> bool:
        """Whether the configuration takes it: a batch has to be divided over the workers, for one."""
        try:
            override(self.config, parse(change.parameters))
        except ConfigError:
            return False
        return True

    def fitting_budgets(self, stage: StageConfig, how: _How) -> list[int]:
        """The budgets that fit, in longest samples, at most a rank's share of them.

        One more of the same sample never takes less memory, so the first that does not fit is found by halving.
        """
        share, longest = math.ceil(stage.global_batch / how.workers), self.workload.longest
        budgets = range(longest, (share + 1) * longest, longest)
        fitting = bisect_right(
            budgets, self.machines.memory_gib, key=lambda budget: self.needed(stage, how._replace(micro_tokens=budget))
        )
        return list(budgets[:fitting])


def _alternatives(now: _How, longest: int) -> Iterator[_How]:
    """Ways to run the same stage with less memory, in the order in which one would try them.

    A budget below the `longest` sample saves nothing: that sample runs all the same.
    """
    halvings = max(0, math.floor(math.log2(now.micro_tokens / longest)))
    smaller = [now.micro_tokens // 2**i for i in range(halvings + 1)]
    offloads = [offload for offload in OFFLOADS if OFFLOADS[offload] >= OFFLOADS[now.offload]]
    same = [
        _How(budget, checkpointing, zero, now.workers, offload)
        for offload, checkpointing, zero, budget in product(
            offloads, sorted({now.checkpointing, True}), range(now.zero_stage, 4), smaller
        )
        if zero >= OFFLOADS[offload]
    ]
    yield from sorted(same[1:], key=lambda how: sum(new != old for new, old in zip(how, now, strict=True)))
    for doubling in range(1, 8):
        yield _How(min(now.micro_tokens, longest), True, 3, now.workers * 2**doubling, now.offload)
