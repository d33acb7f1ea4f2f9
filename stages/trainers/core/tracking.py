"""Trackers that follow a training of the pipeline, in a folder that is no output of it.

Event files hold clocks and host names, so they stay outside the artifacts, which are the same bytes in every run.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from transformers import TrainerCallback

Tracker = Literal["tensorboard", "dvclive"]


def tracking_folder(scratch: Path) -> Path:
    """Where the trackers of a run write: `.cache/tracking/<stage>/<fingerprint of its inputs>`."""
    return Path(os.environ.get("PLUMBLINE_CACHE", ".cache")) / "tracking" / scratch.parent.name / scratch.name


def tracker_callbacks(trackers: Sequence[Tracker], folder: Path) -> list[TrainerCallback]:
    """Callbacks that write the log of a training below `folder`, one folder for each tracker.

    A run that goes on after a kill goes on in its folder.
    """
    return [_CALLBACKS[tracker](folder / tracker) for tracker in trackers]


def _tensorboard(folder: Path) -> TrainerCallback:
    # Trackers are slow to import, and few runs have one.
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations.integration_utils import TensorBoardCallback

    return TensorBoardCallback(SummaryWriter(log_dir=str(folder)))  # type: ignore[no-untyped-call] # transformers


def _dvclive(folder: Path) -> TrainerCallback:
    from dvclive.live import Live
    from transformers.integrations.integration_utils import DVCLiveCallback

    # Inside `dvc repro` the experiment and dvc.yaml are DVC's own business.
    live = Live(str(folder), resume=folder.is_dir(), save_dvc_exp=False, dvcyaml=None, monitor_system=False)
    return DVCLiveCallback(live=live)


_CALLBACKS = {"tensorboard": _tensorboard, "dvclive": _dvclive}
