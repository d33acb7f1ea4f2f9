"""Looks at what a run needs before it is needed: environment, server, devices, disk, model and data."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NamedTuple

from dvc.exceptions import DvcException

from pipelines.checks import graph_problems
from pipelines.graph import read_graph, recorded_stages
from pipelines.leftovers import choice_problems, pointer_of
from pipelines.params import load_params
from pipelines.servers import find_server, openings
from stages.contracts.engines import num_processors

LOCKED = Path("requirements.lock")
MIN_FREE_BYTES = 2 * 10**9


class Finding(NamedTuple):
    """One thing looked at."""

    what: str
    verdict: Literal["ok", "note", "FAIL"]
    """FAIL if a run would fail or be unsafe, note if somebody should know."""
    text: str


def examine() -> list[Finding]:
    """Everything that was found, in the order of looking."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        _environment,
        _merges,
        _graph,
        _choices,
        _server,
        _devices,
        _disk,
        _model,
        _data,
    ]
    return [finding for check in checks for finding in _outcome(check)]


def _outcome(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """What a check found; that it could not be made, where what it looks at can't be read."""
    try:
        return list(check())
    except (ValueError, DvcException) as error:
        return [Finding(check.__name__.strip("_"), "FAIL", f"not looked at: {' '.join(str(error).split())}")]


def findings_text(findings: list[Finding]) -> str:
    """A line per finding."""
    return "\n".join(f"{finding.verdict:<5} {finding.what:<12} {finding.text}" for finding in findings)


def _environment() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{sys.version.split()[0]} in {sys.prefix}")
    for command in ("git", "dvc"):
        if shutil.which(command) is None:
            yield Finding(command, "FAIL", "not on PATH; activate the environment: source .venv/bin/activate")
    differing = []
    for line in LOCKED.read_text(encoding="utf-8").splitlines() if LOCKED.is_file() else []:
        name, _, locked = line.partition("==")
        if line.startswith("#") or not locked:
            continue
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "none"
        if found.partition("+")[0] != locked:
            differing.append(f"{name} {found} for {locked}")
    if differing:
        yield Finding("packages", "note", f"not as in {LOCKED}: {', '.join(differing)}; `make setup` installs it")
    else:
        yield Finding("packages", "ok", f"as in {LOCKED}")


def _merges() -> Iterator[Finding]:
    if not Path(".gitattributes").is_file() or shutil.which("git") is None:
        return
    if subprocess.run(["git", "config", "merge.ours.driver"], capture_output=True, check=False).returncode:
        text = "branches that both ran will conflict in dvc.lock; `make setup` sets up their merge"
        yield Finding("merges", "note", text)


def _graph() -> Iterator[Finding]:
    params = load_params()
    nodes = read_graph()
    problems = graph_problems(nodes, params)
    yield from (Finding("graph", "FAIL", problem) for problem in problems)
    if not problems:
        yield Finding("graph", "ok", f"{len(nodes)} stages; params.yaml and dvc.yaml agree with the code")


def _choices() -> Iterator[Finding]:
    problems = choice_problems(load_params(), read_graph())
    yield from (Finding("choices", "FAIL", problem) for problem in problems)
    if not problems:
        yield Finding(
            "choices", "ok", "nothing of the demo is left beside another log, and the model holds what it is to read"
        )


def _server() -> Iterator[Finding]:
    api_url = find_server()
    if api_url is None:
        yield Finding("server", "ok", "none is set: each run has its own on loopback; `make ui` starts one to stay")
        return
    found = openings(api_url)
    if found:
        yield Finding(
            "server",
            "FAIL",
            f"anybody on the network may command {', '.join(found)}; let it listen on 127.0.0.1, or set "
            "PREFECT_SERVER_API_AUTH_STRING there and PREFECT_API_AUTH_STRING here",
        )
        return
    yield _server_answer(api_url)


def _server_answer(api_url: str) -> Finding:
    import httpx
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            found = client.api_version()
    except (httpx.HTTPError, RuntimeError) as error:
        return Finding("server", "FAIL", f"{api_url} does not answer: {error}")
    return Finding("server", "ok", f"{api_url} answers; client {version('prefect')}, API {found}")


def _devices() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            yield Finding("device", "ok", f"{name}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free")
    elif torch.backends.mps.is_available():
        yield Finding("device", "ok", "Apple GPU")
    else:
        yield Finding("device", "note", f"no accelerator; {num_processors()} cores, enough for the demo's model")


def _disk() -> Iterator[Finding]:
    free = shutil.disk_usage(Path.cwd()).free
    needed = max(MIN_FREE_BYTES, 2 * _bytes_of_outputs())
    verdict: Literal["ok", "FAIL"] = "ok" if free >= needed else "FAIL"
    text = f"{free / 1e9:.1f} GB free; another run of all stages takes up to {needed / 1e9:.1f} GB"
    yield Finding("disk", verdict, text if verdict == "ok" else f"{text}; `dvc gc --workspace` frees what no run needs")


def _bytes_of_outputs() -> int:
    return sum(out.get("size", 0) for stage in recorded_stages().values() for out in stage.get("outs", []))


def _model() -> Iterator[Finding]:
    params = load_params()
    base, source = params.base_model, Path(params.inputs.base_model)
    if base.source == "hub":
        yield Finding("model", "ok", f"{base.repository} at {base.revision}, from the hub")
    elif base.source == "scratch":
        yield Finding("model", "ok", f"made from {source}")
    elif (source / "config.json").is_file() and any(source.glob("*.safetensors")):
        size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
        yield Finding("model", "ok", f"{source}, {size / 1e9:.2f} GB of weights")
    else:
        yield Finding("model", "FAIL", f"expected config.json and *.safetensors in inputs.base_model, {source}")


def _data() -> Iterator[Finding]:
    params = load_params()
    feedback = Path(params.inputs.feedback)
    if feedback.exists():
        files = [file for file in feedback.rglob("*") if file.is_file()] if feedback.is_dir() else [feedback]
        size = sum(file.stat().st_size for file in files)
        yield Finding("data", "ok", f"{feedback}: {len(files)} files, {size / 1e6:.1f} MB")
    elif pointer_of(feedback).is_file():
        yield Finding("data", "note", f"{feedback} is not here; `dvc pull {feedback}` brings it")
    elif any(str(feedback) in node.outs for node in read_graph()):
        yield Finding("data", "ok", f"{feedback} will be made by its stage")
    else:
        yield Finding("data", "FAIL", f"expected the log at inputs.feedback, {feedback}; found nothing there")
