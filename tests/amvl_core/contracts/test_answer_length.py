"""How long an answer may be: what the targets take, or what was given."""

from amvl_core.contracts.ablations import controls
from amvl_core.contracts.answer_length import PUBLISHED, max_new_tokens
from amvl_core.contracts.config import override
from amvl_core.contracts.records import DatasetRecord, SourceReport
from amvl_core.methods.amvl.presets import demo


def dataset(**targets: dict[int, int]) -> DatasetRecord:
    reports = [
        SourceReport.model_validate(
            {"source": "own", "split": split, "read": 0, "kept": 0, "dropped": {}, "examples": {}}
            | {"target_tokens": tokens}
        )
        for split, tokens in targets.items()
    ]
    return DatasetRecord(uri="u", fingerprint="d", schema_version=1, shards=[], kept=0, dropped={}, reports=reports)


def test_it_follows_the_longest_target_of_both_splits_with_a_margin() -> None:
    assert max_new_tokens(demo(), dataset(train={9: 4, 253: 1}, test={119: 2})) == 317  # 1.25 x 253 = 316.25
    assert max_new_tokens(demo(), dataset(train={9: 4}, test={119: 2})) == 149


def test_markers_that_a_model_writes_are_room_besides() -> None:
    plain = demo()
    markers = controls(override(plain, {"evaluation": {"controls": ["markers"]}}))["markers only"]
    data = dataset(train={2: 1})
    assert max_new_tokens(markers, data) - max_new_tokens(plain, data) == markers.method.added_tokens(plain.latent) > 0


def test_what_is_given_holds_and_published_questions_have_a_length_of_their_own() -> None:
    given = override(demo(), {"evaluation": {"max_new_tokens": 7}})
    assert max_new_tokens(given, dataset(train={9: 4}, test={119: 2})) == 7
    assert max_new_tokens(given, dataset()) == 7
    assert max_new_tokens(demo(), dataset()) == PUBLISHED
