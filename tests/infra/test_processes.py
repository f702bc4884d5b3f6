"""Trainers and evaluators side by side where the cluster has room, else one after the other."""

from __future__ import annotations

import pytest

from amvl_core.contracts.config import override
from amvl_core.methods.amvl.presets import demo
from infra.actors import Actors
from infra.processes import Processes
from infra.ray_train import WorkerGroup


@pytest.mark.parametrize(("jobs", "ended"), [(3, []), (4, ["evaluators", "trainers"])])
def test_what_has_no_room_ends_before_the_other_starts(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch, jobs: int, ended: list[str]
) -> None:
    """Three CPUs, half of one for each worker."""
    closed: list[str] = []
    monkeypatch.setattr(WorkerGroup, "close", lambda _: closed.append("trainers"))
    monkeypatch.setattr(Actors, "close", lambda _: closed.append("evaluators"))
    with Processes(override(demo(), {"cluster": {"num_workers": 1}}), jobs) as processes:
        evaluators = processes.evaluators()
        trainers = processes.trainers()
        assert processes.evaluators() is evaluators
        assert processes.trainers() is trainers
        assert closed == [*ended, *ended[:1]]
        closed.clear()
    assert closed == ["evaluators", "trainers"]
