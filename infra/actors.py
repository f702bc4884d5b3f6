"""Ray actors that hold one model each and work on parts; what each gives is a file of its own, so a kill loses none.

They are started when there is work for them, go on with the next model, are started again by Ray where one dies, and
end with the `with` block.
"""

from __future__ import annotations

import gc
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import ray
from ray.exceptions import RayActorError, RayTaskError

from amvl_core.contracts import storage
from amvl_core.contracts.config import RunConfig
from amvl_core.contracts.errors import AmvlError, ClusterError
from amvl_core.contracts.parts import Part, Worker
from amvl_core.contracts.progress import Progress, ProgressFn
from amvl_core.eval.stored import read_table, write_table
from infra.cluster import Room, evaluators

RESTARTS = 3
IN_FLIGHT = 2
"""Parts that an actor has at once: one is worked on, the next one may be made ready."""
ASK_SECONDS = 5.0
"""How often an actor is asked whether it is there."""
LOST_SECONDS = 60.0
"""An actor that has not answered for so long has no machine. Its parts go to others, until it answers."""


class Actor:
    """One process with one worker at a time."""

    def __init__(self) -> None:
        import torch
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        if not torch.cuda.is_available():
            torch.set_num_threads(1)
        self.made_by: ray.ObjectRef | None = None
        self.worker: Worker | None = None
        self.preparing, self.working = threading.Lock(), threading.Lock()

    def work(self, make: list[ray.ObjectRef], asked: Any, number: int, part: Part, uri: str) -> int:
        """Writes what the worker that `make` refers to makes of a part; the part's own `number`."""
        if storage.exists(uri):  # it was given to another one, while this one had no machine
            return number
        with self.preparing:
            worker = self._worker(*make)
            ready = worker.prepare(asked, part)
        with self.working:
            rows = worker.work(ready)
        write_table(uri, pa.Table.from_pylist(rows))
        return number

    @ray.method(concurrency_group="asked")
    def restarted(self) -> bool:
        """Whether it died before. It answers while it works."""
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)

    def _worker(self, make: ray.ObjectRef) -> Worker:
        if self.worker is None or self.made_by != make:
            import torch

            self.worker = None  # its model goes before the next one comes
            gc.collect()
            torch.cuda.empty_cache()
            self.worker, self.made_by = ray.get(make)(), make
        return self.worker


class _Hand:
    """An actor, the parts that it has, and the question that it has not answered `since` it was asked."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.parts: dict[ray.ObjectRef, int] = {}
        self.question: ray.ObjectRef | None = actor.restarted.remote()
        self.since = time.monotonic()

    def ask(self) -> None:
        """Asks whether it is there, unless it has just answered or is still to answer."""
        if self.question is None and time.monotonic() - self.since > ASK_SECONDS:
            self.question, self.since = self.actor.restarted.remote(), time.monotonic()

    def answered(self) -> None:
        """It is there."""
        self.question, self.since = None, time.monotonic()

    def lost(self) -> bool:
        """Whether it has not answered for too long."""
        late = self.question is not None and time.monotonic() - self.since > LOST_SECONDS
        return late and not ray.wait([self.question], timeout=0)[0]


def _restarted(call: ray.ObjectRef) -> bool:
    """What an actor answered; one that has died for good was so too."""
    try:
        return bool(ray.get(call))
    except RayActorError:
        return True


class Actors:
    """As many actors as the run has room for, for one model after another: `with Actors(config) as actors`."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.started: list[Any] = []
        self.make: Callable[[], Worker] | None = None
        self.made_by: ray.ObjectRef | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the actors, if there are any."""
        for actor in self.started:
            ray.kill(actor)
        self.started = []

    def tables(
        self,
        make: Callable[[], Worker],
        asked: Any,
        parts: Sequence[Part],
        folder: str,
        name: str,
        on_progress: ProgressFn,
    ) -> dict[str, pa.Table]:
        """Works on those of `parts` that have no file in `folder` yet; the tables of each kind as one, in order.

        Each actor calls `make` for its worker, and keeps that until it is given another `make`. Raises the AmvlError of
        a worker, and a ClusterError that names the work, `name`, where one keeps dying.
        """
        if make is not self.make:
            self.make, self.made_by = make, ray.put(make)
        files = [storage.join(folder, part.file(number)) for number, part in enumerate(parts)]
        there = {storage.join(folder, name) for name in storage.list_names(folder)}
        waiting = [(part, file) for part, file in zip(parts, files, strict=True) if file not in there]
        total = sum(len(part.items) for part in parts)
        done = total - sum(len(part.items) for part, _ in waiting)
        cost = left = sum(part.cost for part, _ in waiting)
        on_progress(Progress(name, done, total, "questions"))
        started = time.monotonic()
        try:
            for number in self._work(asked, waiting, name):
                part, _ = waiting[number]
                done, left = done + len(part.items), left - part.cost
                seconds = (time.monotonic() - started) / (cost - left) * left
                on_progress(Progress(name, done, total, "questions", seconds))
        except BaseException:
            self.close()  # they would go on
            raise
        found: dict[str, list[pa.Table]] = {}
        for part, file in zip(parts, files, strict=True):
            found.setdefault(part.kind, []).append(read_table(file))
        return {kind: pa.concat_tables(tables) for kind, tables in found.items()}

    def _work(self, asked: Any, waiting: Sequence[tuple[Part, str]], about: str) -> Iterator[int]:
        """The numbers of `waiting` in the order in which they are done."""
        if not waiting:
            return
        shared = ray.put(asked)
        hands = [_Hand(actor) for actor in self._start(len(waiting))]
        room = Room(replace(evaluators(self.config.cluster), num_workers=len(hands)), 1, about)
        queue, left = deque(range(len(waiting))), len(waiting)
        try:
            while left:
                here = [hand for hand in hands if not hand.lost()]
                for hand in hands:
                    hand.ask()
                    if here and hand not in here:
                        queue.extend(hand.parts.values())
                        hand.parts = {}
                for held, hand in product(range(IN_FLIGHT), here):  # all have one before one has two
                    if queue and len(hand.parts) == held:
                        number = queue.popleft()
                        hand.parts[hand.actor.work.remote([self.made_by], shared, number, *waiting[number])] = number
                calls = {call: hand for hand in hands for call in (*hand.parts, hand.question) if call is not None}
                for call in ray.wait(list(calls), timeout=ASK_SECONDS)[0]:
                    ray.get(call)
                    hand = calls[call]
                    if call == hand.question:
                        hand.answered()
                    else:
                        left -= 1
                        yield hand.parts.pop(call)
                room.look()
        except RayTaskError as error:
            if isinstance(error.cause, AmvlError):
                raise error.cause from None
            raise
        except RayActorError as error:
            raise ClusterError(
                f"{about}: a worker died {RESTARTS + 1} times ({error}); if it was out of memory, lower "
                "evaluation.batch_tokens; what is done so far is kept, and a second run goes on from it"
            ) from error

    def _start(self, tasks: int) -> list[Any]:
        """The actors. One that is not there is not kept, nor one that died before: Ray counts its deaths for ever."""
        calls = {actor.restarted.remote(): actor for actor in self.started}
        answers = ray.wait(list(calls), num_returns=len(calls), timeout=LOST_SECONDS)[0] if calls else []
        for call, actor in calls.items():
            if call not in answers or _restarted(call):
                ray.kill(actor)
                self.started.remove(actor)
        workers = evaluators(self.config.cluster)
        options = {
            "num_cpus": workers.resources["CPU"],
            "num_gpus": workers.resources.get("GPU", 0),
            "max_concurrency": IN_FLIGHT,
            "concurrency_groups": {"asked": 1},
            "max_restarts": RESTARTS,
            "max_task_retries": -1,  # as long as it is started again: one death may fail a task more than once
        }
        kind = ray.remote(**options)(Actor)
        while len(self.started) < min(workers.num_workers, tasks):
            self.started.append(kind.remote())
        return self.started
