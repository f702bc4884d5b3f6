"""`python -m data_prep.microworld --sheet FILE`: a contact sheet, two samples of every task."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from amvl_core.config import MICROWORLD_TASKS, MicroworldSource
from amvl_core.sample import IMAGE_PLACEHOLDER, Conversation
from data_prep.microworld import generate
from data_prep.microworld.draw import SIZE

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
    """Reads the command line and writes the sheet."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.microworld", description=__doc__)
    parser.add_argument("--sheet", type=Path, required=True, metavar="FILE", help="image file to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    source = MicroworldSource(train=2 * len(MICROWORLD_TASKS), seed=options.seed)
    samples = sorted(generate(source, "train"), key=lambda sample: MICROWORLD_TASKS.index(sample.task))
    options.sheet.parent.mkdir(parents=True, exist_ok=True)
    sheet(samples).save(options.sheet, optimize=True)


if __name__ == "__main__":
    main()
