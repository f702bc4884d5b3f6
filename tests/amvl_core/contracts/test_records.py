import pytest

from amvl_core.contracts import storage
from amvl_core.contracts.config import DataConfig
from amvl_core.contracts.errors import DataError, StorageError
from amvl_core.contracts.records import DatasetRecord, Shard, SourceReport, fingerprint, load_record, save_record


def record(uri: str) -> DatasetRecord:
    shards = [
        Shard(file=f"{split}-0.parquet", split=split, rows=n, sha256="") for split, n in (("train", 5), ("test", 2))
    ]
    return DatasetRecord(uri=uri, fingerprint="f", schema_version=1, shards=shards, kept=7, dropped={}, reports=[])


def test_a_record_round_trips_and_is_where_it_is_found(tmp_path) -> None:
    saved = record(str(tmp_path / "a"))
    save_record(saved)
    assert load_record(saved.uri, DatasetRecord) == saved
    (tmp_path / "a").rename(tmp_path / "b")
    moved = load_record(str(tmp_path / "b"), DatasetRecord)
    assert moved is not None and moved.uri == str(tmp_path / "b")
    assert moved.rows("train") == 5 and moved.rows("test") == 2


def test_a_stage_without_a_record_is_not_finished(tmp_path) -> None:
    assert load_record(str(tmp_path), DatasetRecord) is None


def test_a_damaged_record_says_what_to_remove(tmp_path) -> None:
    storage.write_bytes(str(tmp_path / "record.json"), b'{"uri": "')
    with pytest.raises(StorageError, match=r"is damaged .* remove the folder"):
        load_record(str(tmp_path), DatasetRecord)


def test_fingerprints_are_stable_and_sensitive() -> None:
    assert fingerprint("x", 1, a=1, b=[True, None, 0.5], c=DataConfig()) == fingerprint(
        "x", 1, c=DataConfig(), b=(True, None, 0.5), a=1
    )
    variants = [("x", 1, {"a": 1}), ("x", 2, {"a": 1}), ("y", 1, {"a": 1}), ("x", 1, {"a": 2}), ("x", 1, {"a": 1.0})]
    assert len({fingerprint(name, version, **parts) for name, version, parts in variants}) == len(variants)
    # A pinned value: a change of the canonical form would silently redo every stage of every user.
    assert fingerprint("x", 1, a={"b": [1, "two", 0.5]}) == PINNED


PINNED = "9cfd39cf7500955a"


@pytest.mark.parametrize("value", [{1, 2}, object(), float("nan"), {"a": b"bytes"}, {1: 2}])
def test_what_has_no_stable_form_is_refused(value) -> None:
    with pytest.raises(TypeError, match="stable form"):
        fingerprint("x", 1, part=value)


def test_without_test_rows_what_was_passed_over_is_said() -> None:
    report = SourceReport(
        source="s", split="train", read=1, kept=1, dropped={}, examples={}, notes={"val.jsonl is not read": 1}
    )
    dataset = DatasetRecord(uri="u", fingerprint="f", schema_version=1, shards=[], kept=1, dropped={}, reports=[report])
    with pytest.raises(DataError, match=r"no test split .*; s: val\.jsonl is not read"):
        dataset.check_test_split()
