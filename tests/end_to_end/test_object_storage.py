"""Artifacts and logs on object storage: a real S3 protocol, served on this machine."""

import json

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from stages.contracts.files import tree_digest
from stages.ingestion import IngestionParams, run
from tests.workspace import SMALL, Workspace, stages_run

OUTPUTS = ("feedback.jsonl", "demonstrations.jsonl", "truth.json")


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint, monkeypatch, request):
    """A bucket of the test's own; the machine says where it lies and who asks, as on a real one."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    name = request.node.name.replace("_", "-")[:60].strip("-")
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    system.mkdir(name)
    return f"s3://{name}"


def contents(workspace: Workspace) -> dict[str, bytes]:
    return {name: (workspace.root / "data" / "demo" / name).read_bytes() for name in OUTPUTS}


@pytest.mark.slow
@pytest.mark.long
def test_a_fresh_clone_pulls_what_was_pushed(bucket, tmp_path):
    first = Workspace(tmp_path / "first", SMALL)
    first.dvc("remote", "add", "--default", "store", f"{bucket}/dvc")
    first.repro("demo_feedback")
    first.command("git", "add", "--all")
    first.command("git", "commit", "--quiet", "--message", "Reproduce")
    first.dvc("push", "code", "demo_feedback")

    second = tmp_path / "second"
    first.command("git", "clone", "--quiet", str(first.root), str(second))
    clone = first.at(second)
    assert not (second / "data").exists()
    clone.dvc("pull", "code", "demo_feedback")

    assert contents(clone) == contents(first)
    assert stages_run(clone.dvc("repro", "demo_feedback").stdout) == set()


def write_log(folder: str) -> None:
    """Two files of a log and one that is none of it."""
    rows = [{"prompt": f"Say {i}.", "completion": "hello", "label": bool(i % 2)} for i in range(20)]
    for name, part in (("2025-01.jsonl", rows[:12]), ("2025-02.jsonl", rows[12:]), ("2024-12.jsonl", rows[:1])):
        with fsspec.open(f"{folder}/{name}", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in part)


@pytest.mark.slow
@pytest.mark.long
def test_ingestion_reads_its_log_from_a_bucket(bucket, tmp_path):
    (tmp_path / "log").mkdir()
    write_log(f"{bucket}/log")
    write_log(str(tmp_path / "log"))

    for name, source in (("remote", f"{bucket}/log/2025-*.jsonl"), ("local", "2025-*.jsonl")):
        (tmp_path / name).mkdir()
        run(
            feedback=tmp_path / "log",
            feedback_events=tmp_path / name / "feedback_events",
            ledger=tmp_path / name / "ledger",
            metrics=tmp_path / name / "metrics.json",
            scratch=tmp_path / name / "scratch",
            params=IngestionParams(source=source),
        )

    for artifact in ("feedback_events", "ledger"):
        assert tree_digest(tmp_path / "remote" / artifact) == tree_digest(tmp_path / "local" / artifact)
    # Of a folder here, metrics name the file besides that isn't read.
    read = [json.loads((tmp_path / name / "metrics.json").read_text())["files"] for name in ("remote", "local")]
    assert read[0] == read[1]
    assert list(read[0]) == ["2025-01.jsonl", "2025-02.jsonl"]


@pytest.mark.slow
@pytest.mark.long
def test_says_which_bucket_it_cannot_read(bucket, tmp_path):

    with pytest.raises(ValueError, match=r"expected feedback at s3://nowhere-at-all/log\.jsonl, but it can't be read"):
        run(
            feedback=tmp_path,
            feedback_events=tmp_path / "feedback_events",
            ledger=tmp_path / "ledger",
            metrics=tmp_path / "metrics.json",
            scratch=tmp_path / "scratch",
            params=IngestionParams(source="s3://nowhere-at-all/log.jsonl"),
        )
