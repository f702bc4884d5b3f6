"""Features of a prepared dataset: what is stored is what the encoder gives, once, and of the right image."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file

from amvl_core.contracts import storage
from amvl_core.contracts.encoders import EncoderConfig
from amvl_core.contracts.errors import ConfigError, DataError, StorageError
from amvl_core.contracts.progress import Progress
from amvl_core.contracts.records import DatasetRecord, FeaturesRecord, load_record
from amvl_core.data import features as reading
from amvl_core.data.features import FeatureReader
from amvl_core.data.pixels import square
from amvl_core.data.reader import ShardReader
from amvl_core.encoders.pretrained import load_encoder
from data_prep import features
from data_prep.shards import ShardRow
from tests import shards
from tests.tiny import picture

Computed = tuple[DatasetRecord, FeaturesRecord, list[Progress]]
LookedUp = tuple[DatasetRecord, Path, EncoderConfig, FeaturesRecord]

TINY = EncoderConfig(name="dino", source="tiny:dinov3", size=32)


def row(number: int) -> ShardRow:
    """Samples of no, one, two, no, one ... images."""
    images = [picture(10 * number + i) for i in range(number % 3)]
    sample = shards.sample_of(f"sample-{number}", "<image>" * len(images) + "?", "yes", images)
    return ShardRow(sample, [(32, 32)] * len(images), 20)


def dataset(root: Path | str) -> DatasetRecord:
    """Four shards, one of them of more than a row group."""
    sizes, start, made = (3, 40, 2, 4), 0, []
    for size in sizes:
        made.append([row(number) for number in range(start, start + size)])
        start += size
    return shards.write(str(root), made)


def compute(
    data: DatasetRecord, uri: Path | str, encoder: EncoderConfig = TINY, workers: int = 1
) -> tuple[FeaturesRecord, list[Progress]]:
    events: list[Progress] = []
    return features.compute(data, encoder, str(uri), workers, "cpu", events.append), events


@pytest.fixture(scope="module")
def computed(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Computed:
    """By a model; its actors import torch, which takes seconds."""
    root = tmp_path_factory.mktemp("computed")
    data = dataset(root / "data")
    return data, *compute(data, root / "features", workers=2)


@pytest.fixture(scope="module")
def looked_up(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> LookedUp:
    """The dataset, and its features out of a folder that another program has left."""
    root = tmp_path_factory.mktemp("looked-up")
    data, folder = dataset(root / "data"), root / "pi3"
    encoder = stored(folder, images(data))
    return data, folder, encoder, compute(data, root / "features", encoder)[0]


def images(data: DatasetRecord) -> list[bytes]:
    reader = ShardReader(data, "train")
    return [image for index in range(len(reader)) for image in reader[index].images]


def test_stored_features_are_those_that_the_encoder_gives(computed: Computed) -> None:
    data, record, events = computed
    assert record.grid == (4, 4) and record.width == 32 and record.encoder == TINY and record.dataset == "data"
    assert [(shard.file, shard.rows) for shard in record.shards] == [(shard.file, shard.rows) for shard in data.shards]
    assert load_record(record.uri, FeaturesRecord) == record
    assert record.fingerprint == features.fingerprint(data, TINY)
    assert (events[0].done, events[-1].done, events[-1].total, events[-1].stage) == (0, 49, 49, "features-dino")
    rows, reader, encoder = ShardReader(data, "train"), FeatureReader(record), load_encoder(TINY)
    assert len(reader) == len(rows) == 49
    seen = 0
    for index in np.random.default_rng(0).permutation(49):
        sample = rows[index]
        found = reader.of(index, sample)
        assert len(found) == len(sample.images)
        for image, stored_PD in zip(sample.images, found, strict=True):
            exact_PD = encoder(torch.from_numpy(square(image, 32))[None])[0].numpy()
            assert stored_PD.dtype == np.float16 and stored_PD.shape == (16, 32)
            # Half precision rounds by at most 2^-11 of a value; that was the worst. A batch may sum in another order.
            np.testing.assert_allclose(stored_PD, exact_PD, rtol=2**-11, atol=1e-5)
            seen += 1
    assert seen == len(images(data)) == 48


def test_a_run_that_was_cut_off_takes_over_what_is_finished(computed: Computed, tmp_path: Path) -> None:
    data, whole, _ = computed
    shutil.copytree(whole.uri, tmp_path / "cut")
    cut = tmp_path / "cut"
    (cut / "record.json").unlink()
    for name in ("train-00001.parquet", "train-00001.json", "train-00003.json"):  # the last lies there without a record
        (cut / name).unlink()
    (cut / "train-00003.parquet").write_bytes(b"half")
    old = {name: (cut / name).stat().st_mtime_ns for name in ("train-00000.parquet", "train-00002.parquet")}
    record, events = compute(data, cut)
    assert record.shards == whole.shards  # the same bytes
    assert {name: (cut / name).stat().st_mtime_ns for name in old} == old
    assert events[-1].done == 49
    for shard in record.shards:
        assert hashlib.sha256((cut / shard.file).read_bytes()).hexdigest() == shard.sha256


def test_one_row_is_one_row_group(computed: Computed) -> None:
    _, record, _ = computed
    file = pq.ParquetFile(Path(record.uri) / record.shards[1].file)
    assert file.num_row_groups == file.metadata.num_rows == 40


def test_s3_in_and_out(looked_up: LookedUp, s3_bucket: str) -> None:
    _, folder, encoder, here = looked_up
    root = f"{s3_bucket}/features"
    storage.upload(folder, f"{root}/pi3")
    data = dataset(f"{root}/data")
    there, _ = compute(data, f"{root}/out", encoder.model_copy(update={"source": f"features:{root}/pi3"}))
    assert there.shards == here.shards and there.fingerprint == here.fingerprint
    rows, local, remote = ShardReader(data, "train"), FeatureReader(here), FeatureReader(there)
    for index in (48, 0, 7, 20):
        for one, other in zip(local.of(index, rows[index]), remote.of(index, rows[index]), strict=True):
            assert np.array_equal(one, other)


def test_features_of_another_image_are_refused(computed: Computed, tmp_path: Path) -> None:
    data, record, _ = computed
    rows, reader = ShardReader(data, "train"), FeatureReader(record)
    with pytest.raises(
        DataError, match=r"sample-4: the features of dino in .*train-00001\.parquet are those of another"
    ):
        reader.of(7, rows[4])  # of one image, as row 7
    with pytest.raises(DataError, match=r"sample-4: .* are of 2 images, it has 1; remove the folder"):
        reader.of(8, rows[4])
    with pytest.raises(IndexError):
        reader.of(49, rows[0])
    shutil.copytree(record.uri, tmp_path / "damaged")
    (tmp_path / "damaged" / record.shards[2].file).write_bytes(b"no Parquet")
    reader = FeatureReader(record.model_copy(update={"uri": str(tmp_path / "damaged")}))
    with pytest.raises(StorageError, match=r"train-00002\.parquet cannot be read .* remove the folder"):
        reader.of(43, rows[43])


def test_a_reader_keeps_few_files_open(computed: Computed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "OPEN_FILES", 2)
    data, record, _ = computed
    rows, reader = ShardReader(data, "train"), FeatureReader(record)
    for index in (0, 10, 43, 48, 1, 11):
        assert len(reader.of(index, rows[index])) == index % 3 and len(reader._files) <= 2
    assert not pickle.loads(pickle.dumps(reader))._files  # an open file stays in its process


def test_faults_of_an_encoder_are_raised_as_they_are(ray_cluster: None, tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    with pytest.raises(ConfigError, match="size 36 is no multiple of 8"):
        compute(data, tmp_path / "features", TINY.model_copy(update={"size": 36}))
    assert not storage.exists(str(tmp_path / "features" / "record.json"))


def test_an_image_that_cannot_be_read_names_its_sample(tmp_path: Path) -> None:
    bad = ShardRow(shards.sample_of("broken", "<image>?", "yes", [b"no image"]), [(32, 32)], 20)
    data = shards.write(str(tmp_path / "data"), [[bad]])
    work = features.Work(data.uri, TINY, str(tmp_path / "features"), "cpu")
    with pytest.raises(DataError, match="broken: an image of the prepared dataset cannot be read"):
        work(data.shards[0])
    assert not (tmp_path / "features" / data.shards[0].file).exists()


def stored(folder: Path, known: list[bytes], dtype: Any = np.float32) -> EncoderConfig:
    """Features of these images as another program leaves them, in two files."""
    folder.mkdir()
    made = {
        hashlib.sha256(image).hexdigest(): np.random.default_rng(i).normal(size=(6, 5)).astype(dtype)
        for i, image in enumerate(known)
    }
    names = sorted(made)
    save_file({name: made[name] for name in names[::2]}, folder / "a.safetensors", {"model": "pi3"})
    save_file({name: made[name] for name in names[1::2]}, folder / "b.safetensors")
    (folder / "features.json").write_text('{"grid": [2, 3], "width": 5}')
    return EncoderConfig(name="pi3", source=f"features:{folder}")


def test_features_that_were_computed_elsewhere_are_looked_up(looked_up: LookedUp) -> None:
    data, _, _, record = looked_up
    assert record.grid == (2, 3) and record.width == 5
    rows, reader, seen = ShardReader(data, "train"), FeatureReader(record), 0
    for index in range(49):
        for found_PD in reader.of(index, rows[index]):
            exact_PD = np.random.default_rng(seen).normal(size=(6, 5)).astype(np.float32)
            assert np.array_equal(found_PD, exact_PD.astype(np.float16))
            seen += 1


def test_images_without_features_are_counted(ray_cluster: None, tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    known = images(data)
    encoder = stored(tmp_path / "pi3", [image for i, image in enumerate(known) if i not in (10, 30, 31)])
    expected = (
        rf"encoder pi3: 3 of 48 images have no features in .*/pi3, the first is sample-11: image 1 \(SHA-256 "
        rf"{hashlib.sha256(known[10]).hexdigest()}\)"
    )
    with pytest.raises(DataError, match=expected):
        compute(data, tmp_path / "features", encoder)
    assert not storage.exists(str(tmp_path / "features" / "train-00001.parquet"))


def test_the_fingerprint_says_what_features_depend_on(tmp_path: Path) -> None:
    data = shards.write(str(tmp_path / "data"), [[row(1)]])
    name = features.fingerprint(data, TINY)
    assert name == features.fingerprint(data, TINY.model_copy(update={"name": "other"}))
    assert name != features.fingerprint(data, TINY.model_copy(update={"size": 64}))
    assert name != features.fingerprint(data, TINY.model_copy(update={"source": "tiny:siglip"}))
    assert name != features.fingerprint(data.model_copy(update={"fingerprint": "other"}), TINY)
    first, moved = stored(tmp_path / "pi3", [b"x"]), stored(tmp_path / "moved", [b"x"])
    assert features.fingerprint(data, first) == features.fingerprint(data, moved)
    (tmp_path / "moved" / "c.safetensors").write_bytes((tmp_path / "moved" / "a.safetensors").read_bytes())
    assert features.fingerprint(data, first) != features.fingerprint(data, moved)


def test_what_half_precision_cannot_hold_is_refused() -> None:
    with pytest.raises(DataError, match=r"s: its features are not all finite in half precision \(the largest is 70000"):
        features._half("s", np.array([70_000.0, 1.0], np.float32))


def test_the_modules_import_nothing_heavy() -> None:
    modules = (
        "data_prep.features, amvl_core.data.features, amvl_core.data.stored_features, amvl_core.contracts.encoders"
    )
    code = f"import sys, {modules}; print([m for m in ('torch', 'ray', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
