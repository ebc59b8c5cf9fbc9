"""A task of the loop on a closed-form sampler, so fast that it can be killed many times.

Run as a script it is killed for real: `python -m tests.tiny.tasks FOLDER KILLS` prints a hash of its result.
"""

import hashlib
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch
from tqdm import tqdm

import adjointdpm as adp
from adjointdpm.flow.schedules import VPDiscrete
from adjointdpm.optimization.seeds import key
from adjointdpm.tasks import LoopSettings, Losses, RunOptions, Task, optimize
from adjointdpm.tasks.sampling import noise_of
from tests.conftest import Mixture, scaled_linear, standard_mixture


class Dots(Mixture):
    """A point (x, y) of the plane, shown as one pixel of red x, green y and blue their mean."""

    def __init__(self, schedule):
        super().__init__(schedule, standard_mixture(schedule), (2,))
        self.image_shape = (3, 1, 1)

    def decode(self, latents, run=adp._types.direct):
        pixel = torch.cat([latents, latents.mean(1, keepdim=True)], 1)
        return (0.5 + 0.25 * pixel)[:, :, None, None]


def mixture_sampler(steps=6):
    """Four blobs in the plane; an image is a point."""
    return adp.FlowSampler(Dots(VPDiscrete(scaled_linear())), steps=steps)


class Points(Task):
    """Each start has a point to reach, within a ball around it: rows of their own."""

    per_item = True

    def __init__(self, items=5, steps=6):
        self.sampler, self.items = mixture_sampler(steps), items
        self.centre = noise_of(self.sampler, [key(7, i) for i in range(items)])
        self.variables = {"noise": self.centre.clone()}

    def losses(self, step, items):
        cond = self.sampler.encode(["x"] * len(items))
        points = self.sampler(self.variables["noise"][items], cond)
        # Unseeded draws, as of a random crop or dropout: the loop keys them.
        return Losses(((points - 0.6) ** 2).sum((1, 2, 3)) * (1 + 0.1 * torch.rand(())))

    def project(self):
        noise = self.variables["noise"]
        noise.copy_(self.centre + (noise - self.centre).clamp(-0.8, 0.8))


class Halved(Points):
    """After the third step two points go on, of the lowest rank; one that fell twice in a row does not."""

    def losses(self, step, items):
        found = super().losses(step, items)
        noise = self.variables["noise"].detach()[items]
        return found._replace(fallen=noise[:, 0] > noise[:, 1])

    def going_on(self, step, standing):
        if step < 2:
            return standing.fallen < 2
        place = torch.where(standing.active, standing.rank, torch.inf).argsort().argsort()
        return (standing.fallen < 2) & (place < 2)


class Shift(Task):
    """One shift of the blobs for all noises: a variable that all items share."""

    def __init__(self, items=6):
        self.sampler, self.items = mixture_sampler(), items
        self.variables = {"shift": torch.zeros(1, 2, dtype=torch.float64)}

    def losses(self, step, items):
        noise = noise_of(self.sampler, [key(3, step, i) for i in items])
        points = self.sampler(noise, adp.Cond({"shift": self.variables["shift"].expand(len(items), 2)}))
        return Losses(((points - 0.9) ** 2).sum((1, 2, 3)))

    def validate(self, step):
        return float(((self.variables["shift"] - 1.3) ** 2).sum())


def adam(leaves):
    return torch.optim.Adam(leaves, lr=0.1)


def run(folder, kind=Points, **settings):
    options = {"resume": True, "quiet": True, "config": {"task": kind.__name__}}
    options |= {name: settings.pop(name) for name in ("resume", "quiet", "config") if name in settings}
    loop = LoopSettings(
        **{"steps": 12, "batch_size": 4, "checkpointing_steps": 1, "decay": "cosine", "warmup": 2}
        | {"folder": folder, "run": RunOptions(**options)}
        | settings
    )
    return optimize(kind(), adam, loop)


def digest(outcome):
    """Of every bit of a result."""
    parts = [*outcome.best.values(), outcome.best_step, outcome.best_loss, torch.tensor(outcome.losses)]
    return hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in parts)).hexdigest()


def killed(folder, kills, seed=0):
    """Run it in forks until so many were killed at random times in their work."""
    draw = random.Random(seed)
    for _ in range(2):  # the first run is slow
        start = time.perf_counter()
        run(None)
        once = time.perf_counter() - start
    while kills:
        child = os.fork()
        if child == 0:
            run(folder)
            os._exit(0)
        time.sleep(draw.uniform(0, 0.6 * once))
        os.kill(child, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL:
            kills -= 1
        else:  # it had come to its end: begin again
            for each in folder.iterdir():
                each.unlink()


if __name__ == "__main__":
    torch.set_num_threads(1)
    # tqdm's own lock is shared between forks: one that is killed while it holds it would block all that come after.
    tqdm.set_lock(threading.RLock())
    where = Path(sys.argv[1])
    killed(where, int(sys.argv[2]))
    print(digest(run(where)))
