"""Runs of tasks in a thread of their own, each a sequence of events, and the model that all runs share.

    Waiting -> Loading -> First -> Progress ... -> Finished | Failed

The task does the work, and its folder holds what it always does. The thread goes on until the task's step has ended,
whether or not anybody asks for the next event; the next run begins after that.
"""

import gc
import queue
import secrets
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .._types import AdjointDPMError, InputError
from .choice import Choice
from .jobs import Finished, First, Loaded, Model, Progress, finished
from .line import Line, Place

__all__ = ["Event", "Failed", "Loading", "Session", "Studio", "Waiting"]


@dataclass(frozen=True)
class Waiting:
    """Other runs come first.

    Args:
        before: how many.
    """

    before: int


@dataclass(frozen=True)
class Loading:
    """The turn has come."""


@dataclass(frozen=True)
class Failed:
    """There is no result.

    Args:
        message: one line that says why.
        stopped: whether it is because somebody stopped it before it began.
    """

    message: str
    stopped: bool = False


Event = Waiting | Loading | First | Progress | Finished | Failed


@dataclass(eq=False)
class Session:
    """One person's page: a folder that nobody else can guess, and the run that it has asked for, if any.

    Args:
        folder: for the folders of its runs.
        stop: set when the newest run is to end.
        place: of the newest run.
        runs: how many there were.
        reference: the image that was uploaded last, if it can be used.
        uploads: how many there were.
    """

    folder: Path
    stop: threading.Event = field(default_factory=threading.Event)
    place: Place | None = None
    runs: int = 0
    reference: Path | None = None
    uploads: int = 0


class Studio:
    """Runs tasks on one model for several sessions, one at a time.

    Args:
        model: what it works with.
        folder: for all files; each session has a folder in it.
        loaded: the model, if it was loaded before.
    """

    def __init__(self, model: Model, folder: Path, loaded: Loaded | None = None) -> None:
        self.model, self.folder, self.line = model, folder, Line()
        # One thread for all runs: each new one would leave its share of the allocator's memory behind.
        self._loaded, self._worker = loaded, ThreadPoolExecutor(1, "studio")
        self._working: dict[Future[None], threading.Event] = {}

    def session(self) -> Session:
        """Return a new session."""
        return Session(self.folder / secrets.token_hex(16))

    def stop(self, session: Session) -> bool:
        """End a session's run after its step, or before it begins.

        Returns:
            whether there was one.
        """
        session.stop.set()
        place = session.place
        if place is None or place not in self.line:
            return False
        if not place.working:
            self.line.leave(place)
        return True

    def end(self, seconds: float = 60.0) -> None:
        """Stop every run, and wait until their steps have ended.

        Args:
            seconds: how long to wait at most.
        """
        working = dict(self._working)
        for stop in working.values():
            stop.set()
        wait(working, seconds)
        self._worker.shutdown(wait=False)

    def run(self, session: Session, choice: Choice) -> Iterator[Event]:
        """Do what was chosen.

        Args:
            session: whose run it is; an earlier one of it is stopped.
            choice: what to do.

        Yields:
            Event: what happens, until `Finished` or `Failed`. If the iterator is closed, the run is stopped.
        """
        self.stop(session)
        try:
            place = self.line.join()
        except InputError as error:
            yield Failed(str(error))
            return
        stop = threading.Event()
        session.stop, session.place, session.runs = stop, place, session.runs + 1
        folder = session.folder / f"{session.runs}-{choice.variable}"
        events: queue.Queue[Event | None] = queue.Queue()
        started = False
        try:
            shown: int | None = None
            while (number := self.line.before(place, 0.5)) != 0 or stop.is_set():
                if number is None or stop.is_set():
                    yield Failed("Stopped before it began.", stopped=True)
                    return
                if number != shown:
                    yield Waiting(number)
                shown = number
            work = self._worker.submit(self._work, choice, folder, stop, place, events)
            self._working[work], started = stop, True
            work.add_done_callback(lambda done: self._working.pop(done, None))
            while (event := events.get()) is not None:
                yield event
        finally:
            stop.set()
            if not started:
                self.line.leave(place)

    def _work(
        self,
        choice: Choice,
        folder: Path,
        stop: threading.Event,
        place: Place,
        events: "queue.Queue[Event | None]",
    ) -> None:
        try:
            events.put(Loading())
            events.put(self._result(choice, folder, stop, events.put))
        except AdjointDPMError as error:
            events.put(Failed(str(error)))
        except (torch.OutOfMemoryError, MemoryError):
            events.put(
                Failed(
                    "The memory does not suffice; choose fewer sampling steps or the adjoint checkpointed."
                )
            )
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            events.put(
                Failed(f"internal error: {type(error).__name__}: {error}; the server's output says more")
            )
        finally:
            gc.collect()  # Models and their hooks refer to each other, and the next run loads another one.
            self.line.leave(place)
            events.put(None)

    def _result(
        self, choice: Choice, folder: Path, stop: threading.Event, send: Callable[[Event], None]
    ) -> Finished:
        loaded = self._loaded or self.model.load()
        # A token and a LoRA stay in the model, so that the next run loads it again.
        self._loaded = loaded if choice.variable == "noise" else None
        return finished(self.model, loaded, choice, folder, stop.is_set, send)
