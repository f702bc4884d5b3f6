"""Questions per second of an evaluation, against the stock model's `generate` in a plain loop.

    python -m benchmarks.evaluate [--questions 400] [--rounds 3]

The stock tiny model answers microworld's test questions, two workers on two cores (`infra/ray_eval.py`), then one
process with all cores: one question at a time, and with the batch size that turns out best. Workers are started and
models loaded beforehand; reading, decoding images and tokenizing count on both sides. One token in sixteen ends an
answer, so answers differ in length as real ones do. All three must give the same texts.

The last line is one JSON object; its ratios are of medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from transformers import GenerationConfig

from amvl_core.backbones.tiny import save_tiny_base
from amvl_core.contracts.config import ClusterConfig, RunConfig, TinyConfig
from amvl_core.contracts.presets import PRESETS
from amvl_core.contracts.records import DatasetRecord, Place
from amvl_core.contracts.sources import MicroworldSource
from amvl_core.data.encode import TokenCounter
from amvl_core.data.reader import ShardReader
from amvl_core.eval.benchmarks.prepared import question
from amvl_core.eval.evaluation import Evaluation, EvaluationWorker
from amvl_core.eval.predict import Answerer
from benchmarks.measure import device_name
from data_prep import listing
from data_prep.shards import SCHEMA_VERSION
from data_prep.units import Work

BATCH_SIZES = (4, 16, 64, 256)
NEW_TOKENS = 64
WORKERS = 2


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="amvl-benchmark-") as folder:
        print(json.dumps(measure(Path(folder), given.questions, given.rounds)))


def measure(folder: Path, questions: int, rounds: int) -> dict[str, Any]:
    """Seconds of each way, their ratios, and what was measured."""
    from infra import cluster
    from infra.actors import Actors

    config = _config(folder)
    save_model(Path(config.model.base))
    dataset = _dataset(config, folder / "data", questions)
    answerer = Answerer.from_pretrained(config.model.base)
    seconds: dict[str, list[float]] = {}
    texts: dict[str, dict[str, str]] = {}
    cluster.connect(config.cluster)
    try:
        make = partial(EvaluationWorker, config, None)
        with Actors(config) as actors:
            ways: dict[str, Callable[[str], dict[str, str]]] = {
                "ours": lambda uri: _ours(actors, make, config, dataset, uri),
                **{f"batch {size}": _loop(config, answerer, dataset, size) for size in (1, *BATCH_SIZES)},
            }
            ways["ours"](str(folder / "warm-up"))
            for number in range(rounds):
                for name, way in ways.items():
                    start = time.perf_counter()
                    texts[name] = way(str(folder / f"round-{number}"))
                    seconds.setdefault(name, []).append(time.perf_counter() - start)
                    print(f"{name}: {questions / seconds[name][-1]:.1f} questions/s", file=sys.stderr, flush=True)
    finally:
        cluster.disconnect()
    different = [name for name in texts if texts[name] != texts["ours"]]
    if different:
        raise SystemExit(f"{', '.join(different)} gave other answers than the evaluation")
    median = {name: statistics.median(values) for name, values in seconds.items()}
    best = min(BATCH_SIZES, key=lambda size: median[f"batch {size}"])
    return {
        "vs_batch1": round(median["batch 1"] / median["ours"], 2),
        "vs_best_batch": round(median[f"batch {best}"] / median["ours"], 2),
        "best_batch": best,
        "questions_per_s": {name: round(questions / value, 1) for name, value in median.items()},
        "questions": questions,
        "rounds": rounds,
        "mean_characters": round(statistics.mean(len(text) for text in texts["ours"].values()), 1),
        "device": device_name(),
    }


def save_model(folder: Path) -> None:
    """The stock tiny model, for which one token in sixteen ends an answer."""
    save_tiny_base(TinyConfig(), folder)
    settings = GenerationConfig.from_pretrained(folder)
    settings.eos_token_id = [settings.eos_token_id, *range(300, 1100, 16)]
    settings.save_pretrained(folder)


def _config(folder: Path) -> RunConfig:
    base = PRESETS["demo"]()
    return base.model_copy(
        update={
            "model": base.model.model_copy(update={"base": str(folder / "model")}),
            "cluster": ClusterConfig(num_workers=WORKERS),
            "storage": str(folder),
            "evaluation": base.evaluation.model_copy(update={"max_new_tokens": NEW_TOKENS}),
        }
    )


def _dataset(config: RunConfig, folder: Path, questions: int) -> DatasetRecord:
    """Microworld's test questions, without training answers: nothing but generation is to be done."""
    source = MicroworldSource(train=0, test=questions)
    data = config.data.model_copy(update={"sources": (source,), "rows_per_shard": questions})
    work = Work(data, TokenCounter.from_model(config.model), (str(folder),))
    shards = [done.shard for unit in listing.units(data, 0, ()) if (done := work.run(unit)).shard]
    return DatasetRecord(
        uri=str(folder),
        fingerprint="benchmark",
        schema_version=SCHEMA_VERSION,
        shards=shards,
        kept=sum(shard.rows for shard in shards),
        dropped={},
        reports=[],
    )


def _ours(
    actors: Any, make: Callable[[], EvaluationWorker], config: RunConfig, dataset: DatasetRecord, uri: str
) -> dict[str, str]:
    from infra.ray_eval import evaluate_with

    evaluation = Evaluation(config, dataset, None, Place(uri, "benchmark"))
    record = evaluate_with(actors, make, evaluation, lambda _: None)
    rows = pq.read_table(record.predictions_uri, columns=["sample_id", "raw_output"]).to_pylist()
    return {row["sample_id"]: row["raw_output"] for row in rows}


def _loop(config: RunConfig, answerer: Answerer, dataset: DatasetRecord, size: int) -> Callable[[str], dict[str, str]]:
    """What anybody would write: questions in their order, `size` at a time, the library's `generate`."""
    data, model, tokenizer = config.data, answerer.model, answerer.processor.tokenizer

    def run(uri: str) -> dict[str, str]:
        reader, found = ShardReader(dataset, "test"), dict[str, str]()
        for start in range(0, len(reader), size):
            asked = [question(reader[i]) for i in range(start, min(start + size, len(reader)))]
            images, prompts = [one.images for one in asked], [one.prompt for one in asked]
            inputs = answerer.encode(images, prompts, (data.min_pixels, data.max_pixels)).inputs.to(model.device)
            with torch.inference_mode():
                output = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
            texts = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            found |= {one.item_id: text for one, text in zip(asked, texts, strict=True)}
        return found

    return run


if __name__ == "__main__":
    main()
