"""What `push_to_hub` brings to a hub: a stand-in of its API on this machine, spoken to by the real client."""

import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load

from stages.contracts.closure import ROOT
from tests.trainers.hub_stand_in import USER, running_hub
from tests.trainers.tiny import bco_config, bco_trainer

TOKEN = "hf_a_secret"  # noqa: S105 - the stand-in takes any
# One process for all, since the client reads its endpoint when it is imported and imports take seconds.
_SCRIPT = """
import sys
from pathlib import Path
import torch
from peft import LoraConfig
from tests.trainers.tiny import bco_config, bco_trainer
folder, token = Path(sys.argv[1]), sys.argv[2]
whole = bco_trainer(folder / "whole", hub_token=token)
whole.train()
whole.push_to_hub(commit_message="First", tags=["mine"], license="mit")
torch.save(whole.model.lm_head.weight.detach(), folder / "weight.pt")
adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
named = bco_trainer(folder / "named", hub_token=token, hub_model_id="team/adapter", peft_config=adapter)
named.train()
named.push_to_hub()
# One step, since transformers overwrites the files of a push that is still under way.
steps = {"push_to_hub": True, "save_strategy": "steps", "save_steps": 1, "max_steps": 1}
during = bco_trainer(folder / "during", hub_token=token, **steps)
during.train()
during.push_to_hub()
"""


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """The hub after the pushes, and the folder that the trainers wrote to."""
    folder = tmp_path_factory.mktemp("pushed")
    with running_hub() as hub:
        here = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "hf")}
        subprocess.run(
            [sys.executable, "-c", _SCRIPT, str(folder), TOKEN],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", **here},
            check=True,
            timeout=120,
        )
        yield hub, folder


@pytest.mark.slow
def test_weights_tokenizer_state_and_card_arrive(pushed):
    hub, folder = pushed
    files = hub.repositories[f"{USER}/whole"]

    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= files.keys()
    weight = load(files["model.safetensors"])["lm_head.weight"]
    assert torch.equal(weight, torch.load(folder / "weight.pt", weights_only=True))
    assert json.loads(files["preference_state.json"])["method"]["rewards"]["counts"] != [0.0, 0.0]
    _, front, body = files["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(front)["tags"] == ["plumbline", "bco", "mine"]
    assert yaml.safe_load(front)["license"] == "mit"
    assert body.startswith("\n# whole\n")
    assert "Binary Classifier Optimization" in body
    assert (f"{USER}/whole", "First") in [commit[:2] for commit in hub.commits]


@pytest.mark.slow
def test_an_adapter_arrives_without_its_base_under_the_name_asked_for(pushed):
    hub, _ = pushed
    files = hub.repositories["team/adapter"]

    assert "adapter_model.safetensors" in files
    assert "model.safetensors" not in files
    assert yaml.safe_load(files["README.md"].decode().split("---\n")[1])["library_name"] == "peft"


@pytest.mark.slow
def test_no_pickle_arrives(pushed):
    hub, _ = pushed

    for name in (f"{USER}/whole", "team/adapter"):
        assert {path.rpartition(".")[2] for path in hub.repositories[name]} == {"json", "safetensors", "md", "jinja"}


@pytest.mark.slow
def test_checkpoints_arrive_while_it_trains(pushed):
    hub, _ = pushed

    messages = [message for name, message, _ in hub.commits if name == f"{USER}/during"]

    assert messages == ["Training in progress, step 1", "End of training"]
    assert {"model.safetensors", "README.md"} <= hub.repositories[f"{USER}/during"].keys()


@pytest.mark.slow
def test_the_token_opens_the_hub_and_is_in_no_file(pushed):
    hub, folder = pushed

    assert hub.tokens == {TOKEN}
    contents = [*hub.objects.values(), *(content for files in hub.repositories.values() for content in files.values())]
    local = [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
    assert len(local) > 20
    assert not any(TOKEN.encode() in content for content in [*contents, *local])


def test_saved_models_and_checkpoints_hold_no_pickle_of_the_arguments(tmp_path):
    trainer = bco_trainer(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)

    trainer.train()
    trainer.save_model()

    assert (tmp_path / "model.safetensors").exists()
    assert not list(tmp_path.rglob("training_args.bin"))


def test_a_pickle_of_the_arguments_holds_no_token(tmp_path):
    config = bco_config(tmp_path, hub_token=TOKEN)

    copied = pickle.loads(pickle.dumps(config))  # noqa: S301 - what was just pickled

    assert (config.hub_token, copied.hub_token) == (TOKEN, None)
    assert copied.learning_rate == config.learning_rate
