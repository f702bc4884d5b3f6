"""Where weights come from: processes of one machine share the copy of a remote folder."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

import fsspec
import pytest

from amvl_core.backbones.loading import model_folder
from amvl_core.contracts import storage
from amvl_core.contracts.errors import StorageError

URI = "memory://models/one"


@pytest.fixture
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The downloads of a remote model whose one file is there."""
    found: list[Path] = []
    download = storage.download

    def counted(uri: str, folder: Path) -> Path:
        found.append(folder)
        return download(uri, folder)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(storage, "download", counted)
    fsspec.filesystem("memory").pipe_file("/models/one/config.json", b"{}")
    return found


def test_a_local_folder_and_a_hub_id_are_taken_as_they_are(tmp_path: Path) -> None:
    for name in (str(tmp_path), "someone/model"):
        with model_folder(name) as folder:
            assert folder == name


def test_a_remote_folder_is_copied_once_for_all_that_read_it_and_removed_with_the_last(copies: list[Path]) -> None:
    with ExitStack() as first, ExitStack() as second:
        one, other = (stack.enter_context(model_folder(URI)) for stack in (first, second))
        assert one == other and len(copies) == 1
        first.close()
        assert Path(other, "config.json").read_text() == "{}"
    assert not Path(other).exists()
    with model_folder(URI):
        assert len(copies) == 2


def test_a_copy_that_a_killed_process_left_is_not_taken(copies: list[Path]) -> None:
    with model_folder(URI) as folder:
        pass
    Path(folder).mkdir()
    Path(folder, "part").touch()
    with model_folder(URI):
        assert [file.name for file in Path(folder).iterdir()] == ["config.json"]


def test_a_copy_that_fails_leaves_nothing(copies: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(uri: str, folder: Path) -> Path:
        folder.mkdir()
        raise StorageError("gone")

    monkeypatch.setattr(storage, "download", failing)
    with pytest.raises(StorageError, match="gone"), model_folder(URI):
        pass
    (place,) = Path(tempfile.gettempdir()).iterdir()
    assert [file for file in place.iterdir() if file.is_dir()] == []


def test_a_place_that_others_may_write_to_is_refused(copies: list[Path]) -> None:
    with model_folder(URI) as folder:
        Path(folder).parent.chmod(0o777)
    with pytest.raises(StorageError, match="is not this user's alone"), model_folder(URI):
        pass
