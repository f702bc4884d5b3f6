"""What a method with latents says of its analysis, without torch: what is run, and what people are shown of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, TypeAlias

from amvl_core.contracts.parts import Part
from amvl_core.contracts.records import AnalysisRecord, CheckpointRecord, FaithfulnessRecord

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure

    from amvl_core.contracts.latent import LatentConfig

Tables: TypeAlias = "Mapping[str, pa.Table]"
"""Kind of part -> its rows."""
Columns: TypeAlias = dict[str, list[Any]]
Drawn: TypeAlias = "tuple[Figure, Columns]"
"""A figure, and the numbers behind it."""
Measured: TypeAlias = tuple[CheckpointRecord, FaithfulnessRecord, AnalysisRecord]


class Item(NamedTuple):
    """A test sample that may be analysed: its row, its task and how many images it has."""

    row: int
    task: str
    images: int


class Study(Protocol):
    """A figure that is no one checkpoint's: over several, or of a problem that needs none."""

    def check(self, models: Sequence[CheckpointRecord]) -> None:
        """Raises DataError where they do not belong together."""

    def draw(self, measured: Sequence[Measured]) -> Drawn:
        """Over checkpoints, or without any."""


class Analysis(Protocol):
    """A part's rows come from the method's `Prober.analyse`; a table holds those of all parts of a kind."""

    figures: ClassVar[Mapping[str, str]]
    """Figures by name -> what each shows."""
    studies: ClassVar[Mapping[str, tuple[str, Study]]]
    """Studies by name: what each shows, and itself."""
    compared: ClassVar[str]
    """What stands above the numbers of `compare` in a table of several checkpoints."""

    def parts(self, items: Sequence[Item]) -> list[Part]:
        """What is run, on which of `items`, which are in random order."""

    def numbers(self, tables: Tables, latent: LatentConfig) -> dict[str, Any]:
        """What the record keeps."""

    def metrics(self, record: AnalysisRecord) -> dict[str, float]:
        """What the tracking run logs, `name` or `group/name` -> value."""

    def compare(self, record: AnalysisRecord) -> dict[str, float]:
        """What a table of several checkpoints shows of each, the mean over its seeds."""

    def draw(self, record: AnalysisRecord, tables: Tables) -> dict[str, Figure]:
        """The figures by name; one with nothing to show is not there."""

    def data(self, record: AnalysisRecord, tables: Tables, name: str) -> Columns:
        """The numbers behind a figure."""

    def section(self, record: AnalysisRecord) -> str:
        """What the report of a run shows of it, as HTML."""
