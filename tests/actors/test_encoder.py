import numpy as np
import pytest
import torch
from factories import tiny_tokenizer
from worlds import FRAME, LATENT, SPACE, World

from actors.encoder import Encoder
from dreamer4.data.codecs import Codec
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.data.writer import DatasetWriter

COUNT = 24


@pytest.fixture(scope="module")
def streamed(world: World) -> list[np.ndarray]:
    """Latents of every episode alone, frame by frame with a cache of its own, as an agent does."""
    tokenizer, episodes = tiny_tokenizer(), []
    for one in world.walks:
        cache, video = tokenizer.init_cache(1), torch.from_numpy(one.frames_THWC)[None]
        with torch.no_grad():
            frames = [tokenizer.encode(video[:, t : t + 1], cache=cache)[0, 0].numpy() for t in range(one.length)]
        episodes.append(np.stack(frames))
    return episodes


def test_latents_are_those_of_the_stream_in_the_environment(world, streamed):
    """Invariants 16 and 54: what is on disk is what the acting agent computes."""
    latents = Encoder(tiny_tokenizer(), world.dataset).encode(0, COUNT)
    assert latents.shape == (world.dataset.frame_count, *LATENT) and latents.dtype == np.float32
    assert np.allclose(latents, np.concatenate(streamed), atol=1e-5)


@pytest.mark.parametrize(("rows", "chunk"), [(1, 1), (1, 100), (3, 2), (5, 4), (100, 1), (100, 3)])
def test_rows_and_chunks_do_not_matter(world, streamed, rows, chunk):
    latents = Encoder(tiny_tokenizer(), world.dataset, rows, chunk).encode(0, COUNT)
    assert np.allclose(latents, np.concatenate(streamed), atol=1e-5)


@pytest.mark.parametrize(("first", "last"), [(0, 1), (5, 6), (3, 17), (COUNT - 1, COUNT)])
def test_a_range_of_episodes_gives_their_frames_in_order(world, streamed, first, last):
    latents = Encoder(tiny_tokenizer(), world.dataset, rows=4, chunk=3).encode(first, last)
    assert np.allclose(latents, np.concatenate(streamed[first:last]), atol=1e-5)


def test_ranges_put_together_are_the_whole(world, streamed):
    encoder = Encoder(tiny_tokenizer(), world.dataset, rows=4, chunk=3)
    parts = [encoder.encode(first, min(first + 7, COUNT)) for first in range(0, COUNT, 7)]
    assert np.allclose(np.concatenate(parts), np.concatenate(streamed), atol=1e-5)


def test_latents_depend_on_the_frames_before_in_the_episode(world, streamed):
    """Negative control: the encoder has a memory, so frames alone or episodes run together would show."""
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        video = torch.from_numpy(np.concatenate([one.frames_THWC for one in world.walks]))
        alone = tokenizer.encode(video[:, None])[:, 0].numpy()
        together = tokenizer.encode(video[None])[0].numpy()
    expected, first = np.concatenate(streamed), world.dataset.first_F
    assert np.allclose(alone[first], expected[first], atol=1e-5)
    for wrong in (alone, together):
        assert (np.abs(wrong - expected).max((1, 2)) > 1e-3).sum() > len(first) / 4


def test_no_episode_sees_another(world):
    """The frames of one episode, given as those of all others, leave its own latents alone."""

    class Repainted:
        """The dataset with other pixels in all episodes but one."""

        starts_E, lengths_E = world.dataset.starts_E, world.dataset.lengths_E
        manifest = world.dataset.manifest

        def __init__(self, kept: int):
            start = int(self.starts_E[kept])
            self.kept = range(start, start + int(self.lengths_E[kept]))

        def video(self, start: int, stop: int) -> np.ndarray:
            video = np.array(world.dataset.video(start, stop))
            return video if start in self.kept else 255 - video

    base = Encoder(tiny_tokenizer(), world.dataset, rows=6, chunk=2).encode(0, COUNT)
    for kept in (0, 7, COUNT - 1):
        dataset = Repainted(kept)
        other = Encoder(tiny_tokenizer(), dataset, rows=6, chunk=2).encode(0, COUNT)
        changed = (base != other).any((1, 2))
        assert not changed[dataset.kept.start : dataset.kept.stop].any()
        assert changed.sum() == len(changed) - len(dataset.kept)


def test_latents_do_not_depend_on_how_frames_are_kept(world, tmp_path):
    """Coded chunks are read as wholes, and several passes are made of each; chunks and passes need not divide."""
    expected = Encoder(tiny_tokenizer(), world.dataset, rows=6, chunk=2).encode(0, COUNT)
    for chunk in (3, 4):
        codec = Codec("zstd", chunk=chunk)
        with DatasetWriter(tmp_path / str(chunk), "walk", FRAME, SPACE, ["even", "odd"], codec=codec) as writer:
            for index in range(COUNT):
                writer.add(world.dataset.episode(index))
        encoder = Encoder(tiny_tokenizer(), EpisodeDataset.open(tmp_path / str(chunk)), rows=6, chunk=2)
        assert np.array_equal(encoder.encode(0, COUNT), expected)


def test_encoding_trains_nothing(world):
    tokenizer = tiny_tokenizer().train()
    encoder = Encoder(tokenizer, world.dataset)
    encoder.encode(0, 2)
    assert not tokenizer.training and not any(p.requires_grad for p in tokenizer.parameters())
