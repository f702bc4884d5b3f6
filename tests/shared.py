"""What the processes of a test run share."""

FOLDER = "AMVL_TEST_FOLDER"
"""Names the folder that they all use; `tests/conftest.py` makes and removes it."""
