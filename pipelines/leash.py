"""Runs `dvc` so that it dies with the process that started it: `python -m pipelines.leash ARGUMENTS OF DVC`.

The kernel kills this process when its parent dies, and a stage that `dvc` started dies with it; so a flow that is
killed leaves nothing behind that goes on writing.
"""

import runpy
import signal
import sys

from stages.contracts.stage import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    # Children of a shell's background jobs are born deaf to it, and dvc tidies its locks on an interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv[0] = "dvc"
    runpy.run_module("dvc", run_name="__main__")
