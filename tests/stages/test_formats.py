"""Logs of each format from their raw shape to rows, recounted from the raw shape by code of the test's own."""

import json
import re
import sys
import types
from pathlib import Path

import pytest

EVALUATION = "gen_ai.evaluation.result"


def human(text):
    return {"role": "user", "content": text}


# ---- OpenTelemetry ----


def otlp(values):
    return [{"key": key, "value": {"doubleValue" if isinstance(value, float) else "stringValue": value}}
            for key, value in values.items()]  # fmt: skip


def parts(role, text):
    return {"role": role, "parts": [{"type": "text", "content": text}]}


def span(i, **more):
    values = {
        "gen_ai.input.messages": json.dumps([parts("user", f"What of {'xyz'[i]}?")]),
        "gen_ai.output.messages": json.dumps([{**parts("assistant", f"It is {i}."), "finish_reason": "stop"}]),
        "gen_ai.system_instructions": json.dumps([{"type": "text", "content": "Be brief."}]),
        "gen_ai.response.model": "m",
        "gen_ai.response.id": f"r{i}",
    }
    return {"traceId": f"t{i}", "spanId": f"s{i}", "name": "chat m", "attributes": otlp(values), **more}


def evaluation(scale, score, i=None, **place):
    values = {"gen_ai.evaluation.name": scale, "gen_ai.evaluation.score.value": score}
    if i is not None:
        values["gen_ai.response.id"] = f"r{i}"
    return {"attributes": otlp(values), "timeUnixNano": "1760000000000000000", **place}


def test_spans_and_evaluations_of_telemetry_are_answers_and_votes(reads):
    spans = [
        span(0, events=[evaluation("thumb", 1.0, name=EVALUATION)]),
        span(1),
        span(2),
        {"name": "GET", "spanId": "h"},
    ]
    logs = [
        evaluation("thumb", 0.0, eventName=EVALUATION, spanId="s1", traceId="t1"),
        evaluation("thumb", 1.0, 2, eventName=EVALUATION),
    ]
    lines = [
        {"resourceSpans": [{"resource": {}, "scopeSpans": [{"spans": spans}]}]},
        {"resourceLogs": [{"scopeLogs": [{"logRecords": logs}]}]},
    ]

    found = reads(lines)

    assert found.votes() == {("What of x?", "It is 0."): True, ("What of y?", "It is 1."): False,
                             ("What of z?", "It is 2."): True}  # fmt: skip
    assert json.loads(found.rows[0]["messages"])["prompt"][0] == {"role": "system", "content": "Be brief."}
    assert [(event["model"], event["time"]) for event in found.events] == [("m", 1_760_000_000.0)] * 3


def test_flat_spans_with_attributes_as_an_object_are_read(reads):
    attributes = {item["key"]: item["value"]["stringValue"] for item in span(0)["attributes"]}
    vote = {
        "name": EVALUATION,
        "attributes": {"gen_ai.evaluation.name": "user", "gen_ai.evaluation.score.label": "down"},
    }

    found = reads([{"context": {"trace_id": "t", "span_id": "s"}, "attributes": attributes, "events": [vote]}])

    assert found.votes() == {("What of x?", "It is 0."): False}


def test_tool_calls_of_telemetry_are_turns(reads):
    call = {"type": "tool_call", "id": "k", "name": "rain", "arguments": {"place": "Ulm"}}
    asked = [parts("user", "Rain?"), {"role": "assistant", "parts": [call]},
             {"role": "tool", "parts": [{"type": "tool_call_response", "id": "k", "response": "yes"}]}]  # fmt: skip
    attributes = {"gen_ai.input.messages": asked, "gen_ai.output.messages": [parts("assistant", "It rains.")]}
    row = {"span_id": "s", "attributes": attributes, "events": [evaluation("user", 1.0, name=EVALUATION)]}

    (event,) = reads([row], chat_template=WITH_CALLS).events

    prompt = json.loads(event["prompt"])
    assert [turn["role"] for turn in prompt] == ["user", "assistant", "tool"]
    assert prompt[1]["tool_calls"][0]["function"] == {"name": "rain", "arguments": {"place": "Ulm"}}
    assert prompt[2]["content"] == "yes"


WITH_CALLS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.name }} {{ call.function.arguments | tojson }}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# ---- OpenAI ----


def test_stored_completions_carry_their_messages_and_metadata(reads):
    rows = [
        {
            "object": "chat.completion",
            "id": f"chatcmpl-{i}",
            "model": "m",
            "messages": [human(f"Name {'xy'[i]}.")],
            "choices": [{"message": {"role": "assistant", "content": f"It is {i}."}, "finish_reason": "stop"}],
            "metadata": {"feedback": mark},
            "tools": None,
        }
        for i, mark in enumerate(("up", "down"))
    ]

    assert reads(rows).votes() == {("Name x.", "It is 0."): True, ("Name y.", "It is 1."): False}


# ---- Label Studio and Argilla ----


def task(i, *annotations, **data):
    answers = {"prompt": f"Which tree is tall, {'xyz'[i]}?", "text1": "An oak, say.", "text2": "A moss, say."}
    return {"id": i, "data": {**answers, **data}, "annotations": list(annotations), "predictions": []}


def picked(side, who=1):
    result = {"from_name": "pw", "to_name": "text1,text2", "type": "pairwise", "value": {"selected": side}}
    return {"completed_by": who, "created_at": "2026-01-01T00:00:00Z", "was_cancelled": False, "result": [result]}


def test_comparisons_of_label_studio_are_pairs(reads):
    skipped = {"completed_by": 4, "was_cancelled": True, "result": []}
    tasks = [task(0, picked("left")), task(1, picked("right"), picked("right", 2), picked("left", 3)), task(2, skipped)]

    found = reads(json.dumps(tasks), "export.json")

    assert [pair[1] for pair in found.pairs()] == ["An oak, say.", "A moss, say."]
    assert found.counts["reject_reasons"] == {"outvoted": 1, "no_label": 1}
    assert [(event["agree"], event["rater"]) for event in found.events if event["agree"]] == [(2.0, "1")]


def test_ratings_of_label_studio_are_votes(reads):
    def rated(value, name="stars"):
        return {"from_name": name, "to_name": "answer", "type": "rating", "value": {"rating": value}}

    tasks = [
        {"id": i, "data": {"prompt": f"Name {'xy'[i]}.", "answer": f"It is {i}."},
         "annotations": [{"completed_by": 1, "result": [rated(stars), rated(1, "length")]}]}
        for i, stars in enumerate((5, 2))
    ]  # fmt: skip

    with pytest.raises(ValueError, match=r"several scores: length \(2\), stars \(2\).*ingestion.score"):
        reads(tasks, label_threshold=4)
    found = reads(tasks, label_threshold=4, score="stars")
    assert found.votes() == {("Name x.", "It is 0."): True, ("Name y.", "It is 1."): False}
    assert found.counts["unread"]["scores"] == {"length": 2}


@pytest.mark.parametrize("kind", ["label", "ranking"])
def test_responses_of_argilla_are_pairs(reads, kind):
    def chose(name, other):
        return name if kind == "label" else [{"value": other, "rank": 2}, {"value": name, "rank": 1}]

    names = ("response-1", "response-2")
    rows = [
        {"id": f"r{i}",
         "fields": {"instruction": f"Which is tall, {'xy'[i]}?", names[0]: "An oak.", names[1]: "A moss."},
         "responses": {"preference": [{"value": chose(names[i], names[1 - i]), "user_id": "u", "status": "submitted"},
                                      {"value": chose(names[1 - i], names[i]), "user_id": "v", "status": "draft"}]}}
        for i in range(2)
    ]  # fmt: skip

    found = reads(rows)

    assert [pair[1] for pair in found.pairs()] == ["An oak.", "A moss."]
    assert found.counts["reject_reasons"] == {"no_label": 2}


# ---- pairs that users make by what they do ----


def test_corrections_make_pairs_if_asked(reads):
    rows = [
        {"prompt": "Which is red?", "completion": "The sky.", "label": 0, "corrected_answer": "A cherry."},
        {"prompt": "Which is blue?", "completion": "The sea.", "label": 1, "corrected_answer": None},
        {"prompt": "Which is green?", "completion": "The sun.", "label": None, "corrected_answer": "A leaf."},
    ]

    found = reads(rows, pairs_from=["corrections"])

    pairs = {json.loads(row["messages"])["completion"]: row["label"] for row in found.rows if row["pair_id"]}
    assert pairs == {"A cherry.": True, "The sky.": False, "A leaf.": True, "The sun.": False}
    assert found.counts["layouts"] == {"unpaired": 2, "pairs": 2}
    assert reads(rows).counts["layouts"] == {"unpaired": 2}


def test_answers_that_were_asked_for_again_make_pairs_if_asked(reads):
    def message(name, parent, text, **more):
        return {"messageId": name, "parentMessageId": parent, "isCreatedByUser": name[0] == "q", "text": text, **more}

    messages = [
        message("q1", None, "Pick a stone."),
        message("a1", "q1", "Agate.", feedback={"rating": "thumbsUp"}),
        message("a2", "q1", "Basalt."),
        message("q2", "a1", "And a bird."),
        message("a3", "q2", "Coot."),
        message("a4", "q2", "Teal."),
    ]

    found = reads([{"conversationId": "c", "messages": messages}], pairs_from=["regenerations"])

    pairs = [tuple(json.loads(event[name])[0]["content"] for name in ("answer", "rejected"))
             for event in found.events if event["layout"] == "pairs"]  # fmt: skip
    # Agate was gone on from; of the answers to the second question the last one stayed.
    assert pairs == [("Agate.", "Basalt."), ("Teal.", "Coot.")]
    assert found.counts["layouts"] == {"pairs": 2, "unpaired": 1}


# ---- formats by name ----


def of_our_own(record):
    """A format of a test's own: votes on all answers in a record."""
    return [{"prompt": record["q"], "completion": a, "label": a == record["best"], "rater": "x"} for a in record["all"]]


def test_a_function_of_ones_own_reads_records(reads):
    rows = [{"q": "Which of them?", "all": ["Teal.", "Coot."], "best": "Coot."}]

    found = reads(rows, format=f"{__name__}:of_our_own")

    assert found.votes() == {("Which of them?", "Teal."): False, ("Which of them?", "Coot."): True}
    with pytest.raises(ValueError, match=r"ingestion.format: expected rows, messages, .* found 'langfus'.*'langfuse'"):
        reads(rows, format="langfus")


def test_a_function_written_as_contributing_says_reads_records(reads, monkeypatch):
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    code = re.search(r"## A format of logs\n.*?```python\n(.*?)```", text, re.DOTALL)[1]
    module = types.ModuleType("my_logs")
    exec(code, vars(module))  # noqa: S102 # our own guide
    monkeypatch.setitem(sys.modules, "my_logs", module)

    found = reads([{"question": "Which?", "left": "Oak.", "right": "Moss.", "won": "right", "player": "ann"}],
                  format="my_logs:events")  # fmt: skip

    assert found.votes() == {("Which?", "Oak."): False, ("Which?", "Moss."): True}


def test_a_named_format_refuses_what_is_of_another(reads):
    rows = [task(0, picked("left")), {"prompt": "Which?", "completion": "This.", "label": 1}]

    assert reads(rows, format="label_studio").counts["reject_reasons"] == {"unknown_layout": 1}


def test_rows_by_name_are_columns_whatever_their_shape(reads):
    row = {"input": "Which?", "output": "This.", "traceId": "t", "label": 1}

    assert reads([row], format="rows", columns={"prompt": "input"}).counts["formats"] == {"rows": 1}


# ---- sets of comparisons that people publish ----


def test_a_file_like_llmbar(reads):
    rows = [{"input": f"Write line {'xyzw'[i]}.", "output_1": f"One {i}.", "output_2": f"Two {i}.", "label": 1 + i % 2}
            for i in range(4)]  # fmt: skip

    expected = [(row["input"], row[f"output_{row['label']}"], row[f"output_{3 - row['label']}"]) for row in rows]
    assert reads(rows).pairs() == expected


def test_a_file_like_mt_bench(reads):
    def talk(name, i):
        return [human(f"First {i}?"), {"role": "assistant", "content": f"{name} one {i}."},
                human(f"Then {i}?"), {"role": "assistant", "content": f"{name} two {i}."}]  # fmt: skip

    rows = [
        {"question_id": 80 + i, "model_a": "red", "model_b": "blue", "winner": winner, "turn": turn,
         "conversation_a": talk("Red", i), "conversation_b": talk("Blue", i)}
        for i, (winner, turn) in enumerate([("model_a", 1), ("model_b", 2), ("tie", 1), ("model_b", 1)])
    ]  # fmt: skip

    found = reads(rows)

    words = {1: "one", 2: "two"}
    better = {"model_a": ("Red", "Blue"), "model_b": ("Blue", "Red"), "tie": None}
    expected = [
        tuple(f"{name} {words[row['turn']]} {i}." for name in better[row["winner"]])
        for i, row in enumerate(rows)
        if better[row["winner"]]
    ]
    assert [pair[1:] for pair in found.pairs()] == expected
    assert found.counts["reject_reasons"] == {"tie": 1}


def test_a_file_like_alpaca_eval(reads):
    rows = [
        {"instruction": f"Do {'xyz'[i]}.", "output_1": f"One {i}.", "generator_1": "base", "output_2": f"Two {i}.",
         "generator_2": "ours", "annotator": "judge", "preference": preference, "dataset": "d"}
        for i, preference in enumerate((1.0, 2.0, 1.5))
    ]  # fmt: skip

    found = reads(json.dumps(rows), "annotations.json")

    assert found.pairs() == [("Do x.", "One 0.", "Two 0."), ("Do y.", "Two 1.", "One 1.")]
    assert found.counts["reject_reasons"] == {"tie": 1}
