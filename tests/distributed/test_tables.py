"""Every row of every ablation table trains: one step of each of its stages, on one prepared dataset."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from amvl_core.contracts import storage
from amvl_core.contracts.ablations import method_stages, shared_stages, table_of
from amvl_core.contracts.config import RunConfig, override
from amvl_core.contracts.method import configurations
from amvl_core.contracts.presets import PRESETS
from amvl_core.contracts.records import CheckpointRecord, fingerprint, load_record
from amvl_core.train.loop import TrainJob
from benchmarks import local
from benchmarks.tiny import TINY
from benchmarks.trial import configuration, dataset


def train_rows(rank: int, root: str, rows: str) -> None:
    """One step of each stage of `rows` (label -> configuration); stages that rows share are trained once."""
    for text in json.loads(rows).values():
        config = RunConfig.model_validate(text)
        done: dict[str | None, str] = {}
        for name, stage in config.stages.items():
            start, teacher = (done.get(parent) for parent in config.parents(name))
            trained = {"stage": stage.model_dump(mode="json"), "latent": config.latent, "parents": [start, teacher]}
            made = fingerprint("row", 1, **trained)
            job = TrainJob(
                config=config, stage=name, dataset=dataset(f"{root}/data"), start_from=start or f"{root}/base",
                parent=None, uri=f"{root}/{made}", fingerprint=made, teacher=teacher,
            )  # fmt: skip
            local.stage(rank, job.model_dump_json(), f"{root}/log")
            record = load_record(job.uri, CheckpointRecord)
            assert record is not None and math.isfinite(record.metrics["loss"] + record.metrics["grad_norm"])
            done[name] = record.model_uri


def amvl(root: str) -> RunConfig:
    one_step = {name: {"steps": 1} for name in ("sft", "embedding_adaptation", "amvl")}
    return override(configuration(root, stages=one_step), {"cluster": {"num_workers": 1}})


def valr(root: str) -> RunConfig:
    """With the smallest model and encoders."""
    config = PRESETS["valr-ablation"]()
    encoders = [encoder.model_copy(update={"size": 16}).model_dump(mode="json") for encoder in config.encoders]
    small = {"steps": 1, "global_batch": 8, "micro_tokens": 400}
    return override(
        config,
        {
            "storage": root,
            "model": {"tiny": {**TINY.model_dump(), "num_layers": 3}},
            "stages": {"sft": small, "valr": {**small, "method": {"encoders": encoders, "projector_width": 8}}},
            "trainer": {"log_every": 1, "loader_workers": 0},
            "cluster": {"num_workers": 1},
        },
    )


def peer(preset: str, root: str) -> RunConfig:
    """With the smallest model."""
    config = PRESETS[preset]()
    small = {"steps": 1, "global_batch": 8, "micro_tokens": 400}
    return override(
        config,
        {
            "storage": root,
            "model": {"tiny": TINY.model_dump()},
            "stages": dict.fromkeys(config.stages, small),
            "trainer": {"log_every": 1, "loader_workers": 0},
            "cluster": {"num_workers": 1},
        },
    )


@pytest.mark.parametrize(
    ("base", "least"),
    [
        (amvl, 31),
        (valr, 30),
        (partial(peer, "coconut-demo"), 5),
        (partial(peer, "lvr-demo"), 9),
        (partial(peer, "codi-demo"), 4),
        (partial(peer, "monet-demo"), 11),
        (partial(peer, "mull-demo"), 5),
    ],
)
def test_every_row_of_every_table_trains_on_the_same_dataset(
    tmp_path: Path, base: Callable[[str], RunConfig], least: int
) -> None:
    from amvl_core.backbones.loading import base_folder

    config = base(str(tmp_path))
    with base_folder(config.model) as folder:
        storage.upload(Path(folder), f"{tmp_path}/base")
    rows = {
        f"{table}, {row.label}": row.change(config)
        for table in config.method.tables()
        for row in table_of(config, table).rows
    }
    assert len(rows) == sum(len(table.rows) for table in config.method.tables().values()) >= least
    assert ({row.latent.num_slots for row in rows.values()} > {config.latent.num_slots}) == (base in (amvl, valr))
    local.run(train_rows, 1, str(tmp_path), json.dumps({k: row.model_dump(mode="json") for k, row in rows.items()}))


def test_a_table_changes_the_stages_of_its_method_alone() -> None:
    for name, preset in PRESETS.items():
        config = preset()
        shared = {stage: config.stages[stage] for stage in shared_stages(config)}
        for table in config.method.tables().values():
            for row in table.rows:
                changed = row.change(config)
                assert {stage: changed.stages[stage] for stage in shared} == shared, (name, row.label)
                assert changed.data == config.data and changed.model == config.model
        assert all(stage.method.kind in configurations() for stage in method_stages(config).values())
