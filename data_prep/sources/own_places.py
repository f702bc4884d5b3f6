"""Where the images of one's own data are, and which file was probably meant where there is none."""

from __future__ import annotations

import difflib
import itertools
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property

from amvl_core.contracts.errors import shortened
from amvl_core.contracts.visible import hidden
from data_prep.filters import MISSING_IMAGE
from data_prep.sources.archive_members import Archive, DeadLinkError, resolve
from data_prep.sources.raw_row import Rejected

COMPARED = 200
"""Names that a path is compared with to find the nearest."""


class Places:
    """The members of an archive as rows name them: by paths that count from the folder of the rows' file."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    def member(self, file: str, path: str, where: str) -> str:
        """The member that a row of `file` calls `path`, in its field `where`.

        Raises Rejected if it is not there, with the nearest that is.
        """
        folder = posixpath.dirname(file)
        asked = resolve(folder, path)
        for name in _forms(posixpath.join(folder, path), asked):
            if name in self._archive.members:
                return name
        shown = shortened(repr(path), 100)
        what = "leads outside of the data" if asked is None else "is hidden" if hidden(asked) else "is not there"
        self._check_links(asked or "", where)
        nearest = self._nearest(folder, path)
        hint = f"; {shortened(posixpath.relpath(nearest, folder or '.'), 100)} exists" if nearest else ""
        raise Rejected(
            MISSING_IMAGE,
            f"{where}: {shown} {what}; paths count from the folder of {posixpath.basename(file)}{hint}",
        )

    def _check_links(self, name: str, where: str) -> None:
        """Raises Rejected where a folder on the way to `name` is a link that leads nowhere: it is listed as a file."""
        folders = itertools.accumulate(name.split("/"), posixpath.join)
        for folder in (folder for folder in folders if folder in self._archive.members):
            try:
                self._archive.open(folder).close()
            except DeadLinkError as error:
                raise Rejected(MISSING_IMAGE, f"{where}: {error}") from error

    def _nearest(self, folder: str, path: str) -> str | None:
        """The member with the same name but for case, ending or folder; else one of a similar name in the folder."""
        asked = posixpath.normpath(posixpath.join(folder, path.replace("\\", "/").lstrip("/")))
        named = self._by_stem.get(_stem(asked), [])[:COMPARED]
        if named:
            return max(named, key=lambda name: difflib.SequenceMatcher(None, _plain(asked), _plain(name)).ratio())
        beside = self._by_folder.get(posixpath.dirname(asked), [])[:COMPARED]
        return next(iter(difflib.get_close_matches(asked, beside, 1, 0.8)), None)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for name in self._archive.names():
            found[_stem(name)].append(name)
        return dict(found)

    @cached_property
    def _by_folder(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for name in self._archive.names():
            found[posixpath.dirname(name)].append(name)
        return dict(found)


def _forms(written: str, asked: str | None) -> Iterator[str]:
    yield written
    if asked is not None:
        # A Mac writes the letters of a name and their accents apart.
        yield asked
        yield unicodedata.normalize("NFC", asked)
        yield unicodedata.normalize("NFD", asked)


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()


def _stem(name: str) -> str:
    return posixpath.splitext(posixpath.basename(_plain(name)))[0]
