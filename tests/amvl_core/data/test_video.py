from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from amvl_core.data.video import VideoError, uniform, uniform_indices
from tests.videos import HEIGHT, WIDTH, frame_pixels, mp4, number_of, rotated


@pytest.mark.parametrize(("frames", "count"), [(45, 32), (45, 45), (45, 7), (200, 32), (2, 2), (1, 1)])
def test_frames_are_those_of_their_numbers_wherever_the_key_frames_are(frames: int, count: int) -> None:
    found = uniform(mp4(frames), count).frames
    assert [number_of(frame) for frame in found] == uniform_indices(frames, count)


def test_the_numbers_are_those_that_both_harnesses_take() -> None:
    assert uniform_indices(100, 5) == [0, 24, 49, 74, 99]
    assert uniform_indices(33, 32) == [*range(31), 32]
    for total in (32, 33, 1000, 4321):
        assert uniform_indices(total, 32) == np.linspace(0, total - 1, 32, dtype=int).tolist()


def test_a_stored_frame_is_close_to_the_frame() -> None:
    (frame,) = uniform(mp4(1), 1).frames
    pixels = np.asarray(Image.open(io.BytesIO(frame)), dtype=int)
    # H.264 with 4:2:0 colours at crf 10, then JPEG: blocks of one colour lose nothing.
    assert np.abs(pixels - frame_pixels(0)).max() <= 2


@pytest.mark.parametrize(
    ("fps", "frames", "count", "sampled"), [(10, 45, 9, 2.0), (Fraction(30000, 1001), 60, 4, 1.998)]
)
def test_the_sampled_rate_is_that_of_the_frames_kept(
    fps: Fraction | int, frames: int, count: int, sampled: float
) -> None:
    assert uniform(mp4(frames, fps), count).fps == pytest.approx(sampled, abs=1e-3)


def test_a_video_that_is_held_upright_is_turned() -> None:
    data = mp4(5)
    lying, upright = (Image.open(io.BytesIO(uniform(file, 2).frames[1])) for file in (data, rotated(data)))
    assert (lying.size, upright.size) == ((WIDTH, HEIGHT), (HEIGHT, WIDTH))
    difference = np.asarray(lying.transpose(Image.Transpose.ROTATE_270), dtype=int) - np.asarray(upright)
    assert np.abs(difference).max() <= 2  # each is a JPEG of its own; the worst measured is 0


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", "End of file|Invalid data"),
        (b"no video at all", "Invalid data"),
        (mp4(20)[:-400], "cut off or damaged|Invalid data|End of file"),
        (mp4(60, fragmented=True)[:-900], "it is cut off or damaged: 5[0-9] of [56][0-9] frames are whole"),
    ],
)
def test_a_file_that_is_no_video_or_cut_off_says_so(data: bytes, detail: str) -> None:
    with pytest.raises(VideoError, match=detail) as caught:
        uniform(data, 4)
    assert caught.value.reason == "unreadable_video"


@pytest.mark.parametrize(
    "playlist",
    [
        "ffconcat version 1.0\nfile local.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nlocal.mp4\n#EXT-X-ENDLIST\n",
    ],
)
def test_a_playlist_reads_no_other_file(playlist: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "local.mp4").write_bytes(mp4(20))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VideoError, match=r"no container of mov, mp4, .*; convert it to mp4|Invalid data") as caught:
        uniform(playlist.encode(), 4)
    assert caught.value.reason == "unreadable_video"


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska", "mpegts", "flv", "asf", "nut"])
def test_other_containers_are_read(container: str) -> None:
    source, buffer = av.open(io.BytesIO(mp4(20))), io.BytesIO()
    with source, av.open(buffer, "w", format=container) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    assert [number_of(frame) for frame in uniform(buffer.getvalue(), 4).frames] == uniform_indices(20, 4)


def test_frames_that_are_damaged_are_refused() -> None:
    data = bytearray(mp4(60))
    middle = len(data) // 3
    data[middle : middle + 600] = bytes(600)
    with pytest.raises(VideoError, match="Invalid data"):
        uniform(bytes(data), 4)


def test_a_video_of_fewer_frames_than_asked_for_says_how_many() -> None:
    with pytest.raises(VideoError, match="31 frames, 32 are asked for") as caught:
        uniform(mp4(31), 32)
    assert caught.value.reason == "too_few_frames"


def test_a_file_that_does_not_say_how_many_frames_it_has() -> None:
    assert [number_of(frame) for frame in uniform(mp4(50, fragmented=True), 6).frames] == uniform_indices(50, 6)
