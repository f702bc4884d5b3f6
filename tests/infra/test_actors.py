"""Actors over real Ray: every task is answered, also where one dies; who keeps dying is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from amvl_core.contracts.config import RunConfig, override
from amvl_core.contracts.errors import ClusterError
from amvl_core.methods.amvl.presets import demo
from infra.actors import Actors, part_name


class Squares:
    """Squares numbers, and dies at one of them as often as it may."""

    def __init__(self, folder: Path, deaths: int) -> None:
        self.folder, self.deaths = folder, deaths

    def square(self, number: int) -> int:
        died = len(list(self.folder.iterdir()))
        if number == 2 and died < self.deaths:
            (self.folder / str(died)).touch()
            os._exit(1)
        return number * number


@pytest.fixture()
def config() -> RunConfig:
    return override(demo(), {"cluster": {"num_workers": 1}})


def test_a_task_whose_actor_dies_is_done_by_the_next(ray_cluster: None, config: RunConfig, tmp_path: Path) -> None:
    with Actors(config, Squares, tmp_path, 1) as actors:
        assert sorted(actors.run("square", [(number,) for number in range(5)], "squares")) == [0, 1, 4, 9, 16]
        assert list(actors.run("square", [], "nothing")) == []
    assert len(list(tmp_path.iterdir())) == 1


def test_what_keeps_dying_is_named(ray_cluster: None, config: RunConfig, tmp_path: Path) -> None:
    with Actors(config, Squares, tmp_path, 99) as actors, pytest.raises(ClusterError, match=r"^squares: a worker died"):
        list(actors.run("square", [(2,)], "squares"))


def test_a_part_is_named_by_its_number_and_what_is_in_it() -> None:
    assert part_name(3, [1, 2]) == part_name(3, (1, 2)) != part_name(3, [2, 1])
    assert part_name(3, [1, 2]).startswith("000003-")
