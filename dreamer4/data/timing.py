"""Do the actions of a dataset belong to the frames beside which they lie? A cheap statistical probe.

By the timing contract the action in row t leads to frame t + 1. So the change between these two frames is predicted,
by ridge regression, from the actions in rows t - 3 to t + 3; then again without one of the seven. The action that is
missed most on recordings that were held out is the one that caused the change: the one in row t, or actions are
shifted. Leaving one out, instead of trying each alone, is what keys that are held down and players who react to what
they have just done need: their other actions go with the change as well, but add nothing to its cause.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dreamer4.actions import ActionSpace
from dreamer4.data.episodes import EpisodeDataset
from dreamer4.foveation import camera_decode
from dreamer4.rng import numpy_generator

LAGS = tuple(range(-3, 4))
CLIPS, FRAMES = 400, 40  # read at most; of each at most
NEAR = slice(1, -1)  # of the seven actions, those that have to be known
ENOUGH = 5  # so many
ROWS = 200  # of which that is true, at least
FOLDS = 5
RIDGE = 0.01  # of a column's variance
CLASSES = 24  # of a categorical part that are told apart, the most frequent ones
CERTAIN = 4.0  # standard errors by which the missed action has to stand out from 0, and from every other
CLEAR = 2.0  # times as much as any other action
SIZES = (8, 16, 32)  # of the small pictures that are compared
REACH = 2  # pixels of them by which something may move


@dataclass(frozen=True)
class Timing:
    """`shift` is by how many rows the actions lie too late (below 0: too early); None where that can't be told."""

    shift: int | None
    text: str
    gains: dict[int, float]  # by lag: share of the variance of changes that is lost without this action
    clips: int


def probe_timing(dataset: EpisodeDataset, seed: int = 0) -> Timing:
    """Reads a few hundred clips. Raises `DataError` if they are damaged."""
    stretches = list(_stretches(dataset, seed))
    if not stretches:
        return _unknown("no episode of a few frames knows its actions", {}, 0)
    lengths = [len(one.known_T) for one in stretches]
    known_N = np.concatenate([one.known_T for one in stretches])
    acts_NF = action_columns(dataset.manifest.actions, np.concatenate([one.act_out_TA for one in stretches]), known_N)
    if not acts_NF.shape[1]:
        return _unknown("the action never changes", {}, len(stretches))
    clip_N = np.repeat(np.arange(len(stretches)), lengths)
    # Row n + lag of the same clip; where it isn't there or isn't known, the mean action, which is 0.
    place = np.arange(len(clip_N))[:, None] + LAGS
    there_NL = (place >= 0) & (place < len(clip_N))
    place = place.clip(0, len(clip_N) - 1)
    there_NL &= (clip_N[place] == clip_N[:, None]) & known_N[place]
    X_NLF = np.where(there_NL[..., None], acts_NF[place], 0)
    V_NQ = np.concatenate([_changes(one.frames_THWC) for one in stretches])
    used = there_NL[:, NEAR].all(axis=1)
    X_NLF, V_NQ, clip_N = X_NLF[used], V_NQ[used], clip_N[used]
    if used.sum() < ROWS:
        text = f"only {used.sum()} frames have known actions around them, {ROWS} are needed"
        return _unknown(text, {}, len(stretches))
    V_NQ = V_NQ[:, V_NQ.std(axis=0) > 1e-6]
    if not V_NQ.shape[1]:
        return _unknown("the video never changes", {}, len(stretches))
    episodes = np.array([one.episode for one in stretches])
    group = episodes if len(np.unique(episodes)) >= 2 * FOLDS else np.arange(len(stretches))
    fold_N = np.unique(group, return_inverse=True)[1][clip_N] % FOLDS
    return _verdict(_lost_without(X_NLF, V_NQ, fold_N), clip_N, len(stretches))


def _verdict(lost_NL: np.ndarray, clip_N: np.ndarray, clips: int) -> Timing:
    """Clips are what is independent, so means are over clips, and their spread tells how sure they are."""
    counts = np.maximum(np.bincount(clip_N, minlength=clips), 1)
    by_clip = np.stack([np.bincount(clip_N, column, clips) / counts for column in lost_NL.T], axis=1)
    by_clip = by_clip[np.bincount(clip_N, minlength=clips) > 0]
    gains = {lag: float(gain) for lag, gain in zip(LAGS, by_clip.mean(axis=0), strict=True)}
    best = int(by_clip.mean(axis=0).argmax())
    others = [_certainty(by_clip[:, best] - by_clip[:, k]) for k in range(len(LAGS)) if k != best]
    if _certainty(by_clip[:, best]) < CERTAIN:
        return _unknown("the video doesn't seem to depend on the actions", gains, clips)
    second = sorted(gains.values())[-2]
    if min(others) < CERTAIN or gains[LAGS[best]] < CLEAR * second:
        return _unknown("the video goes with several actions alike", gains, clips)
    shift = LAGS[best]
    if shift == 0:
        return Timing(0, "actions seem to lie beside the frames at which they were chosen", gains, clips)
    rows = f"{abs(shift)} row{'s' if abs(shift) > 1 else ''}"
    cause = f"the change from frame t to t + 1 goes with the action in row t {'+' if shift > 0 else '-'} {abs(shift)}"
    return Timing(shift, f"actions seem to lie {rows} too {'late' if shift > 0 else 'early'}: {cause}", gains, clips)


def _unknown(reason: str, gains: dict[int, float], clips: int) -> Timing:
    return Timing(None, f"can't tell whether actions are shifted: {reason}", gains, clips)


def _certainty(values: np.ndarray) -> float:
    """Mean in standard errors."""
    return float(values.mean() / max(values.std(ddof=1) / np.sqrt(len(values)), 1e-12)) if len(values) > 1 else 0.0


@dataclass(frozen=True)
class _Stretch:
    """Some neighbouring frames of an episode, and the rows of all of them but the last."""

    episode: int
    frames_THWC: np.ndarray
    act_out_TA: np.ndarray
    known_T: np.ndarray


def _stretches(dataset: EpisodeDataset, seed: int) -> Iterator[_Stretch]:
    """Seeded: one of each episode, or more of long episodes where there are few."""
    able = np.flatnonzero((dataset.lengths_E > ENOUGH) & (dataset.known_E >= ENOUGH))
    draw = numpy_generator(seed, "timing probe")
    wanted = np.concatenate([draw.permutation(able) for _ in range(-(-CLIPS // max(1, len(able))))])[:CLIPS]
    turns = np.array([np.count_nonzero(wanted[:place] == episode) for place, episode in enumerate(wanted)], int)
    for episode, turn in zip(wanted, turns, strict=True):
        length = int(dataset.lengths_E[episode])
        if turn >= max(1, length // FRAMES):
            continue
        count = min(FRAMES, length)
        first = int(dataset.starts_E[episode]) + int(draw.integers(length - count + 1))
        rows = dataset.rows(np.arange(first, first + count - 1))
        if rows["act_known"].sum() >= ENOUGH:
            video = dataset.video(first, first + count)
            yield _Stretch(int(episode), video, rows["act_out"], rows["act_known"])


def action_columns(space: ActionSpace, act_NA: np.ndarray, known_N: np.ndarray) -> np.ndarray:
    """`[N, F]`: actions as numbers that a linear model can use, standardised over known ones; what never changes is
    left out.
    """
    found, start = [], 0
    for part in space.parts:
        values = act_NA[:, start : start + part.columns].astype(np.float64)
        start += part.columns
        if part.foveation is not None:
            values = camera_decode(values[:, 0], part.foveation)
        elif part.kind == "categorical":
            classes, counts = np.unique(values[known_N], return_counts=True)
            values = values == classes[np.argsort(-counts, kind="stable")][:CLASSES]
        if part.kind == "continuous" or part.foveation is not None:
            values = np.concatenate([values, np.abs(values)], axis=1)
        found.append(values.astype(np.float64))
    columns = np.concatenate(found, axis=1)
    mean, std = columns[known_N].mean(axis=0), columns[known_N].std(axis=0)
    return (columns - mean)[:, std > 1e-6] / std[std > 1e-6]


def _changes(frames_THWC: np.ndarray) -> np.ndarray:
    """`[T - 1, features]` of the changes between neighbouring frames: where it became lighter and darker, and in which
    direction what is not background has moved.
    """
    found = []
    for size in SIZES:
        small = shrunk(frames_THWC, size)
        change = np.diff(small, axis=0)
        if size == SIZES[0]:
            found += [change.reshape(len(change), -1), np.abs(change).reshape(len(change), -1)]
        spectrum = np.fft.rfft2(small - small.mean(axis=0))
        match = np.fft.irfft2(spectrum[1:] * spectrum[:-1].conj(), s=small.shape[1:])
        near = np.arange(-REACH, REACH + 1)
        found.append(match[:, near[:, None], near[None]].reshape(len(change), -1) / (match[:, :1, 0] + 1e-6))
    energy = np.log(np.abs(found[0]).mean(axis=1, keepdims=True) + 1e-4)
    return np.concatenate([*found, energy], axis=1)


def shrunk(frames_THWC: np.ndarray, size: int) -> np.ndarray:
    """Grey pictures `[T, size or less, size or less]` in [0, 1], each pixel the mean of a part of the frame."""
    grey = frames_THWC.mean(axis=-1, dtype=np.float32) / 255
    for axis in (1, 2):
        count = grey.shape[axis]
        cuts = np.unique(np.linspace(0, count, min(size, count), endpoint=False).astype(int))
        widths = np.diff([*cuts, count]).reshape([-1 if a == axis else 1 for a in range(3)])
        grey = np.add.reduceat(grey, cuts, axis=axis) / widths
    return grey


def _lost_without(X_NLF: np.ndarray, V_NQ: np.ndarray, fold_N: np.ndarray) -> np.ndarray:
    """`[N, L]`: by how much the squared error of row n, held out, grows without the action of each lag, as a share of
    the variance. What of the change can be predicted at all counts most; that is found without the rows held out.
    """
    count, lags, features = X_NLF.shape
    X = np.concatenate([X_NLF.reshape(count, -1), np.ones((count, 1))], axis=1)
    V = (V_NQ - V_NQ.mean(axis=0)) / V_NQ.std(axis=0)
    lag_of = np.append(np.repeat(np.arange(lags), features), -1)
    every = np.arange(len(lag_of))
    parts = [fold_N == fold for fold in range(FOLDS)]
    grams, targets = ([X[part].T @ other[part] for part in parts] for other in (X, V))

    def error(held: int, without: set[int], chosen: np.ndarray) -> np.ndarray:
        """Squared errors `[n, Q]` in a fold, of a model of the columns `chosen`, fitted to other folds."""
        kept = [fold for fold in range(FOLDS) if fold not in without]
        gram = np.sum([grams[fold] for fold in kept], axis=0)[np.ix_(chosen, chosen)]
        ridge = RIDGE * np.diag(np.diag(gram) + 1e-6)
        weights = np.linalg.solve(gram + ridge, np.sum([targets[fold] for fold in kept], axis=0)[chosen])
        return np.square(V[parts[held]] - X[parts[held]][:, chosen] @ weights)

    lost = np.zeros((count, lags))
    for held in range(FOLDS):
        inner = [fold for fold in range(FOLDS) if fold != held]
        left = sum(error(fold, {held, fold}, every).sum(axis=0) for fold in inner)
        total = sum(np.square(V[parts[fold]]).sum(axis=0) for fold in inner)
        weight_Q = np.maximum(1 - left / np.maximum(total, 1e-9), 1e-6)
        weight_Q /= weight_Q.sum()
        whole = error(held, {held}, every)
        for lag in range(lags):
            lost[parts[held], lag] = (error(held, {held}, np.flatnonzero(lag_of != lag)) - whole) @ weight_Q
    return lost
