"""What stands in a packed row and what sees what: plain numbers, no torch.

A step runs one or more packed rows, one behind the other. Rows of a step are numbered in the order in which they run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

TokenKind = Literal["text", "image", "slot"]
"""What a token is to the bottleneck mask."""


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop`, without `stop`, of span `span` in packed row `row` of the step."""

    row: int
    span: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many rows it is."""
        return self.stop - self.start


@dataclass(frozen=True)
class Span:
    """`rows` consecutive rows; the final hidden states of the last `read` of them are wanted.

    Each row of the span sees every piece of `context`, the rows of the span before it, and itself. The pieces may lie
    in packed rows that have been run before or in the span's own packed row, and their order does not matter: the
    positions that the caller gives say where a row stands.

    So a chain is several pieces, and what the span must not see is a gap between them. Where a later part of one
    sequence must not see an earlier one, the sequence is cut there: with question, image and answer as three spans,
    the answer's context is the question alone.
    """

    rows: int
    read: int
    context: tuple[Piece, ...] = ()

    @property
    def keys(self) -> int:
        """How many rows its last row sees."""
        return self.rows + sum(piece.rows for piece in self.context)


Run = tuple[TokenKind, Piece]
"""Tokens of one kind that stand together in a sequence, and where they have been run."""


def bottleneck_spans(
    kinds: Sequence[TokenKind], before: list[Run], row: int, first: int, read_from: int = 0
) -> list[Span]:
    """What goes on a sequence whose images are seen by slots and images alone: a span for each run of one kind.

    `before` are the sequence's runs so far, to which the new ones are added; they are spans number `first` and on of
    packed row `row`. Tokens from `read_from` on are read. Where all is text nothing is hidden.
    """
    spans: list[Span] = []
    stop = 0
    for kind, tokens in groupby(kinds):
        rows = len(list(tokens))
        stop += rows
        seen = tuple(piece for of, piece in before if kind != "text" or of != "image")
        spans.append(Span(rows, read=min(rows, max(0, stop - read_from)), context=seen))
        before.append((kind, Piece(row, first + len(spans) - 1, 0, rows)))
    return spans


Rows = Sequence[Sequence[Span]]
"""The packed rows of one step."""


def of_one_row(spans: Sequence[Span]) -> bool:
    """Whether each span is one row, such as a state that is fed back: they attend all at once."""
    return all(span.rows == 1 for span in spans)


def located(rows: Rows, piece: Piece) -> tuple[int, int]:
    """Where `piece` begins and ends in its packed row. A ValueError where there is no such piece."""
    if not (0 <= piece.row < len(rows) and 0 <= piece.span < len(rows[piece.row])):
        raise ValueError(f"{piece} is not in any of the {len(rows)} packed rows so far")
    size = rows[piece.row][piece.span].rows
    if not 0 <= piece.start <= piece.stop <= size:
        raise ValueError(f"{piece} is not within its span, which has {size} rows")
    before = sum(span.rows for span in rows[piece.row][: piece.span])
    return before + piece.start, before + piece.stop
