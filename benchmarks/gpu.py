"""Everything that a first contact with a GPU has to show: `python -m benchmarks.gpu`.

No weights are downloaded: they are random, and made on the device. The last line is one JSON object; the exit status is
1 if one of its `checks` (value, limit, ok) does not hold:

- `exact`: loss and gradient of packed rows against the stock model, and of the shared prefix against three passes, in
  fp32 and bf16, relative to the norm;
- `resume`: one rank (nccl on a GPU) trains through the real engine, is killed and goes on: 0 where weights and
  losses are those of a run that nobody killed, to the last bit; `evaluation`: test questions without an answer;
- `memory`: the peak of a training step against the planner's (`infra/plan/memory.py`), relative;
- `attention`: the one that is used, and others that the machine has, against each sequence alone
  (`benchmarks/attention.py`);
- `patches`: the patch embedding as a matrix product against the stock convolution (`benchmarks/patches.py`).

`steps` are training steps of the 7B shape with checkpointing, with as many of its layers as the planner says fit, each
with `tokens_per_s`, `mfu` (recomputation not counted), `seconds` and `peak_gib` beyond weights and gradients.
`--device cpu --size tiny` runs the same code on a shape of 3 layers without a GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from amvl_core.contracts.records import Place
from amvl_core.data.batch import Batch
from amvl_core.eval.evaluation import Evaluation, EvaluationWorker
from amvl_core.methods.cost import RowsOfStep
from amvl_core.methods.feedback.cost import fed_back_rows
from amvl_core.methods.method import Clock, StepOutput
from amvl_core.rows.flops import rows_flops, sft_rows
from benchmarks import attention, feedback, patches
from benchmarks.attention import relative
from benchmarks.measure import Step, device_name, interleaved, peak_bytes
from benchmarks.shapes import METHOD, SEVEN_B, SFT, SMALL, build, latent_config, packed, text_batch
from benchmarks.step import utilisation
from benchmarks.trial import Trial
from infra.plan import memory
from infra.plan.machines import RESERVE_GIB
from infra.plan.shapes import TextShape, VisionShape

EXACT = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Limits of the relative difference of a loss with its gradient. Measured worst case on a CPU: 3e-7 and 4e-3."""
TEXT: dict[str, Any] = {
    **SMALL,
    "num_hidden_layers": 2,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
}
PROMPTS, LABELS = (40, 7, 64), (8, 3, 21)
"""Tokens of the samples that are compared."""
CLOCK = Clock(seed=0, step=2000, num_tokens=sum(LABELS), num_samples=len(LABELS))
PLANNED = 0.15
"""What the planner promises."""
FED_BACK = "fed-back slots"
"""The variant whose step has several samples: VaLR's."""
STEPS, KILLED = 6, 3
"""Of the run, and after which one is killed."""


class Size(NamedTuple):
    """What is measured: tokens of a sample, sequences of the attention, samples and slots of VaLR, patches."""

    text: dict[str, Any]
    x: int
    y: int
    lengths: tuple[int, ...]
    samples: int
    blocks: int
    slots: int
    patches: int


SIZES = {
    "7b": Size(SEVEN_B, 1024, 256, (2048, 1536, 1024, 1024, 768, 768, 512, 512), 4, 2, 16, 4096),
    "tiny": Size({**SMALL, "num_hidden_layers": 3}, 256, 64, (48, 32, 17, 5), 2, 2, 4, 256),
}


def main() -> int:
    """Prints the JSON line; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=list(SIZES), default="7b")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved rounds of what is timed")
    chosen = parser.parse_args()
    if chosen.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if chosen.size != "tiny":
            parser.error("the 7B shape takes a GPU; add --size tiny for a dry run without one")
    elif not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu --size tiny is a dry run of the same code without one")
    found = measure(SIZES[chosen.size], chosen.repeats)
    print(json.dumps({"device": device_name(), "size": chosen.size, "torch": torch.__version__, **found}))
    return 0 if found["ok"] else 1


def measure(size: Size, repeats: int) -> dict[str, Any]:
    """What the JSON line says."""
    checks = {f"exact, {name}": check for name, check in exactness().items()}
    with tempfile.TemporaryDirectory(prefix="amvl-gpu-") as folder:
        checks |= training(Path(folder))
    layers = fitting_layers(size)
    steps = list(training_steps(size._replace(text={**size.text, "num_hidden_layers": layers}), repeats))
    checks |= {
        f"memory, {step['variant']}": _check(abs(step["peak_gib"] / step["planned_gib"] - 1), PLANNED)
        for step in steps
        if step["planned_gib"]
    }
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    ways = attention.compare(size.lengths, size.text, dtype, repeats)
    checks |= {
        f"attention, {name}": _check(way["difference"], EXACT[dtype])
        for name, way in ways.items()
        if "missing" not in way
    }
    embedded = patches.compare(size.patches, dtype, repeats)
    checks["patches"] = _check(embedded["difference"], EXACT[dtype])
    ok = all(check["ok"] for check in checks.values())
    found = {"layers": layers, "steps": steps, "attention": ways, "patches": embedded}
    return {"ok": ok, "checks": checks, **found}


def exactness() -> dict[str, dict[str, Any]]:
    """Of two layers, 256 wide, and samples of unequal length in one row."""
    found = {}
    for dtype, limit in EXACT.items():
        name = str(dtype).removeprefix("torch.")
        found[f"packed against stock, {name}"] = _check(_packed_against_stock(dtype), limit)
        found[f"shared prefix against three passes, {name}"] = _check(_prefix_against_passes(dtype), limit)
    return found


def _packed_against_stock(dtype: torch.dtype) -> float:
    model, batch = build(SFT, text=TEXT).to(dtype), _packed(block=False)
    sft, where = SFT.implementation()(model, SFT), model.lm_head.weight.device

    def stock_loss() -> Tensor:
        samples = zip(batch.input_ids_N.split(batch.lengths), batch.labels_N.split(batch.lengths), LABELS, strict=True)
        each = [
            model(input_ids=ids[None].to(where), labels=labels[None].to(where), use_cache=False).loss.float() * count
            for ids, labels, count in samples
        ]
        return torch.stack(each).sum() / sum(LABELS)

    return relative(
        _gradient(model, lambda: _differentiated(sft(batch, CLOCK))), _gradient(model, lambda: _whole(stock_loss()))
    )


def _prefix_against_passes(dtype: torch.dtype) -> float:
    model, batch = build(METHOD, text=TEXT).to(dtype), _packed(block=True)
    method = METHOD.implementation()(model, METHOD)
    ours = _gradient(model, lambda: _differentiated(method(batch, CLOCK)))
    return relative(ours, _gradient(model, lambda: _whole(method.reference(batch, CLOCK))))


def _packed(block: bool) -> Batch:
    """All samples in one row."""
    shapes = zip(PROMPTS, LABELS, strict=True)
    vocab_size = int(TEXT["vocab_size"])
    return packed([text_batch(x, y, block=block, vocab_size=vocab_size, seed=x) for x, y in shapes])


def _differentiated(output: StepOutput) -> Tensor:
    output.backward()
    return output.terms["loss"]


def _whole(loss: Tensor) -> Tensor:
    loss.backward()
    return loss.detach()


def _gradient(model: Any, step: Callable[[], Tensor]) -> Tensor:
    """The loss of a step that differentiates it, and its whole gradient as one vector."""
    model.zero_grad()
    value = step()
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat([value.double().view(1), *(parameter.grad.double().flatten() for parameter in trained)])


def training(root: Path) -> dict[str, dict[str, Any]]:
    """One rank of the real loop: a run to its end, one that is killed and goes on, and an evaluation."""
    trial = Trial(root, STEPS, trainer={"precision": "bf16", "checkpoint_every": 2})
    assert trial.run("whole", 1) == [0]
    assert trial.run("killed", 1, kill_at=KILLED) == [-signal.SIGKILL]
    assert trial.run("killed", 1) == [0]
    whole, killed = (Path(root, name, "model", "model.safetensors").read_bytes() for name in ("whole", "killed"))
    same = whole == killed and trial.curve("whole") == trial.curve("killed")
    record = trial.record("whole")
    evaluation = Evaluation(trial.config, trial.data, record, Place(f"{root}/evaluation", "evaluation"))
    worker = EvaluationWorker(trial.config, record)
    answers = [row for part in evaluation.parts() for row in worker.work(worker.prepare(evaluation.asked, part))]
    scored = evaluation.finish({"answers": pa.Table.from_pylist(answers)})
    return {
        "resume": _check(float(not same), 0.0),
        "evaluation": _check(float(trial.data.rows("test") - scored.asked), 0.0),
    }


def fitting_layers(size: Size) -> int:
    """The most layers of which weights, gradients and the largest planned step fit this GPU; all, without one."""
    whole: int = size.text["num_hidden_layers"]
    if not torch.cuda.is_available():
        return whole
    room = torch.cuda.mem_get_info()[1] - RESERVE_GIB * 2**30
    for layers in range(whole, 1, -1):
        text = _shape({**size.text, "num_hidden_layers": layers})
        held = 2 * 2 * (layers * text.layer + 2 * text.vocab_size * text.hidden_size)
        if held + max(planned for planned in _planned(size, text).values() if planned) < room:
            return layers
    raise SystemExit(f"not two layers of the 7B shape fit this GPU's {room / 2**30:.0f} GiB")


def _shape(text: dict[str, Any]) -> TextShape:
    names = [name for name in TextShape.__dataclass_fields__ if name != "tie_word_embeddings"]
    return TextShape(**{name: text[name] for name in names}, tie_word_embeddings=False)


def _rows(size: Size) -> dict[str, RowsOfStep]:
    """What the planner plans with: the packed rows of a step of each variant that it knows."""
    fed_back = memory.joined([fed_back_rows(size.x, size.y, size.blocks, size.slots)] * size.samples)
    return {
        "sft": RowsOfStep(sft_rows(size.x, size.y)),
        "shared prefix": METHOD.cost(latent_config()).step(size.x, size.y),
        FED_BACK: RowsOfStep(fed_back),
    }


def _planned(size: Size, text: TextShape) -> dict[str, float]:
    """Bytes beyond weights and gradients."""
    width = 2 if torch.cuda.is_available() else 4
    labels = {FED_BACK: size.samples * (size.y + size.blocks)}
    vision = VisionShape(32, text.hidden_size)
    return {
        name: memory.step_peak(
            text,
            vision,
            memory.Step(of.rows, labels.get(name, size.y), 0, width, checkpointing=True, trained=True, cut=of.cut),
        ).total
        for name, of in _rows(size).items()
    }


def training_steps(size: Size, repeats: int) -> Iterator[dict[str, Any]]:
    """One model after the other, so that each has the whole device."""
    planned, text = _planned(size, _shape(size.text)), _shape(size.text)
    ways = METHOD.cost(latent_config()).ways(size.x, size.y)
    flops = {
        "stock": ways["sft"].flops(text, size.x + size.y),
        "sft": ways["sft"].flops(text, size.y),
        "three passes": ways["three_pass"].flops(text, size.y),
        "shared prefix": ways["shared_prefix"].flops(text, size.y),
        FED_BACK: 3 * rows_flops(text, _rows(size)[FED_BACK].rows, size.samples * (size.y + size.blocks)),
    }
    for make in (_plain_steps, _amvl_steps, _valr_steps):
        steps = make(size)
        seconds = interleaved(steps, repeats)
        for name, step in steps.items():
            samples = size.samples if name == FED_BACK else 1
            yield {
                "variant": name,
                "seconds": round(seconds[name], 5),
                "tokens_per_s": round(samples * (size.x + size.y) / seconds[name]),
                **utilisation(flops[name] / seconds[name]),
                "peak_gib": round(peak_bytes(step) / 2**30, 4),
                "planned_gib": round(planned[name] / 2**30, 4) if name in planned else None,
            }
        del steps, step
        gc.collect()
        torch.cuda.empty_cache()


def _plain_steps(size: Size) -> dict[str, Step]:
    model = build(SFT, text=size.text)
    model.activation_checkpointing_enable()
    batch = text_batch(size.x, size.y, block=False, vocab_size=size.text["vocab_size"])
    where, clock = model.lm_head.weight.device, Clock(0, 2000, size.y, 1)
    ids, labels = batch.input_ids_N[None].to(where), batch.labels_N[None].to(where)
    sft = SFT.implementation()(model, SFT)
    return {
        "stock": lambda: model(input_ids=ids, labels=labels, use_cache=False).loss.backward(),
        "sft": lambda: sft(batch, clock).backward(),
    }


def _amvl_steps(size: Size) -> dict[str, Step]:
    model = build(METHOD, text=size.text)
    model.activation_checkpointing_enable()
    batch = text_batch(size.x, size.y, block=True, vocab_size=size.text["vocab_size"])
    amvl, clock = METHOD.implementation()(model, METHOD), Clock(0, 2000, size.y, 1)
    return {
        "three passes": lambda: amvl.reference(batch, clock).backward(),
        "shared prefix": lambda: amvl(batch, clock).backward(),
    }


def _valr_steps(size: Size) -> dict[str, Step]:
    method = feedback.METHOD
    model = build(method, feedback.block_fields(size.slots), size.text)
    model.activation_checkpointing_enable()
    batch = feedback.text_batch(size.x, size.y, size.blocks, size.slots, size.samples, size.text["vocab_size"])
    valr, clock = method.implementation()(model, method), Clock(0, 0, size.y * size.samples, size.samples)
    return {FED_BACK: lambda: valr(batch, clock).backward()}


def _check(value: float, limit: float) -> dict[str, Any]:
    return {"value": float(f"{value:.3g}"), "limit": limit, "ok": value <= limit}


if __name__ == "__main__":
    sys.exit(main())
