"""Units as tasks of Ray actors: `--engine ray`. The only place that knows Ray.

Ray places the actors on the nodes of its cluster, one for each GPU, or for each node, and restarts
those that die. This process plans, hands out units, and publishes, as it does without Ray; parts
appear in the staging directory, which all nodes must see under the same path.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from importlib import metadata
from math import ceil
from pathlib import Path
from typing import Any

from embedcli import __version__, encoder
from embedcli.errors import ConfigurationError, DeviceError, EmbedcliError
from embedcli.run import plan_file
from embedcli.run.job import ProgressListener
from embedcli.run.loading import load_model
from embedcli.run.planning import RunPlan
from embedcli.run.steps import UnitSteps
from embedcli.store import staging
from embedcli.store.claims import ClaimBoard, StallDetector
from embedcli.store.staging import Staging

_TICK_SECONDS = 0.2
# No actor after so long: the cluster may have no room for any.
_PATIENCE_SECONDS = 30.0
# Units that an actor has at a time: while one is encoded, the next is read or the last is written.
_AT_A_TIME = 2
# An actor that dies so often without finishing a unit is given up.
_MAX_DEATHS = 5
_PREFIX = "ray://"
# A cluster that there isn't would be waited for for minutes.
_CONNECT_SECONDS = 5.0
_END_SECONDS = 5.0
_Task = futures.Future[Any]


class UnitActor:
    """A process on some node of the cluster: has the plan and the model, and does units."""

    def __init__(self, folder: str, plan: str, name: str, device: str) -> None:
        self._folder, self._plan_name = Path(folder), plan
        self._name, self._device = name, device
        self._model: encoder.Encoder | None = None
        # Units are done by threads, which take turns at reading, as files stay open, and encoding.
        self._reading, self._encoding = threading.Lock(), threading.Lock()

    def begin(self, version: str) -> None:
        """Open the plan of a run, on this node.

        Raises ConfigurationError where the node doesn't see it, or has another embedcli.
        """
        node = f"node {os.uname().nodename}"
        if version != __version__:
            raise ConfigurationError(
                f"{node} has embedcli {__version__}, this machine {version}", "install the same"
            )
        self._stage = _open_stage(self._folder, self._name, node)
        plan = plan_file.read(self._stage, self._stage.path / self._plan_name)
        if plan is None:
            raise ConfigurationError(f"{self._folder}: {node} doesn't see the plan", _SHARED)
        self._plan = plan
        self._steps = UnitSteps(plan)
        self._board = ClaimBoard(self._stage, self._name, (), plan.job.run.watchdog, self._name)

    def do(self, unit: int) -> dict[str, Any]:
        """Do a unit; return its result as JSON's values. Raises what its steps raise."""
        with self._reading:
            state = self._steps.read(unit)
        failed: dict[int, str] = {}
        with self._encoding:
            rows = self._plan.corpus.units[unit].rows
            self._board.beat(stage="encoding", device=self._device, unit=unit, rows=0, of=rows)
            if len(state.missing):
                failed = self._steps.encode(state, self._load(), self._board.advance)
        return self._steps.finish(state, failed).to_json()

    def _load(self) -> encoder.Encoder:
        if self._model is None:
            self._model = load_model(self._plan.job, self._stage, self._device)
        return self._model


_SHARED = "all nodes must see the input and the output's folder under the same paths"


def _open_stage(folder: Path, name: str, node: str) -> Staging:
    """Open the staging directory of a run on this node. Raises ConfigurationError where it isn't
    there, or somebody else's.
    """
    if not staging.is_marked(folder):
        raise ConfigurationError(f"{folder}: {node} doesn't see it", _SHARED)
    if folder.stat().st_uid != os.geteuid():
        raise ConfigurationError(
            f"{folder}: belongs to another user than Ray's on {node}",
            "Ray must run as the user who runs embedcli",
        )
    stage = Staging(folder, None, name, name=folder)
    stage.temporary.mkdir(mode=0o700, exist_ok=True)
    return stage


@dataclass
class _Place:
    """An actor's place: Ray restarts the process in it.

    units: those it is at. is_ready: has it begun? deaths: how often in a row it died without
    finishing a unit.
    """

    number: int
    name: str
    actor: Any
    detector: StallDetector
    units: set[int] = field(default_factory=set)
    is_ready: bool = False
    deaths: int = 0

    @property
    def is_given_up(self) -> bool:
        return self.deaths >= _MAX_DEATHS


@dataclass
class RayEngine:
    """The actors of a run. `on_tick` is called again and again while they work."""

    plan: RunPlan
    board: ClaimBoard
    listener: ProgressListener
    on_tick: Callable[[], None]
    restarts: int = 0
    actors: int = 0
    # By task the place whose actor does it, and the unit; None: the actor begins.
    _tasks: dict[_Task, tuple[_Place, int | None]] = field(default_factory=dict)

    def run(self) -> None:
        """Have all units done, but those that kill.

        Raises DeviceError where all actors fail repeatedly, and what an actor raises.
        """
        self.listener.stage("connecting with Ray")
        with connected(self.plan.job.run.engine) as ray:
            places = self._places(ray)
            self.actors = len(places)
            try:
                self._work(ray, places)
            finally:
                for place in places:
                    ray.kill(place.actor)
                    for unit in place.units:
                        self.board.forget_attempt(unit)
                # Their ends are told by Ray's own threads, which may not outlive the connection.
                futures.wait(self._tasks, _END_SECONDS)

    def _places(self, ray: Any) -> list[_Place]:
        stage, job = self.plan.stage, self.plan.job
        needs_torch = encoder.backend_of(job.spec).needs_torch
        undone = len(self.plan.units) - len(self.board.results)
        devices, resources = _resources(ray, job.run.num_processes, job.run.device, needs_torch)
        # Ray starts a process anew that dies; its units are handed out again by this one.
        remote = ray.remote(
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=_AT_A_TIME + 1,
            scheduling_strategy="SPREAD",
            **resources,
        )(UnitActor)
        places = []
        for number, device in enumerate(devices[: max(1, undone)]):
            name = f"{stage.token}-ray-{number}"
            actor = remote.remote(str(stage.name), stage.temporary.name, name, device)
            places.append(_Place(number, name, actor, StallDetector(job.run.watchdog)))
        return places

    def _work(self, ray: Any, places: Sequence[_Place]) -> None:
        """Hand out units to whoever has room, until all are done."""
        self.listener.stage("waiting for Ray's actors")
        started, is_told = time.monotonic(), False
        tasks = self._tasks
        tasks.update((self._begin(place), (place, None)) for place in places)
        while any(place.units for place in places) or not self.board.is_through:
            for task in _wait(tasks):
                place, unit = tasks.pop(task)
                self._take(ray, task, place, unit)
                if not (place.is_ready or place.units or place.is_given_up):
                    tasks[self._begin(place)] = (place, None)
            for place in places:
                tasks.update(self._hand_out(place))
                self._check_progress(ray, place)
            if all(place.is_given_up for place in places):
                raise DeviceError("all Ray actors died repeatedly", "Ray's logs tell why")
            if not is_told and not self.restarts and not any(place.is_ready for place in places):
                is_told = time.monotonic() - started > _PATIENCE_SECONDS
                if is_told:
                    self.listener.warn("Ray has started no actor yet: `ray status` tells why")
            self.on_tick()

    def _begin(self, place: _Place) -> _Task:
        # Ray tries it again while it starts the process anew.
        begin = place.actor.begin.options(max_task_retries=_MAX_DEATHS)
        return _future(begin.remote(__version__))

    def _hand_out(self, place: _Place) -> Iterator[tuple[_Task, tuple[_Place, int]]]:
        """Give units to an actor that has room for them."""
        while place.is_ready and len(place.units) < (_AT_A_TIME if self.board.has_plenty else 1):
            unit = self.board.next_unit()
            if unit is None and not place.units and self.board.take_over():
                unit = self.board.next_unit()
            if unit is None:
                return
            self.board.begin(unit)
            place.units.add(unit)
            yield _future(place.actor.do.remote(unit)), (place, unit)

    def _take(self, ray: Any, task: _Task, place: _Place, unit: int | None) -> None:
        """Take what became of a task. Raises what the task raised."""
        try:
            result = task.result()
        except ray.exceptions.RayActorError as error:
            self._on_death(place, unit, error)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, EmbedcliError | OSError) else error from None
        else:
            if unit is None:
                self.listener.stage("encoding")
                place.is_ready = True
            else:
                place.deaths = 0
                place.units.discard(unit)
                self.board.finish(unit, result)

    def _on_death(self, place: _Place, unit: int | None, error: Exception) -> None:
        """Account for an actor that died; called for each of its units."""
        if place.is_ready or unit is None:
            place.is_ready = False
            place.deaths += 1
            self.restarts += 1
            reason = " ".join(str(error).split())[:200]
            self.listener.warn(f"Ray actor {place.number} died, and is started again: {reason}")
        if unit is not None:
            place.units.discard(unit)
            heartbeat = self.board.heartbeat(place.name)
            if heartbeat is None or heartbeat.unit != unit:
                self.board.forget_attempt(unit)  # it was at another one
            self.board.give_back()

    def _check_progress(self, ray: Any, place: _Place) -> None:
        """End the process of an actor that shows no progress; it then counts as one that died."""
        heartbeat = self.board.heartbeat(place.name)
        moves = heartbeat.moves if heartbeat is not None else -1
        if place.detector.is_stalled(moves) and place.units:
            ray.kill(place.actor, no_restart=False)
            place.detector = StallDetector(self.plan.job.run.watchdog)


def _future(task: Any) -> _Task:
    """Return the future of a task: waiting for it, unlike Ray's own `wait`, can be interrupted."""
    future: _Task = task.future()
    return future


def _wait(tasks: Collection[_Task]) -> Collection[_Task]:
    """Wait a moment for a task to end; return those that have."""
    done, _ = futures.wait(tasks, _TICK_SECONDS, futures.FIRST_COMPLETED)
    if not tasks:
        time.sleep(_TICK_SECONDS)
    return done


def _resources(
    ray: Any, count: int | None, device: str, needs_torch: bool
) -> tuple[list[str], Mapping[str, Any]]:
    """Return the device of each actor, and what each takes of the cluster: a GPU or its share of one,
    or its share of the cores.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes)) if needs_torch and device != "cpu" else 0
    if device.startswith("cuda") and not gpus:
        raise DeviceError(f"--device {device}: the Ray cluster has no GPU", "--device cpu")
    if gpus:
        actors = count or gpus
        return ["cuda:0"] * actors, {"num_gpus": 1 / ceil(actors / gpus)}
    actors, cores = share_cores([int(node.get("CPU", 0)) for node in nodes], count)
    environment = {"env_vars": {"OMP_NUM_THREADS": str(cores), "RAYON_NUM_THREADS": str(cores)}}
    return ["cpu"] * actors, {"num_cpus": cores, "runtime_env": environment}


def share_cores(nodes: Sequence[int], count: int | None) -> tuple[int, int]:
    """Return how many actors there are, and the cores of each, on nodes of so many cores: `count`
    actors that fit, with as many cores as they can have; None: one for the smallest node, and as many
    on the others as fit.
    """
    sizes = [cores for cores in nodes if cores] or [1]
    if count is None:
        cores = min(sizes)
        return sum(size // cores for size in sizes), cores
    fitting = [
        cores for cores in range(1, max(sizes) + 1) if sum(size // cores for size in sizes) >= count
    ]
    return count, max(fitting, default=1)


@contextlib.contextmanager
def connected(engine: str) -> Iterator[Any]:
    """Connect with a Ray cluster: the one named `ray://HOST:PORT`, else that of RAY_ADDRESS, else one
    that is started on this machine, and ended with the block.

    Raises ConfigurationError where Ray isn't installed, or there is no such cluster.
    """
    check_installed()
    named = engine.removeprefix(_PREFIX) if engine != "ray" else os.environ.get("RAY_ADDRESS", "")
    # Ray's new behaviour, which it announces by a warning where nothing is set.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    # Ray's processes on this machine end with the thread that starts them.
    thread = futures.ThreadPoolExecutor(1, "ray")
    try:
        _check_address(named)
        # Unasked, Ray would take a cluster of somebody else's, which may end before the run does.
        connecting = thread.submit(
            ray.init,
            address=named or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=None if named else False,
        )
        _keep_signals(connecting)
        connecting.result()
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigurationError(
            f"--engine {engine}: no Ray cluster can be reached: {reason}",
            "`ray start --head` starts one and says its address; this machine must be one of its nodes",
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()
        thread.shutdown(wait=False)


def _keep_signals(task: _Task) -> None:
    """Wait for a task, whose C++ has SIGTERM abort the process, and set our handler again and again.

    In the second in which that C++ keeps the interpreter waiting, SIGTERM still aborts; nothing is lost.
    """
    handler = signal.getsignal(signal.SIGTERM)
    while not task.done():
        futures.wait([task], _TICK_SECONDS / 10)
        signal.signal(signal.SIGTERM, handler)


def _check_address(address: str) -> None:
    """See that somebody answers at HOST:PORT. Raises OSError, ValueError."""
    host, colon, port = address.rpartition(":")
    if colon and "//" not in address:
        with socket.create_connection((host, int(port)), _CONNECT_SECONDS):
            pass


def check_installed() -> None:
    """See that Ray is installed. Raises ConfigurationError."""
    try:
        metadata.version("ray")
    except metadata.PackageNotFoundError:
        raise ConfigurationError(
            "--engine ray: Ray isn't installed", "pip install 'embedcli[ray]'"
        ) from None
