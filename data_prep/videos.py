"""Videos of one's own data: from the file to the frames that a sample shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from amvl_core.contracts.sample import IMAGE_PLACEHOLDER, PLACEHOLDER, VIDEO_PLACEHOLDER, Conversation, Video
from amvl_core.data.video import VideoError, uniform
from data_prep.filters import Drop


def expanded(conversation: Conversation, frames: int, shown_as: Literal["video", "images"]) -> Conversation | Drop:
    """With `frames` images in the place of each video file; or why one gives none.

    The frames are one of `videos`; shown as images, each has a place of its own in the question instead. Regions keep
    their images.
    """
    places = PLACEHOLDER.findall(conversation.question)
    if VIDEO_PLACEHOLDER not in places:
        return conversation
    images: list[bytes] = []
    starts: list[int] = []
    videos: list[Video] = []
    for number, data in enumerate(conversation.images):
        starts.append(len(images))
        if number >= len(places) or places[number] == IMAGE_PLACEHOLDER:
            images.append(data)
            continue
        try:
            clip = uniform(data, frames)
        except VideoError as error:
            return Drop(error.reason, f"video {len(videos) + 1}: {error.detail}")
        images += clip.frames
        videos.append(Video(frames, clip.fps))
    found = replace(
        conversation,
        images=tuple(images),
        regions=tuple(replace(region, image=starts[region.image]) for region in conversation.regions),
    )
    if shown_as == "video":
        return replace(found, videos=tuple(videos))
    return replace(found, question=found.question.replace(VIDEO_PLACEHOLDER, IMAGE_PLACEHOLDER * frames))
