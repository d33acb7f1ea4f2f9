"""What products export beside votes: answers that broke off, corrections, answers asked for again, packed cells."""

import json

import pytest

from stages.text.exports import plain_message

EACH = [(f"What do you know of the {word}?", f"The {word} is a bird.") for word in ("wren", "owl", "tern", "stork")]


def tree(i, asked, *answers):
    """The messages of a chat as LibreChat and Open WebUI name them: a question and answers to it."""
    question = {"messageId": f"q{i}", "id": f"q{i}", "parentMessageId": None, "parentId": None, "text": asked}
    return [
        question | {"isCreatedByUser": True, "role": "user", "content": asked},
        *(
            {"messageId": f"a{i}-{place}", "id": f"a{i}-{place}", "parentMessageId": f"q{i}", "parentId": f"q{i}"}
            | {"isCreatedByUser": False, "role": "assistant", **answer}
            for place, answer in enumerate(answers)
        ),
    ]


def said(text, **more):
    return {"text": text, "content": text, **more}


BROKEN = [{"error": True}, {"unfinished": True}, {"error": {"content": "No connection."}}]


@pytest.mark.parametrize("more", BROKEN)
@pytest.mark.parametrize("kind", ["librechat", "open_webui", "open_webui_chat", "messages"])
def test_answers_that_broke_off_are_refused_and_said(reads, kind, more):
    def rows(i, asked, answer):
        flags = more if i == 1 else {"error": False, "unfinished": False}
        if kind == "librechat":
            vote = {"feedback": {"rating": "thumbsUp" if i % 2 else "thumbsDown"}}
            return [{"conversationId": f"c{i}", "messages": tree(i, asked, said(answer, **flags, **vote))}]
        if kind == "messages":
            return [{**row, "conversationId": f"c{i}"} for row in tree(i, asked, said(answer, **flags, rating=i % 2))]
        vote = {} if kind == "open_webui" else {"annotation": {"rating": 1 if i % 2 else -1}}
        chat = {"history": {"messages": {row["id"]: row for row in tree(i, asked, said(answer, **flags, **vote))}}}
        if kind == "open_webui_chat":
            return [{"id": f"c{i}", "chat": chat}]
        data, meta = {"rating": 1 if i % 2 else -1}, {"chat_id": f"c{i}", "message_id": f"a{i}-0"}
        return [{"id": f"f{i}", "data": data, "meta": meta, "snapshot": {"chat": {"chat": chat}}}]

    found = reads([row for i, (asked, answer) in enumerate(EACH) for row in rows(i, asked, answer)])

    assert found.counts["reject_reasons"] == {"broken_answer": 1}
    assert found.votes() == {pair: i % 2 == 1 for i, pair in enumerate(EACH) if i != 1}


def test_broken_answers_are_no_demonstrations_and_no_side_of_a_pair(reads):
    trees = [
        {"conversationId": f"c{i}", "messages": tree(i, asked, said("Wait.", error=i < 2), said(answer))}
        for i, (asked, answer) in enumerate(EACH)
    ]

    assert reads(trees, pairs_from=["regenerations"]).pairs() == [(*pair, "Wait.") for pair in EACH[2:]]
    found = reads(trees, unrated="demonstrations")
    assert sorted(found.votes()) == sorted([*EACH, *((asked, "Wait.") for asked, _ in EACH[2:])])
    assert found.counts["reject_reasons"] == {"broken_answer": 2}


@pytest.mark.parametrize("more", [{"error": "Timeout"}, {"status": "error"}])
def test_runs_of_langsmith_that_failed_are_refused(reads, more):
    runs = [
        {"id": f"r{i}", "run_type": "llm", "inputs": {"question": asked}, "outputs": {"output": answer}}
        | {"feedback": [{"key": "thumb", "score": 1}], **(more if i == 0 else {})}
        for i, (asked, answer) in enumerate(EACH)
    ]

    found = reads(runs)

    assert list(found.votes()) == EACH[1:]
    assert found.counts["reject_reasons"] == {"broken_answer": 1}


@pytest.mark.parametrize("is_apart", [False, True])
def test_corrections_of_langsmith_make_pairs_if_asked(reads, is_apart):
    runs, votes = [], []
    for i, (asked, answer) in enumerate(EACH):
        vote = {"key": "thumb", "score": 0, "correction": {"output": f"No, {answer}"}}
        run = {"id": f"r{i}", "run_type": "llm", "inputs": {"question": asked}, "outputs": {"output": answer}}
        runs.append(run if is_apart else run | {"feedback": [vote]})
        votes += [vote | {"id": f"f{i}", "run_id": f"r{i}"}] if is_apart else []

    found = reads([*votes, *runs])
    assert "votes come with corrected answers; pairs_from: [corrections] learns them" in found.counts["understood"]
    assert found.votes() == dict.fromkeys(EACH, False)
    asked_for = reads([*votes, *runs], pairs_from=["corrections"])
    pairs = [row for row in asked_for.rows if row["pair_id"] is not None]
    assert [json.loads(row["messages"])["completion"][0]["content"] for row in pairs] == [
        text for _, answer in EACH for text in (f"No, {answer}", answer)
    ]
    assert len(asked_for.rows) == 3 * len(EACH)


def test_a_score_that_was_corrected_is_no_answer(reads):
    asked, answer = EACH[0]
    vote = {"key": "thumb", "score": 0, "correction": {"score": 1}}
    run = {
        "id": "r",
        "run_type": "llm",
        "inputs": {"question": asked},
        "outputs": {"output": answer},
        "feedback": [vote],
    }

    assert reads([run], pairs_from=["corrections"]).votes() == {EACH[0]: False}


def test_messages_of_a_table_asked_for_again_make_pairs_if_asked(reads):
    def chat(i, asked, answer):
        first, second = said(answer), said("I don't know.")
        thanks = {"id": f"n{i}", "parentId": f"a{i}-0", "role": "user", "content": "Thanks."}
        return [*tree(i, asked, first, second), *([thanks] if i else [])]

    rows = [row for i, pair in enumerate(EACH) for row in chat(i, *pair)]

    found = reads(rows, pairs_from=["regenerations"])

    # In the first chat nobody went on, so the last answer is better; in the others the one that was gone on from.
    assert found.pairs() == [
        (EACH[0][0], "I don't know.", EACH[0][1]),
        *((asked, answer, "I don't know.") for asked, answer in EACH[1:]),
    ]
    for name, vote, num_pairs in (("a1-1", 1, 3), ("a1-1", 0, 4), ("a1-0", 1, 4), ("a1-0", 0, 3)):
        voted = [{**row, "rating": vote} if row["id"] == name else row for row in rows]
        assert reads(voted, pairs_from=["regenerations"]).counts["layouts"]["pairs"] == num_pairs


@pytest.mark.parametrize(
    "asked_as",
    [
        lambda asked: {"args": [asked], "kwargs": {}},
        lambda asked: {"args": [], "kwargs": {"question": asked, "top_k": 4}},
        lambda asked: {"args": [[{"role": "user", "content": asked}]], "kwargs": {"temperature": 0.1}},
    ],
)
def test_calls_that_langfuse_traced_are_questions(reads, asked_as):
    rows = [traced(i, asked_as(asked), answer) for i, (asked, answer) in enumerate(EACH)]

    assert reads(rows).votes() == {pair: i % 2 == 1 for i, pair in enumerate(EACH)}


def test_what_else_a_traced_call_was_given_stops(reads):
    with pytest.raises(ValueError, match="input.kwargs.context .* may be part of the question"):
        reads([traced(0, {"args": [], "kwargs": {"question": "Who?", "context": "A book."}}, "A wren.")])
    with pytest.raises(Exception, match="one argument that is the question"):
        reads([traced(0, {"args": ["Who?", "A book."], "kwargs": {}}, "A wren.")])


def traced(i, asked, answer):
    score = {"id": f"s{i}", "name": "thumb", "value": i % 2}
    return {
        "id": f"o{i}",
        "traceId": f"t{i}",
        "type": "GENERATION",
        "input": asked,
        "output": answer,
        "scores": [score],
    }


def test_records_packed_into_cells_are_unpacked(reads):
    def record(i, asked, answer):
        chat = {"history": {"messages": {row["id"]: row for row in tree(i, asked, said(answer))}}}
        parts = {"data": {"rating": 1 if i % 2 else -1}, "meta": {"message_id": f"a{i}-0"}, "snapshot": {"chat": chat}}
        return {"id": f"f{i}", **{name: json.dumps(part) for name, part in parts.items()}}

    found = reads([record(i, *pair) for i, pair in enumerate(EACH)])

    assert found.votes() == {pair: i % 2 == 1 for i, pair in enumerate(EACH)}


def test_a_chat_of_open_webui_may_be_a_list(reads):
    rows = [
        {"chat": {"messages": tree(i, asked, said(answer, annotation={"rating": 1}))}}
        for i, (asked, answer) in enumerate(EACH)
    ]

    assert reads(rows).votes() == dict.fromkeys(EACH, True)


def test_thoughts_in_the_markup_of_open_webui_are_no_answer():
    shown = '<details type="reasoning" done="true">\n<summary>Thought</summary>\n&gt; Birds &amp; so on.\n</details>\n'

    found = plain_message({"role": "assistant", "content": f"{shown}A wren."})

    assert found == {"role": "assistant", "content": "A wren.", "reasoning_content": "Birds & so on."}


def test_openai_preferences(reads):
    rows = [
        {"input": {"messages": [{"role": "user", "content": f"Which {i}?"}], "tools": []}}
        | {"preferred_output": [{"role": "assistant", "content": "A wren."}]}
        | {"non_preferred_output": [{"role": "assistant", "content": "A cod."}]}
        for i in range(3)
    ]

    found = reads(rows)

    assert found.pairs() == [(f"Which {i}?", "A wren.", "A cod.") for i in range(3)]


def test_of_several_choices_none_is_the_answer_that_was_voted_on(reads):
    def row(*answers):
        choices = [{"index": i, "message": {"role": "assistant", "content": text}} for i, text in enumerate(answers)]
        return {"request": {"messages": [{"role": "user", "content": answers[0]}]}, "response": {"choices": choices},
                "feedback": "up"}  # fmt: skip

    found = reads([row("A wren.", "A cod."), row("A tern."), row("An owl.", "An owl.")])

    assert found.votes() == {("A tern.", "A tern."): True, ("An owl.", "An owl."): True}
    assert found.counts["reject_reasons"] == {"ambiguous_vote": 1}


def test_thoughts_among_the_items_of_a_response_are_no_answer(reads):
    row = {"object": "response", "input": "Which bird?", "metadata": {"feedback": "down"}}
    row["output"] = [{"type": "reasoning", "id": "r", "summary": []}]
    row["output"] += [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "A wren."}]}]

    assert reads([row]).votes() == {("Which bird?", "A wren."): False}


def test_argilla_orders_that_name_fields(reads):
    fields = {"instruction": "Which bird?", "response-1": "A wren.", "response-2": "A cod.", "response-3": "A fly."}
    orders = [
        ["response-3", "response-1", "response-2"],
        [{"value": f"response-{i}", "rank": rank} for i, rank in ((1, 2), (2, 3), (3, 1))],
    ]

    for order in orders:
        found = reads([{"id": "1", "fields": fields, "responses": {"ranking": [{"value": order, "user_id": "ann"}]}}])

        answers = [pair[1:] for pair in found.pairs()]
        assert sorted(answers) == [("A fly.", "A cod."), ("A fly.", "A wren."), ("A wren.", "A cod.")]


def test_spans_whose_messages_are_attributes_each(reads):
    def span(i, reason):
        attributes = {"gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": f"Which {i}?"}
        attributes |= {"gen_ai.completion.0.role": "assistant", "gen_ai.completion.0.content": "A wren."}
        attributes["gen_ai.completion.0.finish_reason"] = reason
        return {"trace_id": f"t{i}", "span_id": f"s{i}", "name": "chat", "attributes": attributes}

    found = reads([span(0, "stop"), span(1, "length"), *({"span_id": f"s{i}", "vote": "down"} for i in range(2))])

    assert [(event["label"], event["is_complete"]) for event in found.events] == [(False, True), (False, False)]


def test_an_answer_says_itself_that_it_broke_off(reads):
    log = [
        {"messages": [{"role": "user", "content": f"Which {i}?"}], "label": True}
        | {"response": {"role": "assistant", "content": "A wren.", "stop_reason": reason}}
        for i, reason in enumerate(["end_turn", "max_tokens"])
    ]
    log += [{**log[0], "response": {"role": "assistant", "content": "A tern."}, "stop_reason": "max_tokens"}]

    assert [event["is_complete"] for event in reads(log).events] == [True, False, False]


def test_a_log_without_votes_or_answers_says_what_was_read(reads):
    log = [{"id": "1", "fields": {"instruction": "Which bird?", "response": "A wren."}, "responses": {}}]

    with pytest.raises(ValueError, match="found none in 1 records of argilla"):
        reads(log)


def test_votes_are_joined_by_the_id_of_an_interaction(reads):
    answers = [{"interaction_id": f"i{i}", "question": f"Which {i}?", "answer": "A wren."} for i in range(4)]
    votes = [{"interaction_id": f"i{i}", "thumbs": ["up", "down"][i % 2]} for i in range(4)]

    found = reads([*answers, *votes])

    assert found.votes() == {(f"Which {i}?", "A wren."): i % 2 == 0 for i in range(4)}


def test_a_table_of_messages_by_chat_and_one_of_votes(reads):
    texts = ["Which bird?", "A wren.", "And which fish?", "A cod."]
    messages = [
        {"id": f"m{i}", "chatId": "c", "role": ("user", "assistant")[i % 2], "content": text, "createdAt": i + 1}
        for i, text in enumerate(texts)
    ]
    votes = [{"chatId": "c", "messageId": f"m{i}", "isUpvoted": i == 1} for i in (1, 3)]

    found = reads([*messages, *votes])

    assert found.votes() == {("Which bird?", "A wren."): True, ("And which fish?", "A cod."): False}
