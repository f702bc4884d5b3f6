"""Frames of a video by number, as encoded images: exact wherever the key frames are. Decoded by FFmpeg (PyAV)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from PIL import Image

UNREADABLE_VIDEO = "unreadable_video"
TOO_FEW_FRAMES = "too_few_frames"
JPEG_QUALITY = 95
"""Of a stored frame, with full colour resolution."""
CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,ogg,flv,asf,gif,mxf,ivf,nut"
"""By FFmpeg's names. All of them hold their frames; a playlist would name other files of this machine or network."""


class VideoError(Exception):
    """A video that gives no frames; `reason` is that of a drop."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class Clip(NamedTuple):
    """Frames of a video in order, each an upright JPEG; `fps` is how many of them fall on a second of it."""

    frames: tuple[bytes, ...]
    fps: float


def uniform_indices(total: int, count: int) -> list[int]:
    """The numbers of `count` of `total` frames from the first to the last at equal distances, rounded down."""
    return [int(number) for number in np.linspace(0, total - 1, count, dtype=int)]


def uniform(data: bytes, count: int) -> Clip:
    """`count` frames of a video file's bytes at `uniform_indices`.

    The packets say how many frames there are without decoding one. Where the decoder gives another number, that one
    holds. Raises VideoError for a file that cannot be decoded and for a video of fewer frames.
    """
    try:
        total, rate = _announced(data)
        images, decoded = _decoded(data, total, count)
        if decoded != total:
            images, _ = _decoded(data, decoded, count)
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise VideoError(UNREADABLE_VIDEO, str(error) or type(error).__name__) from error
    return Clip(tuple(_jpeg(image) for image in images), rate * count / decoded)


def _opened(data: bytes) -> InputContainer:
    """The video, from nothing but its own bytes. Raises VideoError for a container that is none of `CONTAINERS`."""
    try:
        return av.open(io.BytesIO(data), "r", options={"format_whitelist": CONTAINERS, "protocol_whitelist": "none"})
    except av.ArgumentError as error:
        detail = f"it is damaged, or no container of {CONTAINERS.replace(',', ', ')}; convert it to mp4"
        raise VideoError(UNREADABLE_VIDEO, detail) from error


def _announced(data: bytes) -> tuple[int, float]:
    """How many pictures the file says it has, and how many a second."""
    with _opened(data) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate
        if not rate:
            raise ValueError("it does not say how many frames a second has: it is cut off or damaged")
        packets = [packet for packet in container.demux(stream) if packet.size]
        whole = sum(not packet.is_corrupt for packet in packets)
        if whole < max(stream.frames, len(packets)):
            raise ValueError(
                f"it is cut off or damaged: {whole} of {max(stream.frames, len(packets))} frames are whole"
            )
        return sum(not packet.is_discard for packet in packets), float(rate)


def _decoded(data: bytes, total: int, count: int) -> tuple[Sequence[Image.Image], int]:
    """The frames at the places that `total` gives, and how many there are in truth."""
    if total < count:
        raise VideoError(TOO_FEW_FRAMES, f"{total} frames, {count} are asked for")
    wanted = set(uniform_indices(total, count))
    images, number = [], 0
    with _opened(data) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for number, frame in enumerate(container.decode(stream), start=1):
            if number - 1 in wanted:
                pixels_HWC = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                images.append(Image.fromarray(np.ascontiguousarray(pixels_HWC)))
    return images, number


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()
