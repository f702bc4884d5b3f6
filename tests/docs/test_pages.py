"""The pages as a reader's editor and browser take them: no long line, no link and no path that lead nowhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATH = re.compile(r"`((?:amvl_core|benchmarks|data_prep|docs|flows|infra|tests)/[a-z0-9_/.-]+)[`:]")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if len(line) > 140] == []
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", text):
        if "://" in target:
            continue
        other = (page.parent / target) if target else page
        assert other.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(other), f"{target} has no heading #{anchor}"
    for named in PATH.findall(text):
        assert (ROOT / named).exists(), f"{named} is not there"
