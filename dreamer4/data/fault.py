"""A thing that is wrong with a dataset, and where."""

from dataclasses import dataclass

KINDS = {
    "manifest": "the manifest is missing, damaged or of another version",
    "missing": "a file is missing or can't be read",
    "truncated": "a file has another size than the manifest says",
    "checksum": "a file has another checksum than the manifest says",
    "index": "the index of a shard is damaged or can't be true",
    "statistics": "sums in the manifest are not those of the index",
    "columns": "columns of a shard, as any Arrow program reads them, are not what the index says",
    "frames": "frames or rows are damaged or can't be decoded",
    "not finite": "an action or a reward is not finite",
    "action": "an action is outside of the action space",
    "misaligned": "actions, rewards or their sums don't fit the frames and the timing contract",
    "event": "task events are not those of the index, or of no task",
    "dead": "the picture never changes",
    "duplicate": "frames, actions and rewards are those of another episode",
    "timing": "actions seem to be shifted against the video",
    "latents": "latents are damaged, not finite or of other recordings",
}


@dataclass(frozen=True)
class Fault:
    """`episode` is its number in the dataset, `row` one of the file; None: it is about the whole file."""

    kind: str
    file: str
    text: str
    episode: int | None = None
    row: int | None = None

    def __str__(self) -> str:
        place = "" if self.row is None else f" row {self.row}"
        episode = "" if self.episode is None else f" episode {self.episode}"
        return f"{self.kind:11} {self.file}{place}{episode}: {self.text}"
