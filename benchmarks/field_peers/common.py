"""What every peer is given, whatever its environment holds: the market as tables and texts, a
clock, and a look at what its likeliest answers earn on unseen bars. Needs numpy alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

DAYS = 40  # of an episode
# Of the budget, where the policy is looked at: often while it learns.
LOOKS = (0.02, 0.04, 0.06, 0.08, 0.1, 0.13, 0.17, 0.22, 0.3, 0.4, 0.55, 0.75, 1.0)
LEVELS = (50, 80, 90)  # % of the best rule
HOLD = 1  # of ACTIONS
ACTIONS = ("Sell", "Hold", "Buy")


@dataclass(frozen=True)
class Bars:
    """T decisions in H positions (flat, long), by A actions.

    texts: (T, H) prompts, which end where the action's word begins.
    legal: (H, A) bool.
    gains: (T, H, A) log returns of the account in the step; where illegal, as Hold's.
    after: (T, H, A) the next position.
    """

    texts: list[list[str]]
    legal: np.ndarray
    gains: np.ndarray
    after: np.ndarray

    @classmethod
    def read(cls, told: dict[str, Any]) -> Bars:
        """From JSON."""
        legal, gains, after = (np.array(told[name]) for name in ("legal", "gains", "after"))
        return cls(told["texts"], legal.astype(bool), gains, after)

    def __len__(self) -> int:
        return len(self.texts)

    def outcomes(self) -> np.ndarray:
        """(T, H, A) what an action has earned a bar after its order was filled: for learners that
        know one step alone. Orders fill at the next price, so that in its own step an action earns
        nothing.
        """
        follows = np.zeros_like(self.gains)
        held = self.gains[1:, :, HOLD]
        for bar in range(len(self) - 1):
            follows[bar] = held[bar][self.after[bar]]
        return self.gains + follows


class Episode:
    """Days of trading on a stretch of the bars, flat at first."""

    def __init__(self, bars: Bars, rng: np.random.Generator, days: int = DAYS):
        self.bars, self.rng, self.days = bars, rng, days
        self.reset()

    def reset(self) -> str:
        """Begin on a random bar; the first prompt."""
        self.bar = int(self.rng.integers(len(self.bars) - self.days))
        self.position, self.left = 0, self.days
        return self.text

    @property
    def text(self) -> str:
        """The prompt of where it stands."""
        return self.bars.texts[self.bar][self.position]

    @property
    def legal(self) -> np.ndarray:
        """(A,) bool."""
        return self.bars.legal[self.position]

    def step(self, action: int) -> tuple[float, bool]:
        """Trade a bar: the log return, and whether the episode is over."""
        gain = float(self.bars.gains[self.bar, self.position, action])
        self.position = int(self.bars.after[self.bar, self.position, action])
        self.bar, self.left = self.bar + 1, self.left - 1
        return gain, self.left == 0


def processes() -> dict[Path, list[str]]:
    """Of this session, or FIELD_SESSION, and of the sessions that its processes began, as launchers
    do: the folder in /proc, and the words of its `stat` from the state on.
    """
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        found[path] = words
    own = {os.environ.get("FIELD_SESSION", str(os.getsid(0)))}
    for _ in range(3):  # sessions within sessions
        ids = {path.name for path, words in found.items() if words[3] in own}
        own |= {words[3] for words in found.values() if words[1] in ids}
    return {path: words for path, words in found.items() if words[3] in own}


def spent() -> float:
    """Processor seconds of every process of the run, those that have ended included."""
    ticks = os.sysconf("SC_CLK_TCK")  # user, system, and of children that were waited for
    return sum(sum(map(int, words[11:15])) for words in processes().values()) / ticks


def peak_memory() -> float:
    """MiB, the sum of the highest residents of the run's processes."""
    total = 0.0
    for path in processes():
        try:
            lines = (path / "status").read_text(encoding="utf-8").splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    return total


class OutOfTime(Exception):
    """A run has had its seconds."""


class Watch:
    """A run's settings, its clock, and its curve.

    Attributes:
        train: bars to learn on.
        model: folder of the language model that all begin with.
        steps: environment steps of the run.
        seed: of the run.
        options: all the rest of the settings.
    """

    def __init__(self, settings: dict[str, Any]):
        self.options = settings
        task = json.loads(Path(settings["task"]).read_text(encoding="utf-8"))
        self.train, self._test = Bars.read(task["train"]), Bars.read(task["test"])
        self._best = task["best"]
        self.model, self.steps, self.seed = (settings[n] for n in ("model", "steps", "seed"))
        self.learning_rate = settings["learning_rate"]
        self._due = [round(share * self.steps) for share in LOOKS] if settings["looks"] else []
        self._points: list[tuple[int, float, float, float]] = []
        self.start()

    @classmethod
    def of_command_line(cls) -> Watch:
        """Of the file that the last word of the command line names."""
        return cls(json.loads(Path(sys.argv[-1]).read_text(encoding="utf-8")))

    def start(self) -> None:
        """Learning begins: loading and starting up are not its time."""
        self._began, self._spent = time.perf_counter(), spent()
        self.done = 0

    def due(self, steps: int) -> bool:
        """Whether it is time for a look, after so many environment steps; OutOfTime where the run
        is over.
        """
        self.done = steps
        if time.perf_counter() - self._began > self.options["limit"]:
            raise OutOfTime
        return bool(self._due) and steps >= self._due[0]

    def look(self, scores: Callable[[Sequence[str]], np.ndarray]) -> None:
        """What the likeliest actions earn on the unseen bars; `scores` gives (N, A) for N prompts,
        and its time is not learning's.
        """
        seconds, cpu = time.perf_counter() - self._began, spent() - self._spent
        bars = self._test
        given = scores([text for pair in bars.texts for text in pair])
        masked = np.where(bars.legal, given.reshape(len(bars), 2, -1), -np.inf)
        chosen, position, earned = masked.argmax(-1), 0, 0.0
        for bar in range(len(bars)):
            action = chosen[bar, position]
            earned += float(bars.gains[bar, position, action])
            position = int(bars.after[bar, position, action])
        self._points.append((self.done, seconds, cpu, earned / self._best))
        self._due = [due for due in self._due if due > self.done]
        self._began += time.perf_counter() - self._began - seconds
        self._spent += spent() - self._spent - cpu

    def write(
        self, scores: Callable[[Sequence[str]], np.ndarray] | None = None, **more: Any
    ) -> None:
        """The record of the run, and what else the peer has to say; with a last look, where the
        others were looked at too.
        """
        stale = not self._points or self._points[-1][0] < self.done
        if scores is not None and self.options["looks"] and stale:
            self.look(scores)
        seconds, cpu = time.perf_counter() - self._began, spent() - self._spent
        record: dict[str, Any] = {
            "steps": self.done,
            "seconds": round(seconds, 2),
            "cpu_seconds": round(cpu, 2),
            "memory_mib": round(peak_memory()),
            "share": round(self._points[-1][3], 4) if self._points else None,
        }
        for level in LEVELS:
            reached = next((p for p in self._points if p[3] >= level / 100), None)
            record[f"steps_to_{level}"] = None if reached is None else reached[0]
            record[f"seconds_to_{level}"] = None if reached is None else round(reached[1], 1)
        record["curve"] = [[p[0], round(p[3], 4)] for p in self._points]
        record.update(more)
        Path(self.options["out"]).write_text(json.dumps(record), encoding="utf-8")
