"""What is refused before anything is computed."""

import json
from pathlib import Path

import huggingface_hub
import pytest

from amvl_core.backbones.loading import base_processor
from amvl_core.contracts.config import BenchmarkSource, EvaluationConfig, ModelConfig, RunConfig, override
from amvl_core.contracts.errors import ConfigError
from amvl_core.contracts.presets import PRESETS
from amvl_core.methods.amvl.presets import paper
from flows.checks import check_base, check_benchmarks, check_encoders, check_tested, check_tokens
from tests.amvl_core.eval.benchmarks import published


def config(*sources: tuple[str, str]) -> RunConfig:
    benchmarks = tuple(BenchmarkSource.model_validate({"name": name, "uri": uri}) for name, uri in sources)
    return paper().model_copy(update={"evaluation": EvaluationConfig(benchmarks=benchmarks)})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vstar", r"the folder with test_questions\.jsonl and its images"),
        ("hrbench_8k", "the Parquet or TSV file with 8k in its name"),
        ("blink", "the folder that holds a folder per task"),
        ("visual_puzzles", "the folder with the published Parquet files"),
        ("mmvp", r"the folder that holds Questions\.csv and `MMVP Images`"),
        ("cv_bench", r"test_2d\.parquet and test_3d\.parquet"),
        ("mmstar", "the published Parquet file"),
    ],
)
def test_a_benchmark_that_is_not_there_is_refused_with_what_is_expected(
    name: str, expected: str, tmp_path: Path
) -> None:
    first = "mmvp" if name != "mmvp" else "vstar"
    (tmp_path / "there").mkdir()
    (published.mmvp if first == "mmvp" else published.vstar)(tmp_path / "there")
    (tmp_path / "empty").mkdir()
    check_benchmarks(config((first, str(tmp_path / "there"))))
    for missing in ("nowhere", "empty"):
        sources = (first, str(tmp_path / "there")), (name, str(tmp_path / missing))
        with pytest.raises(ConfigError, match=rf"evaluation\.benchmarks\.1 \({name}\): .*{missing} holds .*{expected}"):
            check_benchmarks(config(*sources))


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}", '{"model_type": "qwen2_5_vl"}'])
def test_a_base_without_a_tokenizer_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"model\.base: no tokenizer and image processor can be loaded from '/"):
        base_processor(ModelConfig(base=str(tmp_path)))


def test_a_benchmark_is_named_once() -> None:
    with pytest.raises(ValueError, match="names mmvp more than once"):
        config(("mmvp", "a"), ("mmvp", "b"))


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset_has_test_rows(preset: str) -> None:
    check_tested(PRESETS[preset]())


def test_training_rows_alone_are_refused_before_anything_is_read() -> None:
    chat = {"kind": "chat_jsonl", "uri": "folder"}
    one_thinker, monet = ({"kind": kind, "uri": f"s3://b/{kind}"} for kind in ("onethinker", "monet"))
    for sources, kinds in (
        ([monet, one_thinker], "monet, onethinker"),
        ([{**chat, "test_limit": 0}], "chat_jsonl"),
        ([{"kind": "microworld", "test": 0}], "microworld"),
    ):
        with pytest.raises(ConfigError, match=rf"^data\.sources: no source has test rows to evaluate on \({kinds}\)"):
            check_tested(override(paper(), {"data": {"sources": sources}}))
    check_tested(override(paper(), {"data": {"sources": [monet, {**chat, "train_limit": 0}]}}))


def aligned(source: str, **encoder: int) -> RunConfig:
    """A run whose last stage is aligned with one encoder."""
    method = {"kind": "valr", "encoders": [{"name": "e", "source": source, **encoder}]}
    return override(
        paper(),
        {
            "latent": {"num_slots": 4},
            "stages": {name: {"method": method, "trainable": "all"} for name in paper().stages},
        },
    )


def test_an_encoder_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "model").mkdir()
    check_encoders(aligned("tiny:clip"))
    where = "stages.embedding_adaptation: encoder e: "
    with pytest.raises(ConfigError, match=f"{where}the folder .*model holds no config.json"):
        check_encoders(aligned(str(tmp_path / "model")))
    (tmp_path / "model" / "config.json").write_text('{"model_type": "dinov2", "patch_size": 14}')
    check_encoders(aligned(str(tmp_path / "model")))
    with pytest.raises(ConfigError, match=f"{where}'some/encoder' is no folder, is not in the Hugging Face cache"):
        check_encoders(aligned("some/encoder"))
    with pytest.raises(ConfigError, match=f"{where}.*model holds no features; give the folder with features.json"):
        check_encoders(aligned(f"features:{tmp_path}/model"))


@pytest.mark.parametrize(
    ("fields", "size", "patch", "proposed"),
    [
        ({"model_type": "dinov2", "patch_size": 14}, 225, 14, "224 or 238"),
        ({"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}}, 20, 16, "16 or 32"),
        ({"model_type": "clip", "vision_config": {"patch_size": 32}}, 225, 32, "224 or 256"),
    ],
)
def test_a_size_that_does_not_fit_the_patches_of_an_encoder_is_refused(
    fields: dict[str, object], size: int, patch: int, proposed: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields))
    said = rf"stages\..*: encoder e: size {size} is no multiple of {patch} pixels.*; set size to {proposed}"
    with pytest.raises(ConfigError, match=said):
        check_encoders(aligned(str(tmp_path), size=size))


def test_a_size_that_does_not_fit_the_patches_of_a_tiny_encoder_or_of_the_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"encoder e: size 60 is no multiple of 8 pixels.*; set size to 56 or 64"):
        check_encoders(aligned("tiny:dinov3", size=60))
    mull = override(PRESETS["mull-demo"](), {"stages": {"mull_guided": {"method": {"image_size": 65}}}})
    based = override(mull, {"model": {"base": str(tmp_path)}})
    vision = {"patch_size": 14, "spatial_merge_size": 2}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl", "vision_config": vision}))
    for run, patch in ((mull, 16), (based, 28)):
        with pytest.raises(ConfigError, match=rf"mull_guided: encoder base: size 65 is no multiple of {patch} pixels"):
            check_encoders(run)
    check_encoders(PRESETS["mull-demo"]())


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    ("kind", "layers", "said"),
    [
        ("qwen2_5_vl", 12, None),
        ("valr", 12, r"model\.base: .* is a 'valr' model, and stages\.sft \(sft\) starts from .* qwen2_5_vl;"),
        ("qwen3_vl", 12, r"model\.base: .* is a 'qwen3_vl' model.*; give such a base model"),
        (None, 12, r"model\.base: .* is a None model"),
        ("qwen2_5_vl", 11, r"stages\.valr: align_layer is 12, the base model has 11 layers"),
        ("qwen2_5_vl", None, None),
    ],
)
def test_a_base_that_no_stage_can_load_or_that_lacks_a_layer_is_refused(
    kind: str | None, layers: int | None, said: str | None, nested: bool, tmp_path: Path
) -> None:
    text = {} if layers is None else {"num_hidden_layers": layers}
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": kind, **({"text_config": text} if nested else text)})
    )
    run = override(
        PRESETS["valr-demo"](),
        {"model": {"base": str(tmp_path)}, "stages": {"valr": {"method": {"align_layer": 12}}}},
    )
    if said is None:
        check_base(run)
    else:
        with pytest.raises(ConfigError, match=said):
            check_base(run)


def test_a_base_that_is_in_the_cache_is_asked_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(tmp_path / "config.json"))
    with pytest.raises(ConfigError, match=r"model\.base: some/model is a 'llava' model"):
        check_base(override(PRESETS["demo"](), {"model": {"base": "some/model"}}))


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_config_of_a_base_that_cannot_be_read_is_said(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"model\.base: .*config\.json (is no JSON|holds no fields).*; download it"):
        check_base(override(PRESETS["demo"](), {"model": {"base": str(tmp_path)}}))


def test_a_text_that_is_not_one_token_of_the_base_model_is_refused() -> None:
    for text, tokens in ((":", None), ("no token", r"[2-9]")):
        run = override(PRESETS["demo"](), {"latent": {"token_init": text}})
        if tokens is None:
            check_tokens(run)
        else:
            with pytest.raises(ConfigError, match=f"latent.token_init is '{text}', which is {tokens} tokens"):
                check_tokens(run)
