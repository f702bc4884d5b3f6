"""`python -m data_prep.microworld`: `--sheet FILE`, a contact sheet, or `--export FORMAT FOLDER`, a data set."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from pydantic import ValidationError

from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, Conversation
from amvl_core.contracts.sources import DEPENDENT_TASKS, MICROWORLD_TASKS, MicroworldSource
from data_prep.microworld import generate
from data_prep.microworld.draw import SIZE
from data_prep.microworld.export import FORMS, export

ZOOM, MARGIN, TEXT_HEIGHT, COLUMNS = 5, 20, 84, 4
INK, SOFT, BOX, PAGE = (34, 38, 48), (112, 118, 132), (236, 72, 153), (255, 255, 255)


def sheet(samples: Sequence[Conversation]) -> Image.Image:
    """The samples as enlarged cards, row by row: image, boxes of the regions, task, question and answer."""
    width, height = SIZE * ZOOM, SIZE * ZOOM + TEXT_HEIGHT
    rows = -(-len(samples) // COLUMNS)
    page = Image.new("RGB", (MARGIN + COLUMNS * (width + MARGIN), MARGIN + rows * (height + MARGIN)), PAGE)
    for i, sample in enumerate(samples):
        at = (MARGIN + i % COLUMNS * (width + MARGIN), MARGIN + i // COLUMNS * (height + MARGIN))
        page.paste(_card(sample), at)
    return page


def _card(sample: Conversation) -> Image.Image:
    side = SIZE * ZOOM
    card = Image.new("RGB", (side, side + TEXT_HEIGHT), PAGE)
    picture = Image.open(io.BytesIO(sample.images[0])).resize((side, side), Image.Resampling.BICUBIC)
    card.paste(picture)
    pen = ImageDraw.Draw(card)
    for region in sample.regions:
        x1, y1, x2, y2 = (value * ZOOM for value in region.box)
        pen.rectangle(
            (max(x1 - 3, 0), max(y1 - 3, 0), min(x2 + 2, side - 1), min(y2 + 2, side - 1)), outline=BOX, width=2
        )
    small, large = ImageFont.load_default(12), ImageFont.load_default(14)
    pen.text((0, side + 10), sample.task.replace("_", " ").upper(), fill=SOFT, font=small)
    pen.text((0, side + 30), sample.question.removeprefix(IMAGE_PLACEHOLDER), fill=INK, font=large)
    pen.text((0, side + 54), sample.answer, fill=BOX, font=large)
    return card


def main() -> None:
    """Reads the command line and writes the sheet or the data set."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.microworld", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--sheet", type=Path, metavar="FILE", help="image file to write: some samples of every task")
    what.add_argument(
        "--export", nargs=2, metavar=("FORMAT", "FOLDER"), help=f"data set to write, as {', '.join(FORMS)}"
    )
    parser.add_argument(
        "--dependent", action="store_true", help="the tasks of dependent steps (docs/microworld.md), not the others"
    )
    parser.add_argument("--train", type=int, default=8000, help="training samples to export")
    parser.add_argument("--test", type=int, default=800, help="test samples to export")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tasks = DEPENDENT_TASKS if options.dependent else MICROWORLD_TASKS
    # Of a task of dependent steps the sheet shows 1, 2, 3 and 4 steps, of another two samples.
    train = options.train if options.export else len(tasks) * (4 if options.dependent else 2)
    try:
        source = MicroworldSource(tasks=tasks, train=train, test=options.test, seed=options.seed)
    except ValidationError as error:
        parser.error("; ".join(f"--{item['loc'][0]}: {item['msg']}" for item in error.errors()))
    if options.export:
        form, folder = options.export
        if form not in FORMS:
            parser.error(f"format {form!r} is unknown; choose one of {', '.join(FORMS)}")
        export(source, form, Path(folder))
        return
    samples = list(generate(source, "train"))
    by_task = [sample for turn in range(len(tasks)) for sample in samples[turn :: len(tasks)]]
    options.sheet.parent.mkdir(parents=True, exist_ok=True)
    sheet(by_task).save(options.sheet, optimize=True)


if __name__ == "__main__":
    main()
