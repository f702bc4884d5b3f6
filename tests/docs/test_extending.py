"""The worked changes of docs/extending.md apply to this tree, and what they add works."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
CHANGES = dict(re.findall(r"^## (.+?)\n.*?^```diff\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))

TRAIN = """
import json, sys
import torch
from amvl_core.backbones.processor import load_processor
from amvl_core.contracts.method import configurations
from amvl_core.data.batch import collate
from amvl_core.data.encode import Encoder, laid_out
from amvl_core.methods.method import Clock
from tests.shards import sample_of
from tests.tiny import LATENT, picture, stock_folder

kind, fields = sys.argv[1], json.loads(sys.argv[2])
config = configurations()[kind].model_validate(fields)
processor = load_processor(stock_folder())
torch.manual_seed(0)
model = config.implementation().load(stock_folder(), processor, LATENT, dtype=torch.float64).train()
method = config.implementation()(model, config)
samples = [sample_of(str(i), "<image>What?", answer, [picture(i)]) for i, answer in enumerate(("red", "blue"))]
batch = collate([laid_out(Encoder(processor), config, LATENT, sample) for sample in samples])
output = method(batch, Clock(seed=0, step=0, num_tokens=4.0, num_samples=2))
output.backward()
rows = model.get_input_embeddings().weight.grad[method.new_token_rows()].abs().amax(1)
found = {"terms": {name: float(value) for name, value in output.terms.items() if value.ndim == 0}}
print(json.dumps({**found, "rows": rows.tolist(), "tokens": len(batch.input_ids_N)}))
"""

TUNE = """
import sys
from pathlib import Path
import torch
from amvl_core.backbones.processor import load_processor
from amvl_core.contracts.method import configurations
from amvl_core.methods.method import Clock
from tests.amvl_core.backbones.qwen2_vl import save_tiny
from tests.tiny import LATENT, batch

save_tiny(Path(sys.argv[1]))
processor = load_processor(sys.argv[1])
config = configurations()["sft"].model_validate({})
model = config.implementation().load(sys.argv[1], processor, LATENT, dtype=torch.float32)
output = config.implementation()(model, config)(batch(processor, None), Clock(0, 0, 12.0, 4))
output.backward()
print(type(model).__name__, bool(output.loss.isfinite()))
"""

READ = """
import sys
from amvl_core.contracts.sources import TableVqaSource
from data_prep.filters import Drop
from data_prep.sources import convert, list_rows
from data_prep.sources.archive import open_archive

source = TableVqaSource(uri=sys.argv[1])
with open_archive(source.uri) as archive:
    for row in list_rows(source, source.kind, archive, 0):
        found = row.drop or convert(source, source.kind, row, [archive.read(name) for name in row.images])
        print(found.reason if isinstance(found, Drop) else f"{found.split} {found.question} {found.answer}")
"""

ASK = """
import sys
from amvl_core.eval.benchmarks import BENCHMARKS
from amvl_core.eval.benchmarks.scoring import score_benchmark

benchmark = BENCHMARKS["counting"]
asked = list(benchmark.read(sys.argv[1]))
stored = [{**item.row("counting"), "raw_output": text} for item, text in zip(asked, ("There are three.", "4"))]
print({name: found.scores["accuracy"].value for name, found in score_benchmark(benchmark, stored).items()}["number"])
"""


@pytest.fixture()
def apply(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of the sources with the change of a section."""

    def changed(section: str) -> Path:
        tree = tmp_path / "tree"
        for name in ("amvl_core", "benchmarks", "data_prep", "tests"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        done = subprocess.run(["git", "apply", "-"], cwd=tree, input=CHANGES[section], text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        return tree

    return changed


def run(tree: Path, code: str, *arguments: str) -> str:
    """What `code` prints in `tree`."""
    command, environment = [sys.executable, "-c", code, *arguments], {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_method_trains(apply: Callable[[str], Path]) -> None:
    tree = apply("A method")
    found, plain = (json.loads(run(tree, TRAIN, kind, "{}")) for kind in ("brackets", "sft"))
    assert found["tokens"] == plain["tokens"] + 2 * 2  # two markers in each of two samples
    assert len(found["rows"]) == 2 and min(found["rows"]) > 0


def test_the_term_reaches_the_loss_and_is_logged(apply: Callable[[str], Path]) -> None:
    """Without a weight nothing changes."""
    tree = apply("A term in AMVL's loss")
    plain, weighted = (json.loads(run(tree, TRAIN, "amvl", f'{{"diversity": {w}}}'))["terms"] for w in (0.0, 0.5))
    assert "diversity" not in plain
    assert weighted["diversity"] > 0
    assert weighted["loss"] == pytest.approx(plain["loss"] + weighted["diversity"], rel=0, abs=1e-12)


def test_the_source_is_read(apply: Callable[[str], Path], tmp_path: Path) -> None:
    from tests.tiny import picture

    folder = tmp_path / "table"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture(0))
    lines = ["split,image,question,answer", "train,a.png,What?,red", "test,a.png,Which?,blue", "train,a.png,cut"]
    (folder / "questions.csv").write_text("\n".join(lines))
    found = run(apply("A data source"), READ, str(folder)).splitlines()
    assert found == ["train <image>What? red", "test <image>Which? blue", "malformed_row"]


def test_the_benchmark_is_scored(apply: Callable[[str], Path], tmp_path: Path) -> None:
    from tests.tiny import picture

    folder = tmp_path / "counting"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture(0))
    rows = [{"id": i, "image": "a.png", "question": f"How many {i}?", "count": 3} for i in range(2)]
    (folder / "counting.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert float(run(apply("A benchmark"), ASK, str(folder))) == 0.5


def test_the_base_model_trains(apply: Callable[[str], Path], tmp_path: Path) -> None:
    found = run(apply("A base model"), TUNE, str(tmp_path / "base"))
    assert found.split() == ["Qwen2VLForConditionalGeneration", "True"]
