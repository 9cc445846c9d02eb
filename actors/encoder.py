"""The worker that encodes a dataset once: frames to latents by the streaming path of deployment.

Episodes are encoded from their first frame with a cache, many side by side, so that a latent on disk equals the one
that the agent computes in the environment.
"""

import numpy as np
import torch

from dreamer4.data.episodes import EpisodeDataset
from dreamer4.tokenizer import Tokenizer

VIDEO_BYTES = 256 << 20  # of frames that wait for their passes


class Encoder:
    """Encodes ranges of whole episodes.

    Args:
        rows: episodes that are encoded side by side, fewer where frames are large.
        chunk: frames of a pass.
    """

    def __init__(self, tokenizer: Tokenizer, dataset: EpisodeDataset, rows: int = 64, chunk: int = 16):
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        recording = dataset.manifest.recording
        # Chunks of coded frames are read as wholes, and several passes are made of them.
        self.read = chunk if recording.codec.kind == "raw" else -(-recording.codec.chunk // chunk) * chunk
        most = max(1, VIDEO_BYTES // (self.read * recording.frame_bytes))
        self.dataset, self.rows, self.chunk = dataset, min(rows, most), chunk

    @torch.no_grad()
    def encode(self, first_episode: int, last_episode: int) -> np.ndarray:
        """`[F, S, D]` float32 latents of the frames of episodes `first_episode` .. `last_episode - 1`, in order."""
        starts, lengths = self.dataset.starts_E, self.dataset.lengths_E
        origin = int(starts[first_episode])
        end = int(starts[last_episode - 1] + lengths[last_episode - 1])
        out = np.zeros((end - origin, *self.tokenizer.latent_shape), np.float32)
        # Neighbours in length side by side waste the least padding.
        order = sorted(range(first_episode, last_episode), key=lambda e: int(lengths[e]))
        for i in range(0, len(order), self.rows):
            self._encode_rows(order[i : i + self.rows], out, origin)
        return out

    def _encode_rows(self, episodes: list[int], out: np.ndarray, origin: int) -> None:
        device = self.tokenizer.pixel_mean.device
        lengths = [int(self.dataset.lengths_E[e]) for e in episodes]
        starts = [int(self.dataset.starts_E[e]) for e in episodes]
        cache = self.tokenizer.init_cache(len(episodes))
        frame = self.tokenizer.config.frame
        video = np.zeros((len(episodes), self.read, *frame), np.uint8)
        for t in range(0, max(lengths), self.chunk):
            size, place = min(self.chunk, max(lengths) - t), t % self.read
            if place == 0:
                for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
                    count = max(0, min(self.read, length - t))
                    if count:
                        video[row, :count] = self.dataset.video(start + t, start + t + count)
                    video[row, count:] = 0
            kept = [max(0, min(size, length - t)) for length in lengths]
            passed = torch.from_numpy(video[:, place : place + size]).to(device)
            latents = self.tokenizer.encode(passed, cache=cache).cpu().numpy()
            for row, (start, count) in enumerate(zip(starts, kept, strict=True)):
                out[start - origin + t : start - origin + t + count] = latents[row, :count]
