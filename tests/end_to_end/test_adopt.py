"""From a fresh clone to a policy trained on an own log: `adopt`, `dvc repro`, and what a teammate then has."""

import csv
import json
import os
import pty
import random
import shutil
import sys

import pytest
import yaml

from tests.models.models_on_disk import write_model
from tests.text.tiny_tokenizers import chatml, save_as_model
from tests.workspace import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
WORDS = [
    "the",
    "little",
    "dog",
    "ran",
    "to",
    "a",
    "big",
    "tree",
    "and",
    "saw",
    "one",
    "bird",
    "that",
    "was",
    "happy",
    "with",
    "its",
    "ball",
]
FAST = [
    "--set=training.{0}.max_steps=2",
    "--set=evaluation.num_prompts=4",
    "--set=evaluation.num_samples=1",
    "--set=evaluation.num_resamples=50",
]


def words(count):
    return " ".join(random.Random(repr(count)).choices(WORDS, k=12))


def thumbs(folder):
    rows = [
        {"prompt": words(i // 2), "completion": words(f"{i}!"), "label": i % 2 == 0, "team": "ab"[i // 2 % 2]}
        for i in range(200)
    ]
    return jsonl(folder / "thumbs.jsonl", rows)


def pairs(folder):
    return jsonl(
        folder / "pairs.jsonl",
        [{"prompt": words(i), "chosen": words(f"{i}+"), "rejected": words(f"{i}-")} for i in range(60)],
    )


def demonstrations(folder):
    return jsonl(folder / "shown.jsonl", [{"instruction": words(i), "output": words(f"{i}!")} for i in range(60)])


def stars(folder):
    path = folder / "stars.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["question", "answer", "rating"])
        writer.writerows([words(i), words(f"{i}!"), 1 + i % 5] for i in range(100))
    return path


def chats(folder):
    def turns(i):
        yield {"role": "user", "content": words(i)}
        yield {"role": "assistant", "content": words(f"{i}a"), "rating": "up" if i % 2 else "down"}
        yield {"role": "user", "content": words(f"{i}b")}
        yield {"role": "assistant", "content": words(f"{i}c"), "rating": "down" if i % 2 else "up"}

    path = folder / "chats"
    for day in range(2):
        rows = [{"id": f"{day}-{i}", "messages": list(turns(day * 40 + i))} for i in range(40)]
        jsonl(path / f"2026-01-0{day + 1}.jsonl", rows)
    return path


def jsonl(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def workspace(tmp_path):
    """What somebody has who just cloned the project."""
    found = Workspace(tmp_path / "project", {})
    found.command("git", "add", "--all")
    found.command("git", "commit", "--quiet", "--message", "Start")
    return found


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A tiny model without a chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_model(folder)
    (folder / "chat_template.jinja").unlink()
    return folder


def adopt(workspace, log, model, *options, check=True):
    return workspace.command(
        sys.executable, "-m", "pipelines", "adopt", str(log), "--model", str(model), *options, check=check
    )


def params(workspace):
    return yaml.safe_load((workspace.root / "params.yaml").read_text())


def stages(workspace):
    return set(yaml.safe_load((workspace.root / "dvc.yaml").read_text())["stages"])


@pytest.mark.long
@pytest.mark.parametrize(
    "case",
    [
        (thumbs, [], "bco"),
        (pairs, [], "dpo"),
        (demonstrations, [], "sft"),
        (stars, ["--set=ingestion.columns={label: rating}", "--set=ingestion.label_threshold=4"], "bco"),
        (chats, [], "bco"),
    ],
)
def test_a_log_is_adopted_without_editing_a_file(workspace, model, tmp_path, case):
    make, options, method = case
    done = adopt(workspace, make(tmp_path), model, *options)

    assert f"methods: {method}\n" in done.stdout
    assert ("the model has no template for them" in done.stdout) == (make is chats)
    assert done.stdout.count(" as the model sees it") == 3
    assert "\x1b" not in done.stdout
    assert stages(workspace).isdisjoint({"demo_feedback", "demo_image_prompts", "ppo_training"})
    found = params(workspace)
    assert found["evaluation"]["judge"] == "none"
    assert found["run"]["methods"] == list(found["gate"]) == [method]
    assert (workspace.root / found["inputs"]["feedback"]).exists()
    workspace.command(sys.executable, "-m", "pipelines", "check")


@pytest.mark.long
def test_two_commands_train_and_a_teammate_has_all_of_it(workspace, model, tmp_path):
    # As an adoption leaves it that was broken off.
    (workspace.root / "data").mkdir()
    shutil.copy(thumbs(tmp_path), workspace.root / "data")
    adopt(workspace, tmp_path / "thumbs.jsonl", model, *(option.format("bco") for option in FAST))
    # Whether so short a training meets its gate is no matter here.
    workspace.dvc("repro", "--keep-going", check=False)

    assert json.loads((workspace.root / "metrics/evaluation/bco.json").read_text())["counts"]["rows"] > 0
    assert (workspace.root / "reports/bco.html").is_file()
    workspace.dvc("remote", "add", "--default", "store", str(tmp_path / "store"))
    workspace.command("git", "add", "--all")
    workspace.command("git", "commit", "--quiet", "--message", "Adopt our log")
    workspace.dvc("push")
    mate = workspace.at(tmp_path / "mate")
    workspace.command("git", "clone", "--quiet", str(workspace.root), str(mate.root))
    mate.dvc("pull")
    assert (mate.root / "data/thumbs.jsonl").read_text() == (tmp_path / "thumbs.jsonl").read_text()
    assert (mate.root / "reports/bco.html").is_file()
    again = mate.dvc("repro", "--pull", "--allow-missing", "evaluation@bco", "report@bco").stdout
    assert "Running stage" not in again
    mate.dvc("plots", "show")
    status = mate.command(sys.executable, "-m", "pipelines", "status", "evaluation@bco").stdout
    assert status.count("up to date") == len(status.splitlines()) - 2 == 11, status


def test_a_dry_run_writes_nothing(workspace, model, tmp_path):
    done = adopt(workspace, thumbs(tmp_path), model, "--dry-run")

    assert "results are also shown by team" in done.stdout
    assert "nothing is written" in done.stdout
    assert workspace.command("git", "status", "--porcelain").stdout == ""


@pytest.mark.long
def test_a_changed_file_is_not_written_over_without_force(workspace, model, tmp_path):
    workspace.set_params({"training": {"bco": {"beta": 0.7}}})
    before = (workspace.root / "params.yaml").read_text()

    done = adopt(workspace, thumbs(tmp_path), model, check=False)

    assert done.returncode == 1
    assert "params.yaml differs from what is committed" in done.stderr
    assert (workspace.root / "params.yaml").read_text() == before
    adopt(workspace, thumbs(tmp_path), model, "--force")
    assert params(workspace)["training"]["bco"]["beta"] == 0.1


@pytest.mark.long
def test_another_log_takes_force_and_finds_the_stages_of_its_method(workspace, model, tmp_path):
    adopt(workspace, thumbs(tmp_path), model)
    workspace.command("git", "add", "--all")
    workspace.command("git", "commit", "--quiet", "--message", "Adopt our log")

    done = adopt(workspace, pairs(tmp_path), model, check=False)
    assert "params.yaml is that of another log already (data/thumbs.jsonl)" in done.stderr
    # The stages of DPO are in git's history alone by now.
    adopt(workspace, pairs(tmp_path), model, "--force")
    assert params(workspace)["run"]["methods"] == ["dpo"]
    assert "dpo_rows" in stages(workspace)


def test_what_is_unclear_is_said_with_the_setting_that_decides(workspace, model, tmp_path):
    done = adopt(workspace, stars(tmp_path), model, check=False)

    assert done.returncode == 1
    assert "rating is named like a vote" in done.stderr
    assert "label_threshold says from which rating on" in done.stderr
    assert workspace.command("git", "status", "--porcelain").stdout == ""


@pytest.mark.long
def test_a_terminal_that_nobody_sits_at_is_asked_nothing(workspace, model, tmp_path):
    log = thumbs(tmp_path)
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(workspace.root)
        os.execve(  # noqa: S606 -- in a terminal of its own
            sys.executable,
            [sys.executable, "-m", "pipelines", "adopt", str(log), "--model", str(model)],
            workspace.environment,
        )
    printed = b""
    while True:
        try:
            block = os.read(terminal, 65536)
        except OSError:  # as Linux says that the other end is closed
            break
        if not block:
            break
        printed += block

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, printed.decode()
    assert b"dvc repro --keep-going" in printed


@pytest.mark.long
def test_a_model_of_the_hub_is_pinned_and_a_log_in_the_clone_stays_where_it_is(workspace, model, tmp_path):
    commit = "1" * 40
    shutil.copytree(model, tmp_path / "hub/models--org--tiny/snapshots" / commit)
    workspace.environment |= {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    log = thumbs(workspace.root / "data")

    adopt(workspace, log.relative_to(workspace.root), f"org/tiny@{commit}")

    base_model = params(workspace)["base_model"]
    assert (base_model["source"], base_model["repository"], base_model["revision"]) == ("hub", "org/tiny", commit)
    assert "base_model" not in params(workspace)["inputs"]
    assert params(workspace)["inputs"]["feedback"] == "data/thumbs.jsonl"
    assert (workspace.root / "data/thumbs.jsonl.dvc").is_file()
    assert workspace.repro("base_model", "normalization") >= {"base_model", "ingestion", "normalization"}


@pytest.mark.long
def test_templates_of_the_model_are_used_where_it_has_one(workspace, tmp_path):
    write_model(tmp_path / "chat")
    save_as_model(chatml(), tmp_path / "chat")

    done = adopt(workspace, chats(tmp_path), tmp_path / "chat", "--dry-run")

    assert "has no template" not in done.stdout
    assert "<|im_start|>assistant" in done.stdout


@pytest.mark.long
@pytest.mark.parametrize(
    "case",
    [
        ("nothing.jsonl", "expected a log at"),
        ("empty.jsonl", "found it empty"),
        ("s3://bucket/log.jsonl", "`dvc import-url s3://bucket/log.jsonl data/log.jsonl`, then adopt data/log.jsonl"),
    ],
)
def test_a_log_that_isnt_there_is_named(workspace, model, tmp_path, case):
    name, problem = case
    (tmp_path / "empty.jsonl").touch()

    done = adopt(workspace, name if "://" in name else tmp_path / name, model, check=False)

    assert done.returncode == 1
    assert problem in done.stderr
