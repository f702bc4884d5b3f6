"""The numbers of `docs/scaling.md` are the planner's."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from infra.plan.__main__ import main

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "scaling.md").read_text()
HEAD = "| `python -m infra.plan` with |"
BASE_32B = [
    "--param",
    "model.base=Qwen/Qwen2.5-VL-32B-Instruct",
    "--param",
    "trainer.zero_stage=3",
    "--param",
    "evaluation.batch_tokens=16384",
]
"""What the page calls 32B."""
BASE_72B = ["--param", "model.base=Qwen/Qwen2.5-VL-72B-Instruct", "--param", "trainer.zero_stage=3"]
BATCH_256 = [
    "--param",
    "stages.amvl.global_batch=256",
    "--param",
    "stages.embedding_adaptation.global_batch=256",
]
"""What the page calls batch 256."""


def rows(number: int) -> list[list[str]]:
    """The cells of the table `number` of the page, without its head."""
    lines = PAGE.split(HEAD)[number + 1].splitlines()[2:]
    return [line.strip("| ").split(" | ") for line in lines[: lines.index("")]]


def options(cell: str) -> list[str]:
    """What the first cell of a row says the command line is."""
    command = re.match(r"(?:(32B|batch 256) with )?`([^`]*)`|nothing", cell)
    assert command is not None
    named = {"32B": BASE_32B, "batch 256": BATCH_256, None: []}[command[1]]
    return [*named, *shlex.split(command[2] or "")]


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[bool, dict[str, Any]]:
    """Whether all fits, and the plan."""
    code = main([*arguments, "--json"])
    return code == 0, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("row", rows(0), ids=lambda row: row[0])
def test_the_paper_s_run(row: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    fits, found = planned(capsys, *options(row[0]))
    assert fits
    stage = found["stages"]["amvl"]
    ways = found["hours_by_way"]
    hours = [f"{value:.1f} h" for value in (found["hours"], ways["three_pass"], ways["sft"])]
    assert row[1:] == [f"{stage['needed_gib']:.1f}", *hours, f"{stage['network_share']:.0%}".replace("%", " %")]


@pytest.mark.parametrize("row", rows(1), ids=lambda row: row[0])
def test_with_the_optimiser_on_the_cpus(row: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    fits, plain = planned(capsys, *options(row[0]))
    too_much = "" if fits else " (too much)"
    fits, moved = planned(capsys, *options(row[0]), "--param", "trainer.offload=optimizer")
    assert fits
    gpu, offloaded = (found["stages"]["amvl"]["needed_gib"] for found in (plain, moved))
    assert row[1:] == [f"{gpu:.1f}{too_much}", f"{offloaded:.1f}", f"{moved['stages']['amvl']['host_gib']:.0f}"]


@pytest.mark.parametrize("row", rows(2), ids=lambda row: row[0])
def test_beyond_two_nodes(row: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert f"`{shlex.join(BATCH_256)}`" in PAGE.replace("\n", " ")
    fits, found = planned(capsys, *options(row[0]))
    assert fits
    stage = found["stages"]["amvl"]
    share = f"{stage['network_share']:.0%}".replace("%", " %")
    sent = [f"{stage['needed_gib']:.1f}", f"{stage['sent_gb']:.1f}", f"{stage['network_seconds']:.2f}", share]
    assert row[1:] == [*sent, f"{found['hours']:.1f} h", f"{stage['checkpoint_gb']:.2f}"]


@pytest.mark.parametrize(("number", "workers"), [(1, 16), (2, 64), (3, 256)])
def test_what_a_rank_writes_of_72b(number: int, workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"`python -m infra.plan {shlex.join(BASE_72B)}`" in PAGE.replace("\n", " ")
    _, found = planned(capsys, *BASE_72B, *BATCH_256, "--param", f"cluster.num_workers={workers}")
    checkpoint = found["stages"]["amvl"]["checkpoint_gb"]
    model = 2 * sum(found["parameters"].values()) / workers / 1e9
    lines = PAGE.split("| 72B | 16 GPUs")[1].splitlines()[2:5]
    cells = [line.strip("| ").split(" | ")[number] for line in lines]
    seconds = 8 * (checkpoint + model) / 12.5
    assert cells == [f"{checkpoint:.1f}", f"{model:.1f}", f"{seconds:.1f}" if seconds < 5 else f"{seconds:.0f}"]


@pytest.mark.parametrize(
    ("arguments", "gpus"),
    [
        ("--gpu H200-141GB", 2),
        ("--param cluster.num_workers=64", 3),
        ("--param cluster.num_workers=32", 3),
        ("--param trainer.offload=optimizer", 3),
    ],
)
def test_what_72b_fits(arguments: str, gpus: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"`{shlex.join(BASE_72B)}`" in PAGE
    fits, found = planned(capsys, *BASE_72B, *shlex.split(arguments))
    assert (
        not fits
        and all(stage["fits"] for stage in found["stages"].values())
        and found["evaluation"]["fitting_gpus"] == gpus
    )
    assert f"need {found['evaluation']['needed_gib']:.1f} GiB" in PAGE
    fits, found = planned(capsys, *BASE_72B, *shlex.split(arguments), "--param", f"cluster.evaluation_gpus={gpus}")
    assert fits
    cells = f" {gpus} | {found['stages']['amvl']['needed_gib']:.1f} | {found['evaluation']['needed_gib']:.1f} |"
    assert any(line.startswith(f"| `{arguments}` |") and line.endswith(cells) for line in PAGE.splitlines())


def test_no_batch_makes_the_evaluation_of_72b_fit_one_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    one = ["--param", "evaluation.batch_size=1", "--param", "evaluation.batch_tokens=4096"]
    _, found = planned(capsys, *BASE_72B, *one, "--gpu", "H200-141GB")
    assert found["evaluation"]["needed_gib"] > found["machines"]["memory_gib"]
    assert found["evaluation"]["fitting_tokens"] is None


def test_what_the_start_of_72b_takes(capsys: pytest.CaptureFixture[str]) -> None:
    _, found = planned(capsys, *BASE_72B, "--param", "cluster.num_workers=64")
    stage = found["stages"]["amvl"]
    assert f"{stage['start_gib']:.1f} GiB of 72B on 64 GPUs" in PAGE
    assert f"memory once: {stage['start_host_gib']:.1f} GiB of 72B" in PAGE.replace("\n", " ")
    assert f"once ({2 * sum(found['parameters'].values()) / 1e9:.0f} GB of 72B)" in PAGE


def test_32b_fits_with_a_smaller_batch_in_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    assert f"`{shlex.join(BASE_32B)}`" in PAGE
    fits, found = planned(capsys, *BASE_32B)
    assert fits
    _, default = planned(capsys, *BASE_32B[:4])
    assert default["evaluation"]["fitting_tokens"] == 16384 and default["evaluation"]["fitting_gpus"] == 2
    assert f"{found['stages']['amvl']['needed_gib']:.1f} GiB). Its evaluation needs" in PAGE
    needed = (found["evaluation"]["needed_gib"], default["evaluation"]["needed_gib"])
    assert "needs {:.1f} GiB with that batch, and {:.1f} with the default one".format(*needed) in PAGE


def test_72b_needs_more_than_16_gpus_of_80_gb(capsys: pytest.CaptureFixture[str]) -> None:
    assert not planned(capsys, *BASE_72B)[1]["stages"]["amvl"]["fits"]
