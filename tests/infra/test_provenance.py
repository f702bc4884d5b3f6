import subprocess
from pathlib import Path

from infra.provenance import UNKNOWN, installed, provenance


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_outside_a_repository_the_commit_is_unknown(tmp_path: Path) -> None:
    found = provenance(tmp_path)
    assert (found["commit"], found["dirty"]) == (UNKNOWN, UNKNOWN)


def test_commit_and_local_changes(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "one")
    clean = provenance(tmp_path)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] == "false"
    (tmp_path / "a").write_text("2")
    assert provenance(tmp_path)["dirty"] == "true"


def test_versions_and_nothing_about_the_machine(tmp_path: Path) -> None:
    import platform

    found = provenance(tmp_path)
    assert found["version.ray"] == installed("ray") != UNKNOWN
    assert installed("no-such-package-here") == UNKNOWN
    text = " ".join(found.values())
    assert str(tmp_path) not in text
    assert platform.node() not in text.split()
