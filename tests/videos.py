"""Small videos whose every frame says its own number: eight blocks, black or white, are its bits."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
from PIL import Image

WIDTH, HEIGHT, BITS = 64, 48, 8


def frame_pixels(number: int) -> np.ndarray:
    """[48, 64, 3]: the bits of `number` as two rows of four blocks, the highest first."""
    bits = np.array([number >> (BITS - 1 - i) & 1 for i in range(BITS)], dtype=np.uint8).reshape(2, 4)
    return np.repeat(np.kron(bits, np.ones((HEIGHT // 2, WIDTH // 4), np.uint8))[..., None] * 255, 3, axis=2)


def number_of(image: bytes | Image.Image) -> int:
    """Which frame an image shows."""
    picture = image if isinstance(image, Image.Image) else Image.open(io.BytesIO(image))
    grey = np.asarray(picture.convert("L"), dtype=float).reshape(2, HEIGHT // 2, 4, WIDTH // 4).mean((1, 3))
    assert np.abs(grey - np.where(grey > 127, 255, 0)).max() < 20, "the blocks are neither black nor white"
    return int("".join(str(int(level > 127)) for level in grey.flatten()), 2)


def mp4(frames: int, fps: Fraction | int = 10, gop: int = 12, fragmented: bool = False) -> bytes:
    """An H.264 file with a key frame at every `gop`-th frame and frames that depend on later ones.

    A fragmented one does not say in front how many frames there are.
    """
    buffer = io.BytesIO()
    options = {"movflags": "frag_keyframe+empty_moov"} if fragmented else {}
    with av.open(buffer, "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", gop
        stream.options = {"bf": "2", "threads": "1", "crf": "10"}
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_pixels(number), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def rotated(data: bytes) -> bytes:
    """The same file with the display matrix of a phone held upright: shown turned by 90 degrees clockwise."""
    matrix = b"".join(value.to_bytes(4, "big", signed=True) for value in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
    turned = (0, 1 << 16, 0, -(1 << 16), 0, 0, HEIGHT << 16, 0, 1 << 30)
    head = data.rindex(b"tkhd")
    at = data.index(matrix, head)
    return data[:at] + b"".join(value.to_bytes(4, "big", signed=True) for value in turned) + data[at + len(matrix) :]
