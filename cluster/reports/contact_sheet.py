"""Some episodes of a dataset on one picture: a row of frames each, from its first to its last."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cluster.reports.figures import LIGHT
from dreamer4.data.episodes import EpisodeDataset

FRAMES = 8  # of a row
WIDTH = 120  # pixels of a frame, at most; small ones are shown 2, 3, ... times as large
GAP, BAND = 4, 18


def contact_sheet(data: EpisodeDataset, episodes: int) -> bytes:
    """A PNG with episodes from the whole dataset.

    Raises:
        DataError: a frame is damaged.
    """
    height, width, channels = data.manifest.frame
    scale = max(1, WIDTH // width) if width <= WIDTH else WIDTH / width
    size = max(1, round(width * scale)), max(1, round(height * scale))
    chosen = np.unique(np.linspace(0, data.episode_count - 1, min(episodes, data.episode_count)).round().astype(int))
    row = size[1] + BAND + GAP
    canvas = Image.new("RGB", (FRAMES * (size[0] + GAP) + GAP, len(chosen) * row + GAP), LIGHT.paper)
    pencil, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for line, episode in enumerate(chosen):
        start, length = int(data.starts_E[episode]), int(data.lengths_E[episode])
        task = data.manifest.tasks[int(data.task_E[episode])]
        text = (
            f"episode {episode}: {length} frames, return {data.returns_E[episode]:.3g}, {task}, {data.source(episode)}"
        )
        pencil.text((GAP, line * row + GAP), text, fill=LIGHT.ink, font=font)
        places = start + np.linspace(0, length - 1, FRAMES).round().astype(int)
        for column, frame in enumerate(data.frames.take(places)):
            shown = frame if channels == 3 else np.repeat(frame[..., :1], 3, axis=-1)
            sharp = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
            picture = Image.fromarray(np.ascontiguousarray(shown)).resize(size, sharp)
            canvas.paste(picture, (GAP + column * (size[0] + GAP), line * row + BAND))
    file = io.BytesIO()
    canvas.save(file, "PNG", optimize=True)
    return file.getvalue()
