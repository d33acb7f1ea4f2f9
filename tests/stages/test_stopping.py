"""A training that is asked to end writes a checkpoint behind its step, and goes on from it to the same bytes."""

import os
import signal
import subprocess
import sys
import time

import pytest

from stages.contracts import stopping
from stages.contracts.closure import ROOT
from stages.contracts.stage import EXIT_INTERRUPTED, EXIT_STOPPED, StageFailure


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, EXIT_STOPPED), (signal.SIGINT, EXIT_INTERRUPTED)], ids=str
)
def test_a_signal_is_noted_and_told_with_its_status(number, status, capfd):
    with stopping.stopping_between_steps():
        os.kill(os.getpid(), number)
        asked = stopping.is_asked_to_stop()
        with pytest.raises(StageFailure, match="behind step 3, whose checkpoint is kept") as failure:
            stopping.leave("step 3")

    assert asked
    assert failure.value.status == status
    assert "stopping behind the step at hand" in capfd.readouterr().err
    assert not stopping.is_asked_to_stop()


def test_a_second_interrupt_ends_at_once():
    with pytest.raises(KeyboardInterrupt), stopping.stopping_between_steps():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_the_handlers_are_as_before_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with stopping.stopping_between_steps():
        pass

    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert not stopping.is_watching()


def test_a_step_that_hangs_does_not_outlive_the_grace():
    script = (
        "import os, signal, time\n"
        "from stages.contracts import stopping\n"
        "stopping.GRACE_S = 0.2\n"
        "with stopping.stopping_between_steps():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )

    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=30, check=False)

    assert found.returncode == -signal.SIGKILL
