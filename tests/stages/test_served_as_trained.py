"""What is saved is what was trained: opened by plain transformers and peft, it asks in the words of the artifact."""

import json
from pathlib import Path

import pytest
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, GenerationConfig

from stages import tokenization, training, training_rows
from stages.contracts.artifact import read_table
from stages.contracts.completions import COMPLETIONS
from stages.models.pointer import POINTER_FILE, read_pointer, tokenizer_fingerprint, write_pointer
from stages.trainers.sft.section import SFTTrainingParams
from tests.stages.own_logs import normalize
from tests.stages.training_runs import outputs, write_base_model

TEMPLATE = (
    "{% if mood is defined %}{{ mood }} {% endif %}{% for m in messages %}{{ '<user>' if m.role == 'user' else "
    "'<assistant>' }} {{ m.content }} {% if m.role == 'assistant' %}<user>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def files_fingerprint(folder):
    """Of a tokenizer's files, as they are now."""
    pointer = (folder / POINTER_FILE).read_bytes()
    (folder / POINTER_FILE).unlink()
    found = tokenizer_fingerprint(folder)
    (folder / POINTER_FILE).write_bytes(pointer)
    return found


def trained(folder, *, normalization, train):
    base = write_base_model(folder / "base")
    # A control token besides the end of sequence, as models have for an end of turn.
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>"]})
    tokenizer.save_pretrained(base)
    write_pointer(base, read_pointer(base).model_copy(update={"tokenizer_fingerprint": files_fingerprint(base)}))
    words = ["sky", "sea", "red", "fine", "good", "bad", "blue", "green"]
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"what is {word} {other}"},
                {"role": "assistant", "content": f"{other} {word}"},
            ]
        }
        for word in words
        for other in words
    ]
    log = folder / "log.jsonl"
    log.write_text("\n".join(map(json.dumps, rows)))
    completions, tokens, found = (folder / name for name in ("completions", "tokens", "rows"))
    normalize(log, base, folder, test_share=0.3, **normalization)
    tokenization.run(
        completions=completions,
        base_model=base,
        tokens=tokens,
        rejects=folder / "tokenization_rejects",
        metrics=folder / "tokenization.json",
        memo=folder / "memo",
        params=tokenization.TokenizationParams(),
    )
    training_rows.run(kind="demonstrations", tokens=tokens, rows=found)
    training.run(
        method="sft",
        base_model=base,
        tokens=tokens,
        rows=found,
        params=SFTTrainingParams(num_train_epochs=1, per_device_train_batch_size=32, **train),
        **outputs(folder),
    )
    return folder / "model", completions


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    with pytest.MonkeyPatch.context() as patch:
        # As in a project, where dvc.yaml names all by paths from its root.
        patch.chdir(folder)
        model, completions = trained(
            Path(),
            normalization={"chat_template": TEMPLATE, "template_arguments": {"mood": "fine"}},
            train={"lora": {"r": 2, "alpha": 2}, "merge_lora": False},
        )
    return folder / model, folder / completions


def test_held_out_prompts_are_rendered_as_they_stand_in_the_artifact(adapter):
    model, completions = adapter
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = read_table(completions, COMPLETIONS).to_pylist()

    for row in rows:
        prompt = json.loads(row["messages"])["prompt"]
        served = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        assert served == row["prompt"]
        assert served.startswith("fine <user>")
    assert {row["split"] for row in rows} == {"train", "test"}


def test_generation_stops_where_the_template_ends_a_turn(adapter):
    model, completions = adapter
    tokenizer = AutoTokenizer.from_pretrained(model)
    ends = GenerationConfig.from_pretrained(model).eos_token_id

    assert tokenizer.convert_tokens_to_ids("<user>") in ends
    assert tokenizer.eos_token_id in ends
    assert all(text.endswith("<user>") for text in read_table(completions, COMPLETIONS)["completion"].to_pylist())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft asks by the old name
def test_an_adapter_names_a_base_that_peft_finds(adapter, monkeypatch):
    # As in a workspace, from which the base has a name without folders of this machine.
    monkeypatch.chdir(adapter[0].parent)

    assert AutoPeftModelForCausalLM.from_pretrained(adapter[0]).peft_config


def test_a_model_that_is_served_as_its_base_is_saved_as_before(tmp_path):
    model, completions = trained(tmp_path, normalization={}, train={})

    assert json.loads((completions / "manifest.json").read_text())["meta"] == {}
    base = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert AutoTokenizer.from_pretrained(model).chat_template == base.chat_template
