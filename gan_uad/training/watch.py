"""Warnings of collapse and divergence in adversarial training."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from statistics import median

MIN_TICKS = 5  # ticks that a sign of trouble must last
SILENCE = 25  # ticks before the same warning is repeated
WARMUP_TICKS = 10  # ticks at the start without warnings
EXPLOSION = 50.0  # times the usual gradient norm


class Watch:
    """Checks the metrics of every tick (means since the last one) and returns warnings.

    Signs of trouble: the discriminator classifies every image correctly (`real_sign` and `fake_sign` near 1 and −1: it has memorised the
    images, or the generator fails); generated images hardly differ (`diversity`, their spread relative to real images); gradient norms
    (`grad_*`) far above their median. Metrics that a task does not log are ignored.
    """

    def __init__(self) -> None:
        self.rows: deque[dict[str, float]] = deque(maxlen=50)
        self.ticks = 0
        self.warned: dict[str, int] = {}  # the tick of the last warning of each kind

    def replay(self, rows: Iterable[dict[str, float]]) -> None:
        """Read the log of a resumed run, so that warnings come as if it had never stopped."""
        for row in rows:
            self.check(row)

    def check(self, row: dict[str, float]) -> list[str]:
        """The warnings of this tick."""
        usual = {name: median(self._past(name) or [0.0]) for name in row if name.startswith("grad_")}
        self.rows.append(row)
        self.ticks += 1
        found = []
        if self.ticks > WARMUP_TICKS:
            found = [(kind, text) for kind, text in self._trouble(row, usual) if self._due(kind)]
        self.warned |= {kind: self.ticks for kind, _ in found}
        return [text for _, text in found]

    def _trouble(self, row: dict[str, float], usual: dict[str, float]) -> Iterable[tuple[str, str]]:
        if self._lasting("real_sign", lambda v: v > 0.95) and self._lasting("fake_sign", lambda v: v < -0.95):
            yield (
                "signs",
                f"the discriminator classifies every image correctly (signs {row['real_sign']:.2f} and {row['fake_sign']:.2f}), so the "
                "generator learns little. Use more images, augmentation (optim.augment=bgc) or a higher optim.r1_gamma",
            )
        if self._lasting("diversity", lambda v: v < 0.3):
            yield (
                "diversity",
                f"generated images hardly differ (diversity {row['diversity']:.2f} of the real images'): the generator is collapsing. "
                "Use a lower learning rate (optim.lr) or a higher optim.r1_gamma",
            )
        for name, norm in usual.items():
            if norm > 0 and row[name] > EXPLOSION * norm:
                yield (
                    name,
                    f"the gradients of {name.removeprefix('grad_')} are {row[name] / norm:.0f} times as large as usual ({row[name]:.3g}): "
                    "training may be diverging. Use a lower learning rate (optim.lr)",
                )

    def _past(self, name: str) -> list[float]:
        return [row[name] for row in self.rows if name in row]

    def _lasting(self, name: str, wrong: Callable[[float], bool]) -> bool:
        past = self._past(name)[-MIN_TICKS:]
        return len(past) == MIN_TICKS and all(map(wrong, past))

    def _due(self, kind: str) -> bool:
        return self.ticks - self.warned.get(kind, -SILENCE) >= SILENCE
