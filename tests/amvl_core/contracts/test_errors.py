from __future__ import annotations

import pickle

from amvl_core.contracts.errors import MAX_DETAIL, MAX_LINE, DataError, shortened


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    assert shortened("x" * MAX_DETAIL) == "x" * MAX_DETAIL
    found = shortened("begin " + "x" * 10**6 + " end")
    assert len(found) == MAX_DETAIL
    assert found.startswith("begin x") and found.endswith("x end") and " 1,000,010 characters " in found


def test_half_of_a_surrogate_pair_is_written_as_its_escape() -> None:
    assert shortened("caf\udce9") == str(DataError("caf\udce9")) == r"caf\udce9"


def test_no_line_of_a_message_is_longer_than_a_terminal_can_show() -> None:
    error = pickle.loads(pickle.dumps(DataError("first\n" + "x" * 10**6 + "\nlast")))
    first, long, last = str(error).split("\n")
    assert (first, len(long), last) == ("first", MAX_LINE, "last")
