"""The exceptions that a user may see. Each message says what is wrong, where, and what to do."""

MAX_DETAIL = 300
MAX_LINE = 1000


def shortened(text: str, limit: int = MAX_DETAIL) -> str:
    """`text` in at most `limit` characters, its middle left out: a file may hold megabytes where a name is expected.

    Half of a surrogate pair, as names on disk and rows may hold, is written as its escape: no record takes it.
    """
    text = text.encode(errors="backslashreplace").decode()
    if len(text) <= limit:
        return text
    gap = f" ... {len(text):,} characters ... "
    end = limit // 4
    return text[: limit - end - len(gap)] + gap + text[-end:]


class AmvlError(Exception):
    """Base of every error that is the user's to fix; the command line prints it without a traceback."""

    def __str__(self) -> str:
        return "\n".join(shortened(line, MAX_LINE) for line in super().__str__().split("\n"))


class ConfigError(AmvlError):
    """A configuration that cannot be run; the message names the field's path."""


class DataError(AmvlError):
    """Input that cannot be read: an archive that is missing, corrupt or of an unknown kind."""


class StorageError(AmvlError):
    """The storage root is missing, full, read-only or unreachable, or a file in it is damaged."""


class ClusterError(AmvlError):
    """The machines cannot run what the configuration asks for."""


class NonFiniteError(AmvlError):
    """A gradient that is not finite; the message names the step and the samples."""


class CheckpointError(AmvlError):
    """A checkpoint whose weights do not match the model that is to be built from it."""
