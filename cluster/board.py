"""Where trainers leave news for the driver."""

from dataclasses import dataclass, field


@dataclass
class News:
    """What the trainers of a stage did since they were last asked."""

    starts: list[tuple[int, int]] = field(default_factory=list)  # updates done before, and number of trainers
    step: int = 0  # of the first row
    rows: list[dict[str, float]] = field(default_factory=list)  # metrics of updates
    cpu_seconds: float = 0.0


class Board:
    """Keeps the news until they are taken: an actor, so that nobody waits for anybody."""

    def __init__(self) -> None:
        self.news = News()

    def start(self, step: int, trainers: int) -> None:
        """Trainers were started; what was told before and is not in their checkpoint will be done again."""
        self.news = News([*self.news.starts, (step, trainers)], step, [], self.news.cpu_seconds)

    def tell(self, rows: list[dict[str, float]]) -> None:
        self.news.rows += rows

    def spent(self, cpu_seconds: float) -> None:
        """By any of the trainers."""
        self.news.cpu_seconds += cpu_seconds

    def take(self) -> News:
        news, self.news = self.news, News(step=self.news.step + len(self.news.rows))
        return news
