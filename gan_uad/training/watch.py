"""Watching an adversarial training for collapse and divergence, and saying so in words."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from statistics import median

RECENT = 5  # ticks that a sign of trouble must last
SILENCE = 25  # ticks before the same warning comes again
WARMUP_TICKS = 10  # ticks at the start that are not judged
EXPLOSION = 50.0  # times the usual gradient norm


class Watch:
    """Looks at the figures of every tick (the means since the last one) and returns what is wrong, in words.

    Signs: the discriminator answers every image rightly (`real_sign` and `fake_sign` near 1 and −1: it has learnt the images by heart, or
    the generator is lost), generated images hardly differ from each other (`diversity`, their spread over that of real ones),
    gradient norms (`grad_*`) far above their median. Figures that a task does not log are not judged.
    """

    def __init__(self) -> None:
        self.rows: deque[dict[str, float]] = deque(maxlen=50)
        self.seen = 0
        self.said: dict[str, int] = {}

    def replay(self, rows: Iterable[dict[str, float]]) -> None:
        """Take up the log of a resumed run, so that it is judged as if it had never stopped."""
        for row in rows:
            self.look(row)

    def look(self, row: dict[str, float]) -> list[str]:
        """The warnings that this tick gives rise to."""
        usual = {name: median(self._past(name) or [0.0]) for name in row if name.startswith("grad_")}
        self.rows.append(row)
        self.seen += 1
        found = []
        if self.seen > WARMUP_TICKS:
            found = [(kind, text) for kind, text in self._validator(row, usual) if self._due(kind)]
        for kind, _ in found:
            self.said[kind] = self.seen
        return [text for _, text in found]

    def _validator(self, row: dict[str, float], usual: dict[str, float]) -> Iterable[tuple[str, str]]:
        if self._lasting("real_sign", lambda v: v > 0.95) and self._lasting("fake_sign", lambda v: v < -0.95):
            yield (
                "signs",
                f"the discriminator answers every image rightly (signs {row['real_sign']:.2f} and {row['fake_sign']:.2f}): the generator "
                "learns little from it now. More images, augmentation (optim.augment=bgc) or a higher optim.r1_gamma help",
            )
        if self._lasting("diversity", lambda v: v < 0.3):
            yield (
                "diversity",
                f"generated images hardly differ from each other (diversity {row['diversity']:.2f} of the real images'): the generator is "
                "collapsing. Go back to an earlier checkpoint with a lower learning rate, or a higher optim.r1_gamma",
            )
        for name, norm in usual.items():
            if norm > 0 and row[name] > EXPLOSION * norm:
                yield (
                    name,
                    f"the gradients of {name.removeprefix('grad_')} are {row[name] / norm:.0f} times as large as usual ({row[name]:.3g}): "
                    "training may be diverging. A lower learning rate helps",
                )

    def _past(self, name: str) -> list[float]:
        return [row[name] for row in self.rows if name in row]

    def _lasting(self, name: str, wrong: Callable[[float], bool]) -> bool:
        past = self._past(name)[-RECENT:]
        return len(past) == RECENT and all(map(wrong, past))

    def _due(self, kind: str) -> bool:
        return self.seen - self.said.get(kind, -SILENCE) >= SILENCE
