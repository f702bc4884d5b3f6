from amvl_core.contracts.parts import Part


def test_a_file_is_named_by_its_number_and_what_is_in_it() -> None:
    part = Part("answers", (1, 2), 5)
    assert part.file(3).startswith("000003-")
    assert part.file(3) == Part("answers", (1, 2), 9).file(3)  # what it costs is not in it
    others = [Part("answers", (2, 1), 5), Part("latents", (1, 2), 5), Part("answers", (1, 2), 5, donor=3)]
    assert len({part.file(3), *(other.file(3) for other in others)}) == 4
