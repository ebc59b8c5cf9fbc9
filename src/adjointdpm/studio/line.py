"""The one queue: places in the order of arrival, of which the first alone works.

A place that nobody asks about is given up after a while, so that a page that was closed holds up no other.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from .._types import InputError

__all__ = ["Line", "Place"]


@dataclass(eq=False)
class Place:
    """One place in a line.

    Args:
        seen: when it was last asked for its number.
        working: whether its turn has come.
    """

    seen: float
    working: bool = False


class Line:
    """Places one after the other.

    Args:
        most: the most places at once.
        patience: seconds after which a waiting place is given up that nobody asked about.
        clock: returns the time in seconds.
    """

    def __init__(
        self, most: int = 32, patience: float | int = 30, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.most, self.patience, self.clock = most, patience, clock
        self._places: list[Place] = []
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, place: Place) -> bool:
        return place in self._places

    def join(self) -> Place:
        """Return a new place at the end.

        Raises:
            InputError: the line is full.
        """
        with self._changed:
            self._drop()
            if len(self._places) >= self.most:
                raise InputError(f"{self.most} runs are waiting already; try again when some have ended")
            self._places.append(Place(self.clock()))
            return self._places[-1]

    def before(self, place: Place, seconds: float | int = 0) -> int | None:
        """Return how many places are before one: 0 once its turn has come; None if it was given up.

        Args:
            place: the place.
            seconds: how long to wait for its turn at most.
        """
        with self._changed:
            until = self.clock() + seconds
            while True:
                place.seen = self.clock()
                self._drop()
                if place not in self._places:
                    return None
                number = self._places.index(place)
                place.working = place.working or number == 0
                if number == 0 or place.seen >= until:
                    return number
                self._changed.wait(until - place.seen)

    def leave(self, place: Place) -> None:
        """Give a place up; nothing happens if it was before."""
        with self._changed:
            if place in self._places:
                self._places.remove(place)
                self._changed.notify_all()

    def _drop(self) -> None:
        """Give up the waiting places that nobody has asked about for long."""
        now = self.clock()
        self._places[:] = [p for p in self._places if p.working or now - p.seen <= self.patience]
