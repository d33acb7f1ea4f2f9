"""CONTRIBUTING, step by step: its own code put where it says, under real DVC."""

import json
import re
import subprocess
import sys

import pytest
import yaml

from tests.workspace import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BLOCK = re.compile(r'^```\w+ title="([^"]+)"\n(.*?)^```$', flags=re.MULTILINE | re.DOTALL)


def blocks():
    """Code of the guide by its titles, in order."""
    return BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text())


@pytest.fixture
def workspace(reproduced, tmp_path):
    """A workspace with tokens and reference log-probabilities, which a test may spoil."""
    workspace = reproduced.clone(tmp_path / "project")
    workspace.command("git", "add", "--all")
    workspace.command("git", "commit", "--quiet", "-m", "Start")
    return workspace


def insert(workspace, path, before, text):
    """Put `text` into a file in front of the first place where `before` stands."""
    file = workspace.root / path
    whole = file.read_text()
    assert before in whole
    file.write_text(whole.replace(before, text + before, 1))


def pipelines(workspace, *words, check=True):
    return workspace.command(sys.executable, "-m", "pipelines", *words, check=check)


@pytest.mark.long
def test_a_method_is_added_by_the_documented_steps_in_at_most_eight_files(workspace):
    for title, code in blocks():
        if "hinge" not in code:
            continue
        if title == "dvc.yaml":
            insert(workspace, title, "  # ---- training ----\n", f"{code}\n")
        elif title == "dvc.yaml, training":
            insert(workspace, "dvc.yaml", "        sft: {method: sft,", code)
        elif title == "params.yaml":
            workspace.set_params(yaml.safe_load(code))
        elif title == "stages/trainers/__init__.py":
            insert(workspace, title, '    "kto": Method(\n', code)
        else:
            (workspace.root / title).parent.mkdir(exist_ok=True)
            (workspace.root / title).write_text(code)
    (workspace.root / "stages/trainers/hinge/__init__.py").write_text('"""A hinge on single thumbs."""\n')
    assert "agree" in pipelines(workspace, "check").stdout

    # What the guide asks of the policy isn't met by a training of one epoch.
    workspace.set_params({"gate": {"hinge": {"minimums": {"auc": 0.0}}}})

    ran = workspace.repro("evaluation@hinge", "gate@hinge", "report@hinge")

    assert ran == {
        "code",
        "hinge_rows",
        "training@hinge",
        "evaluation@hinge",
        "gate@hinge",
        "report@hinge",
    }
    lineage = json.loads((workspace.root / "models/hinge/plumbline.json").read_text())
    assert lineage["method"] == "hinge"
    assert len(lineage["rows"]) == 64
    assert (workspace.root / "reports/hinge.html").is_file()
    changed = workspace.command("git", "status", "--porcelain", "--untracked-files=all").stdout.splitlines()
    files = {line[3:] for line in changed} - {"dvc.lock"}
    # With its test and the schema for editors, which a copy of the project doesn't hold.
    assert len(files) + 2 <= 8, files


@pytest.mark.long
def test_the_guides_filter_stands_between_rows_and_training(workspace):
    (code,) = (code for title, code in blocks() if title == "stages/short_rows.py")
    (entry,) = (code for title, code in blocks() if title == "dvc.yaml" and "short_rows" in code)
    (params,) = (code for title, code in blocks() if title == "params.yaml" and "short_rows" in code)
    (workspace.root / "stages/short_rows.py").write_text(code)
    graph = workspace.root / "dvc.yaml"
    text = graph.read_text()
    begin = text.index("  bco_rows:")
    own = text[begin : text.index("\n\n", begin)]
    graph.write_text(text.replace(own, f"{own.replace('artifacts/rows/bco', 'artifacts/rows/all_bco')}\n\n{entry}", 1))
    section = "    report: ReportParams = ReportParams()\n"
    insert(workspace, "pipelines/params.py", section, "    short_rows: ShortRowsParams = ShortRowsParams()\n")
    insert(
        workspace, "pipelines/params.py", "from stages.tokenization", "from stages.short_rows import ShortRowsParams\n"
    )
    workspace.set_params(yaml.safe_load(params))
    assert "agree" in pipelines(workspace, "check").stdout

    workspace.repro("training@bco")

    rows = json.loads((workspace.root / "metrics/training/bco.json").read_text())["rows"]
    assert 0 < rows["too_long"] < rows["desired"] + rows["undesired"]
    assert workspace.repro("training@bco") == set()
    workspace.set_params({"short_rows": {"max_length": 20}})
    assert workspace.repro("training@bco") == {"short_rows", "training@bco"}


@pytest.mark.long
def test_a_second_reward_model_and_a_ppo_that_reads_two_are_entries(workspace):
    text = (workspace.root / "dvc.yaml").read_text()
    line = next(line for line in text.splitlines() if line.startswith("      reward: {method: reward"))
    begin = text.index("  reward_rows:")
    rows = text[begin : text.index("\n\n", begin)]
    begin = text.index("  ppo_training:")
    ppo = text[begin : text.index("\n\n", begin)]
    both = "--reward-models models/reward models/reward_b --rows artifacts/rows/ppo"
    reads_both = ppo.replace("--rows artifacts/rows/ppo", both).replace(
        "deps: [", "deps: [models/reward, models/reward_b, "
    )
    text = text.replace(line, f"{line}\n{line.replace('reward:', 'reward_b:', 1).replace('g.reward.', 'g.reward_b.')}")
    second = re.sub(r"\breward(?=_rows|\b)", "reward_b", rows)
    text = text.replace(rows, f"{rows}\n\n{second}")
    (workspace.root / "dvc.yaml").write_text(text.replace(ppo, reads_both))
    workspace.set_params(
        {
            "rows": {"reward_b": {}},
            "training": {
                "reward_b": {"method": "reward", "start_from": "base", "seed": 1, "num_train_epochs": 1},
                "ppo": {"reward": "model", "num_steps": 1},
            },
        }
    )
    assert "agree" in pipelines(workspace, "check").stdout

    ran = workspace.repro("ppo_training")

    assert {"training@reward", "training@reward_b", "ppo_training"} <= ran
    curves = (workspace.root / "plots/training/ppo.csv").read_text().splitlines()
    assert len(curves) == 2
    lineages = [
        json.loads((workspace.root / f"models/{name}/plumbline.json").read_text()) for name in ("reward", "reward_b")
    ]
    assert lineages[0]["rows"] == lineages[1]["rows"]


@pytest.mark.long
def test_code_is_one_dependency_whose_comments_rerun_nothing(workspace):
    loss = workspace.root / "stages/losses/bco.py"
    head = workspace.root / "stages/models/value_head.py"

    loss.write_text(loss.read_text().replace("    rewards = ", "    # A comment changes no result.\n    rewards = ", 1))
    assert workspace.repro("training@bco") == {"code"}

    head.write_text(f"{head.read_text()}\nNOTHING = 0\n")
    status = states(pipelines(workspace, "status").stdout)
    assert status["ppo_training"][0] in {"new", "follows"}
    assert status["training@bco"] == ("up to date", "")
    assert workspace.repro("training@bco") == {"code"}

    loss.write_text(loss.read_text().replace("    rewards = ", "    rewards = 1.0 * ", 1))
    status = states(pipelines(workspace, "status").stdout)
    assert status["training@bco"] == ("follows", "after code (stages/losses/bco.py)")
    assert status["bco_rows"] == ("up to date", "")
    refused = workspace.dvc("repro", "--single-item", "--force", "training@bco", check=False)
    assert refused.returncode != 0
    assert "found stages/losses/bco.py edited since; run `dvc repro code` first" in refused.stderr + refused.stdout
    done = pipelines(workspace, "run", "training@bco")
    flow = done.stdout + done.stderr
    assert "training@bco follows from an edit of stages/losses/bco.py" in flow
    assert re.search(r"\d+ stages: \d+ Cached, 2 Completed", flow), flow


def states(text):
    """State and reason of each stage, as `python -m pipelines status` prints them."""
    rows = (re.split(r"  +", line.strip(), maxsplit=2) for line in text.splitlines() if "  " in line)
    return {name: (state, rest[0] if rest else "") for name, state, *rest in rows}


def test_an_unknown_method_names_the_nearest(workspace):
    done = subprocess.run(
        [sys.executable, "-m", "stages.training", "--method", "bcoo", *flags(workspace)],
        cwd=workspace.root,
        env=workspace.environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "found 'bcoo'; did you mean bco?" in done.stderr


def flags(workspace):
    """What the stage `training` wants besides."""
    names = ("base-model", "tokens", "rows", "model", "metrics", "plots")
    return [word for name in names for word in (f"--{name}", str(workspace.root / name))]
