"""One run at a time writes an output: another by hand would sweep away what the first has half written."""

import errno
import fcntl
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_CANNOT_LOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def outputs_alone(outputs: Iterable[Path]) -> Iterator[None]:
    """Have `outputs` for this process alone; wait for another that writes one, and say for which.

    The kernel gives a lock back when its holder dies, however it dies. On a file system without locks nothing is held,
    which is said.

    Args:
        outputs: files or folders to write.
    """
    folder = Path(os.environ.get("PLUMBLINE_CACHE", ".cache"), "locks")
    with ExitStack() as held:
        # In one order, so that no two wait for each other.
        for path in sorted({output.resolve() for output in outputs}):
            held.enter_context(_lock(folder / hashlib.sha256(str(path).encode()).hexdigest()[:16], path))
        yield


@contextmanager
def _lock(file: Path, output: Path) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+", encoding="utf-8") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            opened.seek(0)
            _say(f"waiting for process {opened.read() or 'unknown'}, which writes {output}")
            fcntl.flock(opened, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _CANNOT_LOCK:
                raise
            _say(f"{file.parent} is on a file system without locks; see that nothing else writes {output}")
        opened.truncate(0)
        opened.write(str(os.getpid()))
        opened.flush()
        yield


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
