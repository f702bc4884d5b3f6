"""Actors over real Ray: every part is worked on, also where one dies; who keeps dying is named."""

from __future__ import annotations

import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from amvl_core.contracts.config import RunConfig, override
from amvl_core.contracts.errors import ClusterError
from amvl_core.contracts.parts import Part
from amvl_core.contracts.progress import Progress
from amvl_core.methods.amvl.presets import demo
from infra.actors import Actors
from infra.cluster import Workers

PARTS = [Part("odd" if number % 2 else "even", (number,), 1) for number in range(5)]


class Squares:
    """Squares numbers, and dies at one of them as often as it may."""

    def __init__(self, folder: Path, deaths: int) -> None:
        self.folder, self.deaths = folder, deaths

    def prepare(self, asked: int, part: Part) -> int:
        return asked + part.items[0]

    def work(self, number: int) -> list[dict[str, Any]]:
        died = len(list(self.folder.iterdir()))
        if number == 2 and died < self.deaths:
            (self.folder / str(died)).touch()
            os._exit(1)
        return [{"square": number * number}]


@pytest.fixture()
def config() -> RunConfig:
    return override(demo(), {"cluster": {"num_workers": 1}})


@pytest.fixture()
def deaths(tmp_path: Path) -> Path:
    folder = tmp_path / "deaths"
    folder.mkdir()
    return folder


def test_a_part_whose_actor_dies_is_done_by_the_next_and_none_is_done_twice(
    ray_cluster: None, config: RunConfig, tmp_path: Path, deaths: Path
) -> None:
    """Its cluster learns of the death three seconds later; meanwhile every call of it fails."""
    events: list[Progress] = []
    make = partial(Squares, deaths, 1)

    def note(event: Progress) -> None:
        if event.done == 1:  # the next part that is given out is the one at which it dies
            (informed,) = (p for p in psutil.Process().children() if p.name() == "gcs_server")
            informed.suspend()
            threading.Timer(3, informed.resume).start()
        events.append(event)

    with Actors(config) as actors:
        for _ in range(2):
            tables = actors.tables(make, 0, PARTS, str(tmp_path / "parts"), "squares", note)
            squares = {kind: table["square"].to_pylist() for kind, table in tables.items()}
            assert squares == {"even": [0, 4, 16], "odd": [1, 9]}
    assert len(list(deaths.iterdir())) == 1
    assert [event.done for event in events] == [0, 1, 2, 3, 4, 5, 5]
    assert events[-2].seconds_left == 0


class Numbers:
    """Says in which process it is and how often it was made there."""

    made = 0

    def __init__(self, _: str) -> None:
        type(self).made += 1

    def prepare(self, asked: int, part: Part) -> int:
        return asked

    def work(self, number: int) -> list[dict[str, Any]]:
        return [{"process": os.getpid(), "made": type(self).made}]


def test_an_actor_goes_on_with_the_next_model_and_loads_each_once(
    ray_cluster: None, config: RunConfig, tmp_path: Path
) -> None:
    first, second = partial(Numbers, "first"), partial(Numbers, "second")
    with Actors(config) as actors:
        found = [
            actors.tables(make, 0, PARTS[:1], str(tmp_path / str(number)), "numbers", lambda _: None)[
                "even"
            ].to_pylist()
            for number, make in enumerate((first, first, second))
        ]
        assert len({row["process"] for (row,) in found}) == 1
        assert [row["made"] for (row,) in found] == [1, 1, 2]


def test_an_actor_that_died_is_not_kept_for_the_next_work(
    ray_cluster: None, config: RunConfig, tmp_path: Path, deaths: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray starts it again so often in its life, however many evaluations that spans."""
    monkeypatch.setattr("infra.actors.RESTARTS", 1)
    with Actors(config) as actors:
        for number in (1, 2):
            make = partial(Squares, deaths, number)
            actors.tables(make, 0, PARTS[2:3], str(tmp_path / str(number)), "squares", lambda _: None)
    assert len(list(deaths.iterdir())) == 2


def test_what_keeps_dying_is_named(
    ray_cluster: None, config: RunConfig, tmp_path: Path, deaths: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.actors.RESTARTS", 1)
    with (
        Actors(config) as actors,
        pytest.raises(ClusterError, match=r"^squares: a worker died 2 times"),
    ):
        actors.tables(partial(Squares, deaths, 99), 0, PARTS[2:3], str(tmp_path / "parts"), "squares", lambda _: None)


def test_the_parts_of_an_actor_that_has_no_machine_are_done_by_another(
    ray_cluster: None,
    config: RunConfig,
    tmp_path: Path,
    deaths: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """There is room for one actor of two, as after the loss of a machine. The next work does not wait either."""
    monkeypatch.setattr("infra.cluster.CPUS_PER_WORKER", 2.0)
    monkeypatch.setattr("infra.actors.evaluators", lambda _: Workers("cpu", 2))
    monkeypatch.setattr("infra.actors.LOST_SECONDS", 1.0)
    with Actors(config) as actors:
        for name in ("first", "second"):
            tables = actors.tables(partial(Squares, deaths, 0), 0, PARTS, str(tmp_path / name), name, lambda _: None)
            assert {kind: table["square"].to_pylist() for kind, table in tables.items()} == {
                "even": [0, 4, 16],
                "odd": [1, 9],
            }
    assert "first: the cluster has room for 1 of 2 workers on 1 nodes; it goes on with 1" in caplog.text
