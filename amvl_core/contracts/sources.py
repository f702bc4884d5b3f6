"""Where samples come from: one class a format, with its fields (`data.sources`). Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, field_validator

from amvl_core.contracts.credentials import Uri
from amvl_core.contracts.frozen import Seed, Settings

_ShortTask = Literal["colour", "shape", "count", "compare", "relation", "odd_one_out", "jigsaw", "maze"]
DependentTask = Literal["chain", "path", "turn", "tally", "relay"]
"""Tasks of dependent steps, whose number is the difficulty."""
MicroworldTask = _ShortTask | DependentTask
MICROWORLD_TASKS: tuple[MicroworldTask, ...] = get_args(_ShortTask)
"""What `MicroworldSource` draws unless told otherwise."""
DEPENDENT_TASKS: tuple[DependentTask, ...] = get_args(DependentTask)
MAX_DIFFICULTY = 8


class MicroworldSource(Settings):
    """Generated images with questions, steps, regions and answers (`data_prep/microworld/`)."""

    kind: Literal["microworld"] = "microworld"
    tasks: tuple[MicroworldTask, ...] = MICROWORLD_TASKS
    difficulty: tuple[int, int] = Field(
        (1, MAX_DIFFICULTY), description="fewest and most steps of chain, path, turn, tally and relay, evenly spread"
    )
    train: int = Field(8000, ge=0, description="training samples, spread evenly over the tasks")
    test: int = Field(800, ge=0, description="test samples; no test image is a training image")
    seed: Seed = 0

    @field_validator("difficulty")
    @classmethod
    def _within(cls, difficulty: tuple[int, int]) -> tuple[int, int]:
        low, high = difficulty
        if not 1 <= low <= high <= MAX_DIFFICULTY:
            raise ValueError(
                f"{list(difficulty)} is no range: give the fewest and the most steps, 1 to {MAX_DIFFICULTY}"
            )
        return difficulty

    @property
    def may_test(self) -> bool:
        """Whether it has test rows."""
        return self.test > 0


class ArchiveSource(Settings):
    """Fields of every source that is read from an archive or a folder."""

    training_only: ClassVar[bool] = False
    """Whether what is published has no test rows."""

    name: str = Field(description="what sample ids begin with, and what reports and score tables call this source")
    uri: Uri = Field(description="folder, .tar.gz, .zip or .parquet; local or s3://")
    train_limit: int | None = Field(None, ge=0, description="at most this many training samples, drawn by the seed")
    test_limit: int | None = Field(None, ge=0, description="at most this many test samples, drawn by the seed")

    @field_validator("name")
    @classmethod
    def _one_part(cls, name: str) -> str:
        if not name.strip() or "/" in name or not name.isprintable():
            raise ValueError(f"{name!r} is no name: give text without / (sample ids and tasks are `name/...`)")
        return name

    @property
    def may_test(self) -> bool:
        """Whether it can have test rows; what is in the archive is not known yet."""
        return not self.training_only and self.test_limit != 0


class EasyVqaSource(ArchiveSource):
    """easy-VQA: 5,000 images of one shape, 48,248 questions, published train and test split."""

    kind: Literal["easy_vqa"] = "easy_vqa"
    name: str = "easy_vqa"


class NlvrSource(ArchiveSource):
    """NLVR v1: human sentences about three-panel images, true or false; dev trains, the public test tests."""

    kind: Literal["nlvr"] = "nlvr"
    name: str = "nlvr"


class VspMazeSource(ArchiveSource):
    """The maze tasks of Visual-Spatial-Planning: holes on a frozen lake and safe paths."""

    kind: Literal["vsp_maze"] = "vsp_maze"
    name: str = "vsp_maze"


class VisualCotSource(ArchiveSource):
    """Visual-CoT: 363k questions with the box that holds the answer."""

    kind: Literal["visual_cot"] = "visual_cot"
    name: str = "visual_cot"
    annotations: Literal["conversations", "metadata", "detailed"] = Field(
        "conversations",
        description="viscot_363k.json, with a crop as the step; metadata/, without steps; or GQA's detailed steps",
    )


class RefocusSource(ArchiveSource):
    """ReFocus: charts and tables with edited images as steps; Parquet or raw."""

    kind: Literal["refocus"] = "refocus"
    name: str = "refocus"


class CogcomSource(ArchiveSource):
    """CogCoM: trees of image manipulations, each path to the answer a sample."""

    kind: Literal["cogcom"] = "cogcom"
    name: str = "cogcom"


class ZebraCotSource(ArchiveSource):
    """Zebra-CoT: 18 configurations of reasoning with images between its sentences, as Parquet."""

    kind: Literal["zebra_cot"] = "zebra_cot"
    name: str = "zebra_cot"


class MonetSource(ArchiveSource):
    """Monet-SFT-125K: chats with images in the reply, drawn from the four sets above."""

    training_only = True
    kind: Literal["monet"] = "monet"
    name: str = "monet"


class OneThinkerSource(ArchiveSource):
    """OneThinker-SFT: 340k questions with thinking, the ones about images."""

    training_only = True
    kind: Literal["onethinker"] = "onethinker"
    name: str = "onethinker"


class ChatJsonlSource(ArchiveSource):
    """One's own data: a folder or archive with `train.jsonl`, `test.jsonl` and images, or Parquet files.

    A row is `{"messages": [{"role": "user", "content": "<image>..."}, {"role": "assistant", "content": "..."}],
    "images": ["relative/path.jpg"]}`; `id`, `task`, `steps` (a list of strings) and `regions` (a list of
    `{"label": "cup", "box": [x1, y1, x2, y2], "image": 0}` in pixels) are optional. `content` may be a list of
    `{"type": "text", "text": "..."}` and `{"type": "image", "image": "relative/path.jpg"}`. Each question with its
    answer is a sample. docs/data.md says in which other ways the fields may be called.
    """

    kind: Literal["chat_jsonl"] = "chat_jsonl"
    name: str = "chat"


class LlavaJsonSource(ArchiveSource):
    """One's own data as LLaVA writes it: a folder or archive with `train.json`, `test.json` and images.

    A file is a list of `{"image": "relative/path.jpg", "conversations": [{"from": "human", "value": "<image>\\n..."},
    {"from": "gpt", "value": "..."}]}`; `image` may be a list, or be left out. The rows are read as those of
    `ChatJsonlSource`; `kind` says which file is looked for first.
    """

    kind: Literal["llava_json"] = "llava_json"
    name: str = "llava"


Source = Annotated[
    MicroworldSource
    | EasyVqaSource
    | NlvrSource
    | VspMazeSource
    | VisualCotSource
    | RefocusSource
    | CogcomSource
    | ZebraCotSource
    | MonetSource
    | OneThinkerSource
    | ChatJsonlSource
    | LlavaJsonSource,
    Field(discriminator="kind"),
]
