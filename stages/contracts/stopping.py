"""Ends a training between two steps when it is asked to, by a cluster that takes the machine back or by Ctrl-C.

What stands in a process that is ended at once is lost up to the last checkpoint. So while a training is under way, the
signals are only noted; the trainer looks after each step, writes a checkpoint and leaves.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from stages.contracts.stage import EXIT_INTERRUPTED, EXIT_STOPPED, StageFailure

_SET_DEATH_SIGNAL, _GET_DEATH_SIGNAL = 1, 2  # PR_SET_PDEATHSIG and its counterpart
GRACE_S = 600.0
"""Seconds that a step and its checkpoint may take; a step that hangs would outlive everybody."""
_noted: list[int] = []
_deadlines: list[threading.Timer] = []
_watches = 0


@contextmanager
def stopping_between_steps() -> Iterator[None]:
    """Note SIGTERM and SIGINT instead of ending on them; a second SIGINT ends at once.

    The death of the `dvc` that waits for the stage counts as SIGTERM meanwhile. In a thread other than the main one,
    which can't take signals, nothing changes.
    """
    global _watches  # noqa: PLW0603 - signals are of the whole process
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _note) for number in (signal.SIGTERM, signal.SIGINT)}
    dies_with_parent = _exchange_death_signal(signal.SIGKILL, signal.SIGTERM)
    _watches += 1
    try:
        yield
    finally:
        _watches -= 1
        if dies_with_parent:
            _exchange_death_signal(signal.SIGTERM, signal.SIGKILL)
        for number, handler in before.items():
            signal.signal(number, handler)
        for deadline in _deadlines:
            deadline.cancel()
        _noted.clear()
        _deadlines.clear()


def is_watching() -> bool:
    """Whether signals are noted."""
    return _watches > 0


def is_asked_to_stop() -> bool:
    """Whether one was noted in this process."""
    return bool(_noted)


def leave(what: str) -> NoReturn:
    """End the stage; what stands in its checkpoint is written.

    Args:
        what: what was done, such as "step 12".

    Raises:
        StageFailure: always, with the status that says that the same command goes on.
    """
    name = signal.Signals(_noted[0]).name if _noted else "another process of this training"
    status = EXIT_INTERRUPTED if signal.SIGINT in _noted else EXIT_STOPPED
    raise StageFailure(
        f"stopped by {name} behind {what}, whose checkpoint is kept; the same command goes on from there", status=status
    )


def _note(number: int, _frame: Any) -> None:
    if number == signal.SIGINT and signal.SIGINT in _noted:
        raise KeyboardInterrupt
    if not _noted:
        deadline = threading.Timer(GRACE_S, os.kill, (os.getpid(), signal.SIGKILL))
        deadline.daemon = True
        deadline.start()
        _deadlines.append(deadline)
    _noted.append(number)
    with suppress(OSError):  # nobody may be left to read it
        os.write(2, f"\n{signal.Signals(number).name}: stopping behind the step at hand\n".encode())


def _exchange_death_signal(old: int, new: int) -> bool:
    """Have the kernel send `new` where it would send `old` when this process's parent dies; whether it would have."""
    if not sys.platform.startswith("linux"):
        return False
    found, kernel = ctypes.c_int(), ctypes.CDLL(None)
    kernel.prctl(_GET_DEATH_SIGNAL, ctypes.byref(found))
    if found.value != old:
        return False
    kernel.prctl(_SET_DEATH_SIGNAL, new)
    return True
