"""Where results per row are computed: in this process, in several on this machine, or on a Ray cluster.

PLUMBLINE_ENGINE says which (`inline`, `processes` or `ray`), never params: a row's result follows from the row alone,
and results are put together in the order of the rows, so every engine gives the same bytes. PLUMBLINE_PROCESSES is the
number of workers, by default one per processor. OMP_NUM_THREADS, the threads of each worker, is best set to what share
of the processors each has.
"""

import logging
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa

from stages.contracts.closure import ROOT
from stages.contracts.extras import missing_extra
from stages.contracts.stage import StageFailure, die_with_parent

Engine = Literal["inline", "processes", "ray"]
RowFunction = Callable[[pa.Table], pa.Table]
"""Gives one result per row, in order. For engines other than `inline` it is pickled, so it should load what it needs,
such as a model, when it is first called; a frozen dataclass with a `cached_property` does."""

# Pieces that wait for each worker, so that none is idle between two of them.
_QUEUED = 2
_ERROR = "error of a row function"


def num_processors() -> int:
    """Processors that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_processes() -> int:
    """Workers to share work among: PLUMBLINE_PROCESSES, by default one per processor.

    Raises:
        ValueError: the variable holds something else than a positive number.
    """
    text = os.environ.get("PLUMBLINE_PROCESSES", str(num_processors()))
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"expected PLUMBLINE_PROCESSES as a positive number, found {text!r}")
    return int(text)


def chosen_engine(num_rows: int, *, rows_worth_processes: int | None = None) -> Engine:
    """The engine that PLUMBLINE_ENGINE names; without it `processes` where there is enough to do, else `inline`.

    Args:
        num_rows: rows to compute.
        rows_worth_processes: how many are worth starting processes for. None never does so unasked.

    Raises:
        ValueError: the variable names no engine.
    """
    name = os.environ.get("PLUMBLINE_ENGINE", "")
    for engine in get_args(Engine):
        if name == engine:
            found: Engine = engine
            return found
    if name:
        raise ValueError(f"expected PLUMBLINE_ENGINE as one of {', '.join(get_args(Engine))}, found {name!r}")
    is_worth_it = rows_worth_processes is not None and num_rows >= rows_worth_processes and num_processes() > 1
    return "processes" if is_worth_it else "inline"


def run_missing(rows: Iterable[pa.Table], fn: RowFunction, *, engine: Engine = "inline") -> Iterator[pa.Table]:
    """Results of rows, in their order, as soon as they are there.

    Args:
        rows: the rows in pieces; each is handed to one call of `fn`.
        fn: computes them.
        engine: where.

    Yields:
        Results of one or several pieces.

    Raises:
        ValueError: `fn` raised one, or the engine isn't installed.
        StageFailure: a worker of `processes` was killed. Ray starts workers again, for as long as they are killed.
    """
    return {"inline": _inline, "processes": _in_processes, "ray": _on_ray}[engine](rows, fn)


def _inline(rows: Iterable[pa.Table], fn: RowFunction) -> Iterator[pa.Table]:
    return map(fn, rows)


# ---- processes of this machine ----

_worker: dict[str, RowFunction] = {}


def _in_processes(rows: Iterable[pa.Table], fn: RowFunction) -> Iterator[pa.Table]:
    number = num_processes()
    # Threads of tokenizers and of torch don't survive a fork.
    context = get_context("spawn")
    places = context.SimpleQueue()
    for place in range(number):
        places.put(place)
    pool = ProcessPoolExecutor(
        number, mp_context=context, initializer=_start_worker, initargs=(fn, places, os.getpid())
    )
    waiting: deque[Future[pa.Table]] = deque()
    try:
        for piece in rows:
            waiting.append(pool.submit(_compute_in_worker, piece))
            if len(waiting) >= _QUEUED * number:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise StageFailure(
            f"one of {number} workers was killed, probably for lack of memory; set PLUMBLINE_PROCESSES to fewer"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(fn: RowFunction, places: Any, parent: int) -> None:
    die_with_parent(parent)
    # The processes already share out the processors.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    devices = [name for name in os.environ.get("PLUMBLINE_WORKER_DEVICES", "").split(",") if name]
    if devices:
        os.environ["PLUMBLINE_DEVICE"] = devices[places.get() % len(devices)]
    _worker["fn"] = fn


def _compute_in_worker(piece: pa.Table) -> pa.Table:
    return _worker["fn"](piece)


# ---- Ray ----


class _RayWorker:
    """Calls a function on blocks of rows, in an actor of Ray that stands in the folder that the stage runs in."""

    def __init__(self, fn: RowFunction, folder: str) -> None:
        os.chdir(folder)
        self.fn = fn

    def __call__(self, piece: pa.Table) -> pa.Table:
        try:
            return self.fn(piece)
        except ValueError as error:
            # Ray drops what it wraps; this reaches the other side as it is.
            return pa.table({_ERROR: [str(error)]})


def _on_ray(rows: Iterable[pa.Table], fn: RowFunction) -> Iterator[pa.Table]:
    number = num_processes()
    pieces = iter(rows)
    first = next(pieces, None)
    if first is None:
        return
    ray = _joined_ray(number)
    with warnings.catch_warnings():
        # Ray warns of settings that it makes itself.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    accelerators = int(ray.cluster_resources().get("GPU", 0))
    waiting = [ray.put(piece) for piece in chain([first], pieces)]
    results = ray.data.from_arrow_refs(waiting).map_batches(
        _RayWorker,
        fn_constructor_args=(fn, str(Path.cwd())),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(size=min(accelerators or number, len(waiting))),
        num_gpus=1 if accelerators else None,
    )
    for found in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        if _ERROR in found.column_names:
            raise ValueError(found[_ERROR][0].as_py())
        yield found


def _joined_ray(number: int) -> Any:
    """Ray, in the cluster that RAY_ADDRESS names, or in one on this machine that ends with this process."""
    # Nothing reports home, and Ray leaves alone which devices a worker without one sees.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray = import_module("ray")
        import_module("ray.data")
    except ModuleNotFoundError as error:
        raise missing_extra(error, extra="ray", purpose="PLUMBLINE_ENGINE=ray") from None
    if not ray.is_initialized():
        # Ray would otherwise give each worker one thread, and so perhaps other bits than this process.
        threads = os.environ.get("OMP_NUM_THREADS", str(num_processors()))
        modules = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        variables = {"PYTHONPATH": modules, "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
        local = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": number, "include_dashboard": False}
        ray.init(runtime_env={"env_vars": variables}, logging_level=logging.ERROR, log_to_driver=False, **local)
    return ray
