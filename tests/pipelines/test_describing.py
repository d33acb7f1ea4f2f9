"""What `describe --template` shows of a row."""

import json

import pytest

from pipelines.describing import Part, describe_template, parts_of

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and says_no %}{{ raise_exception('no system turns') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder without weights and vocabulary, in a workspace without params.yaml."""
    monkeypatch.chdir(tmp_path)
    control = {str(place): {"content": f"<|{name}|>", "special": True} for place, name in enumerate(("user", "end"))}
    facts = {"eos_token": {"content": "<|end|>"}, "added_tokens_decoder": control, "chat_template": TEMPLATE}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(facts))
    return tmp_path / "model"


def test_a_sample_is_shown_plainly_with_what_is_learned_and_the_stop(folder, capsys):
    assert describe_template(folder, None) == 0

    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "generation stops at <|end|>\n" in shown
    assert "What is it for?<|end|><|assistant|>\nanswer, learned\n| It shows what is vertical.<|end|>\n" in shown
    assert shown.count("ok  ") == 4


def test_a_row_of_the_log_is_shown_with_what_stands_between_its_answers(folder, tmp_path, capsys):
    row = {
        "prompt": [{"role": "user", "content": "weigh it"}],
        "completion": [
            {"role": "assistant", "content": "how?"},
            {"role": "user", "content": "by hand"},
            {"role": "assistant", "content": "two kilos"},
        ],
    }
    (tmp_path / "log.jsonl").write_text(json.dumps(row) + "\n{}\n")

    assert describe_template(folder, tmp_path / "log.jsonl") == 0

    shown = capsys.readouterr().out
    assert "read and not learned\n| <|user|>by hand<|end|><|assistant|>\nanswer, learned\n| two kilos<|end|>" in shown


def test_a_row_that_would_be_rejected_is_answered_with_the_reason(folder, tmp_path, capsys):
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace("and says_no", ""))

    assert describe_template(folder, None) == 1

    assert "rejected, template_error: " in capsys.readouterr().out


def test_an_answer_that_ends_otherwise_than_generation_is_pointed_out(folder, capsys):
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace("{{ m.content }}<|end|>", "{{ m.content }}"))

    assert describe_template(folder, None) == 1

    assert "no  the answer ends with 'ws what is vertical.'" in capsys.readouterr().out


def test_plain_text_is_a_turn_of_the_user_as_in_normalization(folder, tmp_path, capsys):
    (tmp_path / "log.jsonl").write_text("\n" + json.dumps({"prompt": "weigh it", "completion": "two kilos"}))

    assert describe_template(folder, tmp_path / "log.jsonl") == 0

    assert "| <|user|>weigh it<|end|><|assistant|>\nanswer, learned\n| two kilos<|end|>" in capsys.readouterr().out


def test_a_control_token_that_somebody_typed_costs_the_row_here_too(folder, tmp_path, capsys):
    (tmp_path / "log.jsonl").write_text(json.dumps({"prompt": "weigh <|end|>", "completion": "two kilos"}))

    assert describe_template(folder, tmp_path / "log.jsonl") == 1

    assert "rejected, special_token_in_text: the text holds" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "message"), [("[1]", "as a JSON object, found list"), ("{", "found none")])
def test_what_is_no_row_is_refused(folder, tmp_path, text, message):
    (tmp_path / "row.json").write_text(text)

    with pytest.raises(ValueError, match=message):
        describe_template(folder, tmp_path / "row.json")


def test_a_folder_without_a_tokenizer_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: expected the configuration of a tokenizer"):
        describe_template(tmp_path, None)


def test_parts_cover_the_answer():
    assert list(parts_of("abcdef", [0, 2, 3, 6])) == [
        Part("learned", "ab"),
        Part("read", "c"),
        Part("learned", "def"),
    ]
    assert list(parts_of("abc", None)) == [Part("learned", "abc")]


def test_each_answer_of_a_demonstration_is_shown_with_its_prompt_and_weight(folder, tmp_path, capsys):
    turns = [{"role": role, "content": f"{role} {at}"} for at in "ab" for role in ("user", "assistant")]
    turns[1]["weight"] = 0.5
    (tmp_path / "log.jsonl").write_text(json.dumps({"messages": turns}))
    (tmp_path / "params.yaml").write_text("normalization: {learned_turns: each}\n")

    assert describe_template(folder, tmp_path / "log.jsonl") == 0

    shown = capsys.readouterr().out
    assert shown.count("prompt, read\n") == 2
    assert "| assistant a<|end|>\nin the loss of SFT its answers weigh 0.5\n" in shown
    assert "note  the chat template writes <|assistant|>, which the tokenizer doesn't know" in shown
