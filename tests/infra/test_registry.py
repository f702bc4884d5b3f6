"""A tiny model through the real registry and back."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from amvl_core.contracts.config import RunConfig, TinyConfig, override
from amvl_core.contracts.errors import ConfigError, DataError
from amvl_core.contracts.records import (
    CheckpointRecord,
    DatasetRecord,
    EvalRecord,
    ModelRecord,
    load_record,
    save_record,
)
from amvl_core.eval.pairing import compare_evaluations
from infra import registry
from infra.mlflow_client import client
from infra.provenance import UNKNOWN, installed
from infra.tracking import Tracker
from tests.tiny import amvl_model

SOURCES = "microworld/colour, microworld/compare, microworld/count, microworld/jigsaw, microworld/maze, "
SOURCES += "microworld/odd_one_out, microworld/relation, microworld/shape"
TABLE = "| task | AMVL |\n| --- | --- |\n| all | 80.0% |"
FORMS: dict[str, Callable[[list[dict[str, str]]], dict[str, Any]]] = {
    "dataframe_records": lambda rows: {"dataframe_records": rows},
    "dataframe_split": lambda rows: {
        "dataframe_split": {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}
    },
    "inputs": lambda rows: {"inputs": rows},
    "inputs by column": lambda rows: {"inputs": {name: [row[name] for row in rows] for name in rows[0]}},
    "instances": lambda rows: {"instances": rows},
}


def picture(width: int = 48, height: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(buffer, "PNG")
    return buffer.getvalue()


def picture_text() -> bytes:
    """A picture that Netpbm writes as text: but for its blanks, letters of base64."""
    return b"P3\n2\n2\n255\n" + b"1\n22\n133\n" * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from amvl_core.backbones.tiny import save_tiny_base

    where = tmp_path_factory.mktemp("checkpoint")
    save_tiny_base(TinyConfig(), where / "model")
    return where


@pytest.fixture(scope="module")
def _cache() -> dict[str, Any]:
    return {}


@pytest.fixture()
def registered(
    _cache: dict[str, Any],
    folder: Path,
    tracked: RunConfig,
    dataset: DatasetRecord,
    checkpoint: Callable[..., CheckpointRecord],
    evaluation: Callable[..., EvalRecord],
) -> ModelRecord:
    """Registered once for the file."""
    if not _cache:
        with Tracker(tracked) as tracker:
            run_id = tracker.start()
            scores = [evaluation("sft", 5), evaluation("amvl", 8)]
            model = checkpoint(uri=str(folder))
            asked = [*dataset.reports, dataset.reports[0].model_copy(update={"split": "test"})]
            dataset = dataset.model_copy(update={"reports": asked})
            uri = f"{tracked.storage}/register/r1"
            first = registry.decide(tracked, scores[-1], registry.champion(tracked), None)
            short = override(tracked, {"evaluation": {"max_new_tokens": 4}})
            _cache["record"] = registry.register(short, run_id, dataset, model, scores, first, uri, TABLE)
    return _cache["record"]


def test_the_record_names_the_version_and_is_found_again(
    tracked: RunConfig, registered: ModelRecord, evaluation: Callable[..., EvalRecord]
) -> None:
    scores = evaluation("amvl", 8)
    assert load_record(registered.uri, ModelRecord) == registered
    assert (registered.name, registered.version, registered.alias) == ("amvl", 1, "champion")
    assert registered.reason == "the first champion"
    assert registry.is_current(tracked, scores, registered)
    assert not registry.is_current(tracked, scores, registered.model_copy(update={"version": 2}))


def test_the_version_says_where_it_comes_from(tracked: RunConfig, registered: ModelRecord) -> None:
    tags = client(tracked).get_model_version("amvl", "1").tags
    assert (
        tags.items()
        >= {
            "data_fingerprint": "d1",
            "checkpoint_fingerprint": "c1",
            "accuracy": "0.8000",
            "n": "20",
            "gate": "champion",
            "gate_margin": "1",
            "sources": SOURCES,
        }.items()
    )
    assert len(tags["commit"]) in (7, 40)
    known = "accuracy n gate gate_margin commit dirty method checkpoint_uri checkpoint_fingerprint data_fingerprint"
    assert tags.keys() == {*known.split(), "sources"}


def test_sources_are_those_with_test_questions_by_kind_and_name(tracked: RunConfig, dataset: DatasetRecord) -> None:
    """Own data without a name is called by its folder; two mixtures of microworld's tasks are not one source."""
    nlvr = {"kind": "nlvr", "uri": "n.zip"}
    own, named = ({"kind": "chat_jsonl", "uri": "s3://b/Cups/", **name} for name in ({}, {"name": "cups"}))
    world = {"kind": "microworld", "tasks": ["turn", "chain"]}
    for sources, tested, expected in (
        (
            [own, world, nlvr],
            {"chat": 1, "microworld": 1, "nlvr": 0},
            "chat_jsonl/Cups, microworld/chain, microworld/turn",
        ),
        ([named, nlvr], {"cups": 1, "nlvr": 1}, "chat_jsonl/cups, nlvr/nlvr"),
        ([nlvr], {}, ""),
    ):
        fields = [{"source": name, "split": "test", "read": kept, "kept": kept} for name, kept in tested.items()]
        reports = [dataset.reports[0].model_copy(update={**each, "dropped": {}}) for each in fields]
        given = dataset.model_copy(update={"reports": [*dataset.reports, *reports]})
        assert registry.sources(override(tracked, {"data": {"sources": sources}}), given) == expected


@pytest.mark.parametrize(
    ("questions", "said"),
    [
        (["<image>a", "b<image>", "<image>c"], []),
        (
            ["<image>a", "<image><image>a", "a", "<video>a", *(["<image><video>a"] * 8)],
            [
                "register: 11 of 12 test questions (92%) cannot be asked of the registered model, which takes one "
                "image with each: they have none, several or a video"
            ],
        ),
    ],
)
def test_test_questions_without_exactly_one_image_are_counted(
    tmp_path: Path, dataset: DatasetRecord, questions: list[str], said: list[str]
) -> None:
    """Over all shards; of shards that are gone nothing is said."""
    halves = [questions[:2], questions[2:]]
    for number, half in enumerate(halves):
        pq.write_table(pa.table({"question": half}), tmp_path / f"{number}.parquet")
    shards = [
        dataset.shards[0].model_copy(update={"file": f"{number}.parquet", "split": "test", "rows": len(half)})
        for number, half in enumerate(halves)
    ]
    given = dataset.model_copy(update={"uri": str(tmp_path), "shards": [*dataset.shards, *shards]})
    assert registry.unservable(given) == said
    gone = given.model_copy(update={"uri": str(tmp_path / "gone")})
    assert registry.unservable(gone) == []


def test_a_version_is_held_against_a_champion_whose_sources_it_was_all_asked() -> None:
    held = registry.Champion(3, None, "chat_jsonl/cups, nlvr/nlvr")
    assert registry.unasked(held, "chat_jsonl/cups, microworld/turn") == ["nlvr/nlvr"]
    assert registry.unasked(held, "") == ["chat_jsonl/cups", "nlvr/nlvr"]
    assert registry.unasked(held, "chat_jsonl/cups, microworld/turn, nlvr/nlvr") == []
    assert registry.unasked(registry.Champion(3, None), "") == []  # of an earlier release


def test_the_version_is_described_by_the_gate_and_the_scores(tracked: RunConfig, registered: ModelRecord) -> None:
    described = client(tracked).get_model_version("amvl", "1").description
    assert described == (
        f"**champion**: the first champion\n\nAgainst the best so far: there is none to compare with\n\n{TABLE}"
    )


def test_the_alias_loads_and_answers(tracked: RunConfig, registered: ModelRecord) -> None:
    import mlflow

    client(tracked)
    model = mlflow.pyfunc.load_model("models:/amvl@champion")
    frame = pd.DataFrame({"image": [picture()] * 2, "question": ["What colour?", "<image>What colour?"]})
    answers = model.predict(frame)
    assert len(answers) == 2
    assert answers[0] == answers[1]
    encoded = pd.DataFrame({"image": [base64.b64encode(picture()).decode()], "question": ["What colour?"]})
    assert model.predict(encoded) == answers[:1]
    for image in (base64.encodebytes(picture()), picture_text(), bytearray(picture())):
        assert len(model.predict(pd.DataFrame({"image": [image], "question": ["What colour?"]}))) == 1
    for bad, message in (
        ({"image": [picture(), b"no picture"], "question": ["a", "b"]}, "row 1: image is no picture"),
        ({"image": [b"P3 2 2 255 x"], "question": ["a"]}, "row 0: image is no picture .* \\(ValueError\\)"),
        ({"image": [picture(1, 201)], "question": ["a"]}, "row 0: image has 1 x 201 pixels, one side over 200 times"),
        ({"image": [picture(500, 1)], "question": ["a"]}, "row 0: image has 500 x 1 pixels"),
        ({"image": ["%%%"], "question": ["a"]}, "row 0: image is text that is not base64"),
        ({"image": [picture()], "question": [" "]}, "row 0: question must be a text"),
        ({"image": [picture()], "question": ["<image>\u200b"]}, "row 0: question must be a text"),
        ({"image": [picture()], "question": ["<image> or <image>"]}, "row 0: question has 2 <image>"),
        ({"image": [picture()], "question": ["a <video>"]}, "row 0: question contains <video>, and there is no video"),
        ({"image": [picture()], "question": ["a <|image_pad|>"]}, "row 0: question contains '<.image_pad.>', which"),
        ({"image": [picture()] * 2, "question": ["a", "<latent_pad_1>"]}, "row 1: question contains '<latent_pad_1>'"),
        ({"image": [picture()]}, "question"),
    ):
        with pytest.raises(mlflow.MlflowException, match=message):
            model.predict(pd.DataFrame(bad))
    assert len(model.predict(pd.DataFrame({"image": [picture(200, 1)], "question": ["What colour?"]}))) == 1


def test_the_served_model_answers_with_the_settings_it_was_evaluated_with(
    tracked: RunConfig,
    tmp_path: Path,
    dataset: DatasetRecord,
    checkpoint: Callable[..., CheckpointRecord],
    evaluation: Callable[..., EvalRecord],
) -> None:
    import mlflow

    from amvl_core.eval.predict import Answerer

    saved, processor = amvl_model(dtype=torch.float32)
    saved.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    given = {"max_new_tokens": 70, "tau": 1.0, "seed": 3}
    config = override(tracked, {"evaluation": given, "tracking": {"registered_model": "qwen2.5-vl-amvl"}})
    with Tracker(config) as tracker:
        run_id, model = tracker.start(), checkpoint(uri=str(tmp_path))
        scores, uri = [evaluation("amvl", 8)], f"{config.storage}/register/r2"
        decision = registry.decide(config, scores[0], None, None)
        registry.register(config, run_id, dataset, model, scores, decision, uri, 6000 * "|")
    version = client(config).get_model_version("qwen2.5-vl-amvl", "1")
    assert len(version.description) == registry.MAX_DESCRIPTION == SqlModelVersion.description.type.length
    served = mlflow.pyfunc.load_model("models:/qwen2.5-vl-amvl@champion")
    assert served.model_config == {**given, "gpus": 1}
    changed = mlflow.pyfunc.load_model("models:/qwen2.5-vl-amvl@champion", model_config={"max_new_tokens": 64})
    assert changed.model_config == {**given, "max_new_tokens": 64, "gpus": 1}
    answers = served.predict(pd.DataFrame({"image": [picture()], "question": ["What colour?"]}))

    def answer(**settings: Any) -> list[str]:
        return Answerer.from_pretrained(str(tmp_path / "model")).answer([[picture()]], ["What colour?"], **settings)

    assert answers == answer(**given)
    for name, other in {"max_new_tokens": 64, "tau": 0.0, "seed": 0}.items():
        assert answers != answer(**{**given, name: other}), name


def test_requirements_are_versions_that_an_index_has() -> None:
    requirements = registry._requirements()
    assert any(line.startswith("torch==") for line in requirements)
    assert not any("+" in line for line in requirements)


IMPORTED = """
import builtins, json, sys
found, plain = set(), builtins.__import__

def noted(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__file__") or ""
    if level == 0 and ("/amvl_core/" in importer or importer.endswith("/pyfunc_model.py")):
        found.add(name.partition(".")[0])
    return plain(name, globals, locals, fromlist, level)

builtins.__import__ = noted
import mlflow, pandas
image, = sys.argv[1:]
model = mlflow.pyfunc.load_model("models:/amvl@champion")
assert len(model.predict(pandas.DataFrame({"image": [image], "question": ["What colour?"]}))) == 1
from amvl_core.contracts.method import configurations
for method in configurations().values():
    method.implementation()
print(json.dumps(sorted(found - sys.stdlib_module_names - {"amvl_core"})))
"""


def with_dependencies(packages: Iterable[str]) -> set[str]:
    """The packages and all that they need in turn, without extras."""
    found: set[str] = set()
    todo = [canonicalize_name(package) for package in packages]
    while todo:
        if (package := todo.pop()) not in found and installed(package) != UNKNOWN:
            found.add(package)
            needed = map(Requirement, requires(package) or [])
            todo += [
                canonicalize_name(one.name) for one in needed if not one.marker or one.marker.evaluate({"extra": ""})
            ]
    return found


def test_what_the_served_model_imports_is_required(registered: ModelRecord, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["MLFLOW_TRACKING_URI"] = registered.tracking_uri
    command = [sys.executable, "-c", IMPORTED, base64.b64encode(picture()).decode()]
    served = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert served.returncode == 0, served.stderr
    imported = json.loads(served.stdout.splitlines()[-1])
    assert {"mlflow", "torch", "PIL", "fsspec"} < set(imported)
    brought = with_dependencies(line.partition("==")[0] for line in registry._requirements())
    names = packages_distributions()
    assert [name for name in imported if not brought & {canonicalize_name(one) for one in names[name]}] == []


def test_a_registration_is_named_by_weights_scores_and_place(
    tracked: RunConfig, checkpoint: Callable[..., CheckpointRecord], evaluation: Callable[..., EvalRecord]
) -> None:
    def name(config: RunConfig = tracked, model: str = "c1", scores: str = "e1") -> str:
        return registry.fingerprint(config, checkpoint(fingerprint=model), [evaluation("amvl", 5, scores)])

    tracking = tracked.tracking.model_copy(update={"alias": "candidate"})
    moved = tracked.model_copy(update={"storage": "/elsewhere"})
    assert (
        len({name(), name(model="c2"), name(scores="e2"), name(tracked.model_copy(update={"tracking": tracking}))}) == 4
    )
    assert name(moved) == name()


@pytest.fixture()
def answered(tmp_path: Path, evaluation: Callable[..., EvalRecord]) -> Callable[..., EvalRecord]:
    """An evaluation on 20 items of which the numbers in `right` were answered rightly."""

    def make(name: str, right: set[int], items: int = 20) -> EvalRecord:
        record = evaluation("amvl", len(right) // 2, name).model_copy(update={"uri": str(tmp_path / name)})
        (tmp_path / name).mkdir()
        columns = {
            "sample_id": [f"s{i}" for i in range(items)],
            "task": ["a"] * items,
            "part": [""] * items,
            "group": [""] * items,
            "score": [float(i in right) for i in range(items)],
        }
        pq.write_table(pa.table(columns), tmp_path / name / "predictions.parquet")
        return record

    return make


def test_a_version_whose_answers_are_mostly_cut_is_never_champion(
    tracked: RunConfig, checkpoint: Callable[..., CheckpointRecord], answered: Callable[..., EvalRecord]
) -> None:
    """Neither the first one nor one that is as good as the champion; half of them cut is not most."""
    for cut, passes in ((20, False), (11, False), (10, True)):
        new = answered(f"new-{cut}", {1, 2}).model_copy(update={"asked": 20, "cut": cut})
        first = registry.decide(tracked, new, None, None)
        beside = registry.decide(tracked, new, registry.Champion(3, checkpoint()), new)
        assert first.alias == ("champion" if passes else "challenger")
        said = f"{cut} of 20 answers were cut before their end; raise evaluation.max_new_tokens"
        assert [one.reason.startswith(said) for one in (first, beside)] == [not passes] * 2


def test_a_version_that_is_worse_beyond_the_interval_is_the_challenger(
    tracked: RunConfig, checkpoint: Callable[..., CheckpointRecord], answered: Callable[..., EvalRecord]
) -> None:
    present = registry.Champion(3, checkpoint())
    held = answered("held", set(range(16)))
    worse = registry.decide(tracked, answered("worse", set(range(6))), present, held)
    assert worse.alias == "challenger"
    # Ten of twenty lost: the interval of -50 points stays below 0, and a fair coin does it in 2 of 1024 cases.
    assert worse.reason.startswith("worse than the present champion, version 3: -50.0 points (-7")
    assert worse.reason.endswith("n = 20, 0 gained, 10 lost, McNemar exact p = 0.0020")
    better = registry.decide(tracked, answered("better", set(range(20))), present, held)
    assert better.alias == "champion"
    assert better.reason.startswith("not worse than the former champion, version 3: +20.0 points (")
    with pytest.raises(DataError, match="a paired test needs the same items"):
        registry.decide(tracked, answered("others", set(), items=19), present, held)


@pytest.mark.parametrize(
    ("lost", "gained", "items", "margin", "alias"),
    [
        (12, 9, 147, 1.0, "challenger"),  # -2.0 points (-8.2 to +4.1): nothing is shown
        (12, 9, 147, 8.0, "challenger"),
        (12, 9, 147, 8.5, "champion"),
        (0, 0, 1, 50.0, "challenger"),  # one question answered alike: -79.3 to +79.3
        (0, 0, 147, 1.0, "challenger"),  # alike on every question: -2.5 to +2.5
        (0, 0, 800, 1.0, "champion"),  # -0.5 to +0.5
        (20, 10, 4000, 1.0, "champion"),  # -0.25 points (-0.5 to 0.0)
        (30, 5, 4000, 1.0, "champion"),  # -0.6 (-0.9 to -0.3): worse, by less than the margin
        (60, 5, 4000, 1.0, "challenger"),  # -1.4 (-1.8 to -1.0)
        (30, 5, 4000, 0.0, "challenger"),  # without a margin only what is better passes
        (5, 30, 4000, 0.0, "champion"),
    ],
)
def test_the_interval_must_lie_above_minus_the_margin(
    tracked: RunConfig,
    checkpoint: Callable[..., CheckpointRecord],
    answered: Callable[..., EvalRecord],
    lost: int,
    gained: int,
    items: int,
    margin: float,
    alias: str,
) -> None:
    right = set(range(items // 2))
    new = right - set(range(lost)) | set(range(items - gained, items))
    config = override(tracked, {"tracking": {"margin": margin}})
    present = registry.Champion(3, checkpoint())
    held, after = answered("held", right, items), answered("new", new, items)
    decision = registry.decide(config, after, present, held)
    found = compare_evaluations(held, after)
    assert decision.alias == alias
    assert (100 * found.low > -margin) == (alias == "champion")
    if alias == "challenger" and found.high >= 0:
        said = (
            f"not shown to lose less than tracking.margin ({margin:g} points) against the present champion, version 3: "
        )
        assert decision.reason.startswith(said)


def test_a_slow_decline_is_seen_against_the_best_version_so_far(
    tracked: RunConfig, checkpoint: Callable[..., CheckpointRecord], answered: Callable[..., EvalRecord]
) -> None:
    """Each version is 0.5 points worse than the one before, which the margin lets pass."""
    config = override(tracked, {"tracking": {"margin": 2}})
    versions = {i: answered(f"v{i}", set(range(20 * i, 2000)), 4000) for i in range(1, 5)}
    best, reasons = None, []
    for number in range(2, 5):
        present = registry.Champion(number - 1, checkpoint())
        others = {best: versions[best]} if best else {}
        decision = registry.decide(config, versions[number], present, versions[number - 1], "", others)
        assert decision.alias == "champion"
        best = decision.best
        reasons.append(decision.reason)
    assert best == 1
    assert "best so far" not in reasons[0]
    assert "version 3: -0.5 points (" in reasons[2]
    assert "; against the best so far, version 1: -1.5 points (-1.9 to -1.1), n = 4,000, 0 gained, 60" in reasons[2]
    assert decision.against_best.startswith("version 1: -1.5 points (")
    ahead = registry.decide(config, answered("ahead", set(range(2100)), 4000), present, versions[3], "", others)
    assert (ahead.alias, ahead.best) == ("champion", None)
    assert ahead.against_best.startswith("version 1: +3.0 points (")


def test_a_champion_that_cannot_be_evaluated_is_not_replaced(
    tracked: RunConfig, checkpoint: Callable[..., CheckpointRecord], answered: Callable[..., EvalRecord]
) -> None:
    new = answered("new", set(range(20)))
    gone = registry.decide(tracked, new, registry.Champion(3, None), None)
    assert gone.alias == "challenger"
    assert "version 3: its checkpoint is not there any more; move the alias by hand" in gone.reason
    broken = registry.decide(tracked, new, registry.Champion(3, checkpoint()), None, "it cannot be evaluated")
    assert "version 3: it cannot be evaluated; move" in broken.reason
    assert (gone.against_best, gone.best) == ("there is none to compare with", None)
    beside = registry.decide(tracked, new, registry.Champion(3, None), None, "", {1: answered("best", {1, 2})})
    assert beside.alias == "challenger"
    assert beside.against_best.startswith("version 1: +90.0 points (")


def test_the_champion_is_found_with_its_checkpoint_here_or_where_it_was(
    tracked: RunConfig, registered: ModelRecord, folder: Path, checkpoint: Callable[..., CheckpointRecord]
) -> None:
    assert registry.champion(tracked) == registry.Champion(1, None, SOURCES)  # no record was written there
    there = checkpoint(uri=str(folder))
    save_record(there)
    assert registry.champion(tracked) == registry.Champion(1, there, SOURCES)
    here = checkpoint(uri=f"{tracked.storage}/train/c1")
    save_record(here)
    assert registry.champion(tracked) == registry.Champion(1, here, SOURCES)
    other = checkpoint(uri=f"{tracked.storage}/train/c1", fingerprint="c2")
    save_record(other)
    assert registry.champion(tracked) == registry.Champion(1, there, SOURCES)
    assert registry.best(tracked) == registry.Champion(1, there, SOURCES)
    assert registry.champion(override(tracked, {"tracking": {"alias": "nobody"}})) is None
    unknown = override(tracked, {"tracking": {"registered_model": "unknown"}})
    assert (registry.champion(unknown), registry.best(unknown)) == (None, None)
    client(unknown).create_registered_model("unknown")  # by an earlier release, or by hand: without the tag
    assert registry.best(unknown) is None


def test_a_version_is_current_while_it_is_there_and_there_is_a_champion(
    tracked: RunConfig, registered: ModelRecord, evaluation: Callable[..., EvalRecord]
) -> None:
    scores = evaluation("amvl", 8)
    cut = scores.model_copy(update={"asked": 20, "cut": 11})
    mlflow_client = client(tracked)
    mlflow_client.delete_registered_model_alias("amvl", "champion")
    assert not registry.is_current(tracked, scores, registered)
    assert registry.is_current(tracked, cut, registered)  # it need not be registered again to be no champion
    mlflow_client.set_registered_model_alias("amvl", "champion", 1)
    assert registry.is_current(tracked, scores, registered)
    assert mlflow_client.get_registered_model("amvl").tags == {"best_version": "1"}


def test_a_challenger_is_decided_again_under_another_margin_and_stays_the_same_version(
    tracked: RunConfig,
    dataset: DatasetRecord,
    checkpoint: Callable[..., CheckpointRecord],
    answered: Callable[..., EvalRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One question of twenty lost, -5 points: not shown within 1 point, and within 30."""
    strict = override(tracked, {"tracking": {"registered_model": "margins"}})
    wide, mlflow_client = override(strict, {"tracking": {"margin": 30}}), client(strict)
    mlflow_client.create_registered_model("margins")
    logged: list[str] = []

    def log(_: object, run_id: str, *__: object) -> str:
        logged.append(run_id)
        return str(mlflow_client.create_model_version("margins", "nowhere", run_id=run_id).version)

    monkeypatch.setattr(registry, "_log", log)

    def register(config: RunConfig, run_id: str, new: EvalRecord, held: EvalRecord | None) -> ModelRecord:
        decision = registry.decide(config, new, registry.champion(config), held)
        uri = f"{config.storage}/register/{new.fingerprint}"
        return registry.register(config, run_id, dataset, checkpoint(), [new], decision, uri, TABLE)

    held, new = answered("held", set(range(16))), answered("new", set(range(15)))
    first, second = register(strict, "1" * 32, held, None), register(strict, "2" * 32, new, held)
    assert (first.alias, second.alias) == ("champion", "challenger")
    assert registry.is_current(wide, held, first)  # a champion is not asked again
    assert [registry.is_current(config, new, second) for config in (strict, wide)] == [True, False]
    mlflow_client.set_registered_model_alias("margins", "champion", "2")
    assert registry.is_current(wide, new, second)  # somebody moved the alias by hand
    mlflow_client.set_registered_model_alias("margins", "champion", "1")
    third = register(wide, "3" * 32, new, held)
    assert (third.version, third.run_id, third.alias) == (2, "2" * 32, "champion")
    assert third.reason.startswith("not worse than the former champion, version 1: -5.0 points (")
    assert registry.is_current(wide, new, third) and logged == ["1" * 32, "2" * 32]
    assert client(wide).get_model_version("margins", "2").aliases == ["champion"]
    assert client(wide).get_model_version("margins", "2").tags["gate_margin"] == "30"


def test_the_alias_of_the_gate_cannot_be_that_of_the_worse(tracked: RunConfig) -> None:
    with pytest.raises(ConfigError, match="alias 'challenger' is that of versions that are worse"):
        override(tracked, {"tracking": {"alias": "challenger"}})


def test_a_request_over_http_is_answered_or_refused_with_a_reason(tracked: RunConfig, registered: ModelRecord) -> None:
    import mlflow
    from fastapi.testclient import TestClient
    from mlflow.pyfunc.scoring_server import init

    client(tracked)
    server = TestClient(init(mlflow.pyfunc.load_model("models:/amvl@champion")))
    image = base64.b64encode(picture()).decode()

    def ask(body: Any) -> Any:
        return server.post("/invocations", json=body)

    good = ask({"dataframe_records": [{"image": image, "question": "What colour?"}]})
    assert good.status_code == 200
    assert len(good.json()["predictions"]) == 1
    lines, address = base64.encodebytes(picture()).decode(), f"data:image/png;base64,{image}"
    assert lines.count("\n") > 1
    for form in FORMS:
        for text in (image, lines, lines.replace("\n", "\r\n"), address):
            found = ask(FORMS[form]([{"image": text, "question": "What colour?"}] * 2))
            assert found.json().get("predictions") == good.json()["predictions"] * 2, (form, found.json())
        for text in ("%%%", image[:-3], "https://example.org/a.png", "a picture!", f"data:image/png,{image}"):
            refused = ask(FORMS[form]([{"image": image, "question": "a"}, {"image": text, "question": "a"}]))
            assert (refused.status_code, refused.json()["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
            assert "row 1: image is text that is not base64" in refused.json()["message"]
    sheet = f'image,question\n"{lines}",What colour?\n'
    answered = server.post("/invocations", content=sheet, headers={"Content-Type": "text/csv"})
    assert answered.json()["predictions"] == good.json()["predictions"]
    for row, reason in (
        ({"image": image, "question": ""}, "row 0: question must be a text"),
        (
            {"image": base64.b64encode(b"text").decode(), "question": "a"},
            "row 0: image is no picture that can be decoded (UnidentifiedImageError)",
        ),
        (
            {"image": base64.b64encode(picture(1, 500)).decode(), "question": "a"},
            "row 0: image has 1 x 500 pixels, one side over 200 times the other",
        ),
        (
            {"image": image, "question": "<|image_pad|>"},
            "row 0: question contains '<|image_pad|>', which the model reads as a control token",
        ),
        ({"image": image}, "question"),
    ):
        refused = ask({"dataframe_records": [row]})
        assert refused.status_code == 400
        assert reason in refused.json()["message"]
    json_type = {"Content-Type": "application/json"}
    assert 400 <= ask({"rows": []}).status_code < 500
    assert 400 <= server.post("/invocations", content="no JSON", headers=json_type).status_code < 500
    assert ask({"dataframe_records": [{"image": "%%%", "question": "a"}]}).status_code == 400


@pytest.mark.slow
def test_the_command_serves_the_champion_on_loopback(
    tracked: RunConfig, registered: ModelRecord, unused_port: int, tmp_path: Path
) -> None:
    """In a folder of its own and without this checkout on the path: the model brings the code that it needs."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["MLFLOW_TRACKING_URI"] = registered.tracking_uri
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", "models:/amvl@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(unused_port)]
    address, log = f"http://127.0.0.1:{unused_port}", tmp_path / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 240
        while _ask(f"{address}/ping") != (200, None):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        row = {"image": base64.encodebytes(picture()).decode(), "question": "What colour?"}
        status, found = _ask(f"{address}/invocations", {"dataframe_records": [row]})
        assert status == 200, found
        (answer,) = found["predictions"]
        assert isinstance(answer, str)
        status, found = _ask(f"{address}/invocations", {"dataframe_records": [row, {**row, "question": " "}]})
        assert (status, found["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
        assert "row 1: question must be a text that is not empty" in found["message"]
        status, found = _ask(f"{address}/invocations", {"rows": [row]})
        assert 400 <= status < 500
        assert "dataframe_records" in json.dumps(found)
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # the command and the server that it started, as Ctrl-C would
        server.wait(timeout=60)
    deadline = time.monotonic() + 60
    while _ask(f"{address}/ping") != (0, None):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def _ask(url: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """Status and JSON of the answer; (0, None) where nobody listens."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urlopen(Request(url, data, {"Content-Type": "application/json"}), timeout=60) as response:
            status, text = response.status, response.read()
    except HTTPError as error:
        status, text = error.code, error.read()
    except OSError:
        return 0, None
    return status, json.loads(text) if text.strip() else None
