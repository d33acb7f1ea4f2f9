"""Runs a module so that it dies with the process that started it: `python -m pipelines.leash PARENT MODULE ARGUMENTS`.

PARENT is that process's id: the kernel kills this process when its parent dies, and if it died before the kernel was
asked, this process ends by itself. A stage does the same when its `dvc` dies, so a flow that is killed
leaves nothing behind that goes on writing.
"""

import runpy
import signal
import sys

from stages.contracts.stage import die_with_parent

if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    # Children of a shell's background jobs are born deaf to it, and dvc tidies its locks on an interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
