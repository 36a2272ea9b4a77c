"""The same work on Ray: one actor a worker, each with a model of its own, that take jobs from a queue.

Ray starts the actors, places them, gives them their processors and carries the events back. Ray is imported here and
nowhere else, and only when it is asked for.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from speech_xl.batch.plan import Job
from speech_xl.batch.settings import Settings
from speech_xl.batch.work import Done, Event, work
from speech_xl.errors import BackendError, MissingPackageError, SpeechXLError


@dataclass(frozen=True)
class Cluster:
    """Which Ray, and how much of it. `address` "": the one that RAY_ADDRESS names, else one of this machine's own."""

    address: str
    workers: int | None  # None: as many as there are GPUs or processors for
    gpus: float  # of each worker

    @property
    def place(self) -> str:
        """The address to connect to; "local" starts one here."""
        return self.address or os.environ.get("RAY_ADDRESS") or "local"


class Worker:
    """An actor."""

    def work(self, settings: Settings, queue: Any, at_once: int) -> Iterator[Event]:
        """Jobs from the queue, until it is empty."""
        from ray.util.queue import Empty

        def jobs() -> Iterator[Job]:
            while True:
                try:
                    yield queue.get_nowait()
                except Empty:
                    return

        yield from work(settings.load_model(), settings, jobs(), at_once)


def work_on_ray(
    settings: Settings, jobs: Sequence[Job], at_once: int, cluster: Cluster
) -> Generator[Event, None, None]:
    """Events of all workers as they come. BackendError where Ray cannot be reached, or workers end before the work."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry; read when Ray is imported
    try:
        import ray
        from ray.util.queue import Queue
    except ModuleNotFoundError as error:
        raise MissingPackageError.of("--ray", error.name, "ray") from error
    start(ray, cluster)
    try:
        count = count_workers(ray.cluster_resources(), cluster, len(jobs))
        queue = Queue(actor_options={"num_cpus": 0})
        queue.put_nowait_batch(list(jobs))
        each = min(at_once, -(-len(jobs) // count))  # so that none takes what another would be free for
        make = ray.remote(Worker).options(num_cpus=1, num_gpus=cluster.gpus)
        actors = [make.remote() for _ in range(count)]
        streams = [actor.work.options(num_returns="streaming").remote(settings, queue, each) for actor in actors]
        yield from events_of(ray, streams, len(jobs))
    finally:
        ray.shutdown()


def events_of(ray: Any, streams: list[Any], left: int) -> Iterator[Event]:
    """What comes from the workers' streams until `left` jobs are done; a worker that dies takes its jobs along."""
    reason = ""
    while streams and left:
        (stream,), streams = ray.wait(streams, num_returns=1)
        try:
            event = ray.get(next(stream))
        except StopIteration:
            continue
        except ray.exceptions.RayActorError as error:  # a machine is gone, or its memory was full
            reason = str(error).partition("\n")[0]
            continue
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, SpeechXLError) else error) from None
        streams.append(stream)  # behind the others: each has its turn
        left -= isinstance(event, Done)
        yield event
    if left:
        raise BackendError(f"Ray workers ended early ({reason}); what is done is kept, run the same command again.")


def start(ray: Any, cluster: Cluster) -> None:
    """Connect to a Ray, or start one on this machine."""
    own: dict[str, Any] = {}
    if cluster.place == "local":
        own["include_dashboard"] = False
        own["num_cpus"] = max(os.cpu_count() or 1, cluster.workers or 1)
        # Its workers import what this process does, installed or not.
        own["runtime_env"] = {"env_vars": {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}}
    try:
        ray.init(address=cluster.place, logging_level=logging.ERROR, log_to_driver=False, **own)
    except Exception as error:  # Ray raises no narrower one when it does not start
        reason = str(error).partition("\n")[0]
        if own:
            raise BackendError(
                f"Ray does not start here ({reason}); run the same command again, or leave out --ray."
            ) from error
        raise BackendError(
            f"No Ray answers at {cluster.place} ({reason}); start one with `ray start --head`, or correct the address."
        ) from error


def count_workers(resources: dict[str, float], cluster: Cluster, jobs: int) -> int:
    """How many actors to start; BackendError if not one fits."""
    room = int(resources.get("CPU", 0))
    if cluster.gpus:
        room = min(room, int(resources.get("GPU", 0) / cluster.gpus))
    if room < 1:
        raise BackendError(
            f"This Ray has {resources.get('CPU', 0):g} processors and {resources.get('GPU', 0):g} GPUs, too few for one "
            "worker; add a machine, or lower --num-gpus."
        )
    return min(room, jobs, cluster.workers or room)
