"""What names a result, and what does not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from amvl_core.contracts.config import RunConfig, override
from amvl_core.contracts.fingerprints import (
    ablation_fingerprint,
    analyse_fingerprint,
    evaluate_fingerprint,
    experiment_fingerprint,
    faithfulness_fingerprint,
    linear_probe_fingerprint,
    sampling_fingerprint,
    train_fingerprint,
)
from amvl_core.contracts.presets import PRESETS
from amvl_core.contracts.records import CheckpointRecord, DatasetRecord
from amvl_core.methods.amvl.presets import demo


def names(config: RunConfig, dataset: DatasetRecord, model: CheckpointRecord, *controls: CheckpointRecord) -> list[str]:
    labelled = [(control.stage, control) for control in controls]
    return [
        evaluate_fingerprint(config, dataset, model),
        faithfulness_fingerprint(config, dataset, model, labelled),
        analyse_fingerprint(config, dataset, model),
        sampling_fingerprint(config, dataset, model),
        linear_probe_fingerprint(dataset, model),
    ]


def changed(before: list[str], after: list[str]) -> list[bool]:
    return [a != b for a, b in zip(before, after, strict=True)]


def test_each_stage_is_named_by_its_own_settings(
    dataset: DatasetRecord, checkpoint: Callable[..., CheckpointRecord]
) -> None:
    model, control = checkpoint(), checkpoint("sft", "sft", "c2")
    before = names(demo(), dataset, model)

    def after(**evaluation: object) -> list[bool]:
        return changed(before, names(override(demo(), {"evaluation": evaluation}), dataset, model))

    assert after(faithfulness_items=7) == [False, True, False, False, False]
    assert after(analysis_items=7) == [False, False, True, False, False]
    assert after(sampled_items=7) == [False, False, False, True, False]
    assert after(batch_size=7) == [False, False, False, False, False]
    assert after(max_new_tokens=7) == [True, True, False, True, False]
    assert after(seed=7) == [True, True, True, True, False]
    assert after(tau=0.5) == [True, False, False, False, False]  # the suite has a sweep of its own
    assert changed(before, names(demo(), dataset, model, control)) == [False, True, False, False, False]
    assert changed(before, names(demo(), dataset, checkpoint(fingerprint="c3"))) == [True] * 5


def test_which_samples_are_held_out_names_a_stage_and_when_does_not(dataset: DatasetRecord) -> None:
    def name(**heldout: object) -> str:
        return train_fingerprint(override(demo(), {"heldout": heldout}), "sft", dataset, None)

    assert name() == name(every=7) == name(samples=64) != name(samples=32)
    assert len({name(samples=samples) for samples in (0, 32, 64)}) == 3


def test_a_base_in_a_folder_is_named_by_its_content_and_not_by_its_place(
    dataset: DatasetRecord, tmp_path: Path
) -> None:
    def name(folder: str, weights: bytes) -> str:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").write_bytes(weights)
        return train_fingerprint(override(demo(), {"model": {"base": str(tmp_path / folder)}}), "sft", dataset, None)

    assert name("here", b"old") == name("there", b"old") != name("new", b"new")


@pytest.mark.parametrize("kind", ["{}", "features:{}"])
def test_a_frozen_encoder_in_a_folder_is_named_by_its_content_and_not_by_its_place(
    dataset: DatasetRecord, checkpoint: Callable[..., CheckpointRecord], tmp_path: Path, kind: str
) -> None:
    def names(folder: str, weights: bytes) -> list[str]:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "model.safetensors").write_bytes(weights)
        encoders = [{"name": "e", "source": kind.format(tmp_path / folder)}]
        config = override(PRESETS["valr-demo"](), {"stages": {"valr": {"method": {"encoders": encoders}}}})
        rows = {"row": [config]}
        return [
            train_fingerprint(config, "valr", dataset, None),
            ablation_fingerprint("encoders", rows, dataset, None, []),
            experiment_fingerprint("x", {}, rows, dataset, checkpoint(), None),
        ]

    before = names("here", b"old")
    assert changed(before, names("there", b"old")) == [False] * 3
    assert changed(before, names("here", b"new")) == [True] * 3
