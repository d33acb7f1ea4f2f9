"""Tables as other tools write them: rows found whatever way the text lies, or refused with what was found."""

import csv
import io
import json

import pytest

COLUMNS = {
    "prompt": [f"Which bird is number {i}?" for i in range(6)],
    "completion": [f"Bird {i}, of course." for i in range(6)],
    "label": ["up", "down", "up", "up", "down", "up"],
}
ROWS = [dict(zip(COLUMNS, cells, strict=True)) for cells in zip(*COLUMNS.values(), strict=True)]
VOTES = {(row["prompt"], row["completion"]): row["label"] == "up" for row in ROWS}
FIELDS = [{"name": name, "type": "string"} for name in ("index", *COLUMNS)]


def as_csv(rows=ROWS, *, end="\n", above=""):
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return above + text.getvalue()


WAYS = {
    "columns": {name: {str(i): cell for i, cell in enumerate(cells)} for name, cells in COLUMNS.items()},
    "index": {str(i): row for i, row in enumerate(ROWS)},
    "ids": {f"chat-{i}": row for i, row in enumerate(ROWS)},
    "split": {"columns": list(COLUMNS), "index": [*range(6)], "data": [[*row.values()] for row in ROWS]},
    "table": {"schema": {"fields": FIELDS}, "data": [{"index": i, **row} for i, row in enumerate(ROWS)]},
    "lists": COLUMNS,
}


@pytest.mark.parametrize("name", ["log.json", "log.jsonl"])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("way", WAYS)
def test_a_table_in_one_object_is_its_rows(reads, way, indent, name):
    found = reads(json.dumps(WAYS[way], indent=indent), name)

    assert found.votes() == VOTES
    assert not found.rejects


def test_the_only_row_of_a_log_is_no_table(reads):
    row = {"prompt": ["Who?", "Where?"], "completion": ["A wren.", "In a tree."], "label": "up"}

    assert [row["label"] for row in reads([row]).rows] == [True]


def test_lists_of_cells_without_names_are_refused_and_told_of_it(reads):
    with pytest.raises(Exception, match="write objects, or CSV with a header"):
        reads(json.dumps([list(row.values()) for row in ROWS]), "log.json")


def test_lines_cut_out_of_an_array_are_rows(reads):
    assert reads(",\n".join(map(json.dumps, ROWS))).votes() == VOTES


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\N{ZERO WIDTH NO-BREAK SPACE}"])
def test_lines_end_as_any_system_ends_them(reads, tmp_path, end, mark):
    rows = [{**row, "completion": f"{row['completion']}\nAnd more."} for row in ROWS]
    path = tmp_path / "given.csv"
    path.write_text(as_csv(rows, end=end, above=mark), encoding="utf-8", newline="")

    found = reads(path.read_bytes().decode(), "log.csv")

    assert found.votes() == {(asked, f"{said}\nAnd more."): label for (asked, said), label in VOTES.items()}


def test_a_table_without_a_header_is_refused(reads):
    with pytest.raises(ValueError, match=r"reads like a row \(up\); write the names of the columns above it"):
        reads(as_csv().partition("\n")[2], "log.csv")


@pytest.mark.parametrize("above", ["# export of 2025\n", "Feedback,,\n,,\n"])
def test_lines_above_a_header_are_refused(reads, above):
    with pytest.raises(ValueError, match="rows of 3 cells; take away the lines above the header"):
        reads(as_csv(above=above).replace(", of course", ""), "log.csv")


@pytest.mark.parametrize("way", ["feedback_stats", "feedback", "columns", "columns without ids"])
def test_tables_of_langsmith_are_runs_and_votes(reads, way):
    def cells(i, row):
        score = int(row["label"] == "up")
        packed = {
            "inputs": json.dumps({"question": row["prompt"]}),
            "outputs": json.dumps({"output": row["completion"]}),
        }
        flat = {"inputs.question": row["prompt"], "outputs.output": row["completion"], "feedback.thumb": score}
        return {
            "feedback_stats": {"id": i, **packed, "feedback_stats": json.dumps({"thumb": {"n": 1, "avg": score}})},
            "feedback": {"id": i, **packed, "feedback": json.dumps([{"key": "thumb", "score": score}])},
            "columns": {"id": i, **flat, "execution_time": 1.5},
            "columns without ids": flat,
        }[way]

    found = reads(as_csv([cells(f"r{i}", row) for i, row in enumerate(ROWS)]), "log.csv")

    assert found.votes() == VOTES


def test_scores_of_a_table_of_langsmith_are_told_apart(reads):
    rows = [
        {
            "input.question": row["prompt"],
            "outputs.output": row["completion"],
            "feedback.right": int(row["label"] == "up"),
            "feedback.tone": 1,
        }
        for row in ROWS
    ]

    with pytest.raises(ValueError, match=r"several scores: right \(6\), tone \(6\)"):
        reads(as_csv(rows), "log.csv")
    assert reads(as_csv(rows), "log.csv", score="right").votes() == VOTES


def test_two_tables_in_one_object_are_joined(reads):
    answers = [{"id": f"m{i}", "prompt": row["prompt"], "response": row["completion"]} for i, row in enumerate(ROWS)]
    votes = [{"answer_id": f"m{i}", "vote": row["label"]} for i, row in enumerate(ROWS)]

    assert reads(json.dumps({"answers": answers, "votes": votes}), "log.json").votes() == VOTES
