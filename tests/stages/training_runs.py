"""What tests of training stages share: a tiny base model, and a process to be killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from stages.contracts.closure import ROOT
from stages.contracts.files import files_below, tree_digest
from stages.contracts.stage import EXIT_STOPPED, StageFailure
from stages.contracts.training_rows import Kind
from stages.models.pointer import ModelPointer, fingerprint, tokenizer_fingerprint, write_pointer
from stages.training_rows import RowsParams
from stages.training_rows import run as write_training_rows
from tests.trainers.tiny import tiny_llama, tiny_tokenizer

_SCRIPT = """
import importlib, json, sys
from pathlib import Path
stage = importlib.import_module(sys.argv[1])
module, _, section = sys.argv[2].partition(":")
call = {name: value if name == "method" else Path(value) for name, value in json.loads(sys.argv[3]).items()}
stage.run(**call, params=getattr(importlib.import_module(module), section)(**json.loads(sys.argv[4])))
"""


def write_base_model(folder: Path) -> Path:
    """An artifact `base_model` that holds `tiny_llama` and `tiny_tokenizer`."""
    tiny_llama(dropout=0.1).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    pointer = ModelPointer(
        source="scratch",
        fingerprint=fingerprint(folder),
        tokenizer_fingerprint=tokenizer_fingerprint(folder),
        pad_token="<pad>",
        pad_token_is_eos=False,
    )
    write_pointer(folder, pointer)
    return folder


def rows_of(kind: Kind, rows: Path, *, params: RowsParams | None = None, **artifacts: Path) -> Path:
    """The artifact `training_rows` of those artifacts, as the stage writes it."""
    write_training_rows(kind=kind, **artifacts, rows=rows, params=params)
    return rows


def outputs(folder: Path) -> dict[str, Path]:
    """Arguments of a training stage that write."""
    scratch = folder / "checkpoints" / "training-of-a-test" / "key"
    scratch.mkdir(parents=True, exist_ok=True)
    return {
        "model": folder / "model",
        "metrics": folder / "metrics.json",
        "plots": folder / "curves.csv",
        "scratch": scratch,
    }


def digests(folder: Path) -> dict[str, str]:
    """Digest of each file that was written."""
    # The lineage names the base by a path relative to the model, and these folders stand in different places.
    written = outputs(folder)
    model = {file.name: tree_digest(file) for file in files_below(written["model"]) if file.name != "plumbline.json"}
    return {**model, **{name: tree_digest(written[name]) for name in ("metrics", "plots")}}


def start(stage: str, section: str, call: Mapping[str, Any], params: Mapping[str, Any]) -> "subprocess.Popen[bytes]":
    """Start a stage in a process of its own.

    Args:
        stage: module of the stage.
        section: the class of its section, as "module:class".
        call: arguments of its `run` besides `params`.
        params: what stands in the section.
    """
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            _SCRIPT,
            stage,
            section,
            json.dumps({name: str(value) for name, value in call.items()}),
            json.dumps(params),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def told_to_stop(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, *, call: int, then: Callable[[], None]
) -> str:
    """Run `then`, sending this process SIGTERM in the `call`-th call of a method; gives what the stage says of it."""
    method, calls = getattr(owner, name), []

    def watched(*arguments: Any, **named: Any) -> Any:
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return method(*arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(StageFailure) as stopped:
        patch.setattr(owner, name, watched)
        then()
    assert stopped.value.status == EXIT_STOPPED
    return str(stopped.value)


def kill_when(written: Path, stage: str, section: str, call: Mapping[str, Any], params: Mapping[str, Any]) -> int:
    """Run a stage as `start` does, kill it with signal 9 as soon as `written` exists, and give its status."""
    process = start(stage, section, call, params)
    while not written.exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    return process.wait()
