"""Reading logs: every format gives the same rows, and what is wrong with a row costs that row alone."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.text import log_files
from stages.text.log_files import LogFile, parse_object, read_log
from stages.text.log_sources import open_log, parse_hub_source
from stages.text.reasons import RejectedRowError

ROWS = [{"prompt": "p", "completion": "c\nd", "label": "up"}, {"prompt": "q, r", "completion": '"e"', "label": "down"}]


def read(path, **options):
    return list(read_log([LogFile(path, path.name)], **options))


def reasons(path, data, **options):
    path.write_bytes(data)
    return [row.error.reason if row.error else "" for row in read(path, **options)]


def write_csv(path, separator=","):
    quoted = [[cell.replace('"', '""') for cell in row.values()] for row in ROWS]
    lines = [separator.join(ROWS[0]), *(separator.join(f'"{cell}"' for cell in cells) for cells in quoted)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_arrow(path, kind):
    table = pa.Table.from_pylist(ROWS)
    with pa.OSFile(str(path), "wb") as file, kind(file, table.schema) as writer:
        writer.write_table(table)


WRITERS = {
    "log.jsonl": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in ROWS)),
    "crlf.ndjson": lambda path: path.write_bytes(b"\r\n".join(json.dumps(row).encode() for row in ROWS)),
    "bom.jsonl": lambda path: path.write_text(
        "\ufeff" + "\n\n".join(json.dumps(row) for row in ROWS), encoding="utf-8"
    ),
    "array.json": lambda path: path.write_text(json.dumps(ROWS, indent=2)),
    "lines.json": lambda path: path.write_text("\n".join(json.dumps(row) for row in ROWS)),
    "log.csv": write_csv,
    "log.TSV": lambda path: write_csv(path, "\t"),
    "log.jsonl.gz": lambda path: path.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in ROWS).encode())),
    "log.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "file.arrow": lambda path: write_arrow(path, pa.ipc.new_file),
    "stream.arrow": lambda path: write_arrow(path, pa.ipc.new_stream),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path, name):
    WRITERS[name](tmp_path / name)

    assert [row.row for row in read(tmp_path / name)] == ROWS


def test_rows_are_told_by_the_line_on_which_they_begin(tmp_path):
    write_csv(tmp_path / "a.csv")
    (tmp_path / "b.json").write_text(json.dumps(ROWS, indent=0))
    (tmp_path / "c.jsonl").write_text("\n" + json.dumps(ROWS[0]) + "\n\n" + json.dumps(ROWS[1]))

    assert [row.line for row in read(tmp_path / "a.csv")] == [2, 4]
    assert [row.line for row in read(tmp_path / "b.json")] == [2, 7]
    assert [row.line for row in read(tmp_path / "c.jsonl")] == [2, 4]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": NaN}', "not_finite"),
        (b'{"a": -Infinity}', "not_finite"),
        (b'{"a": 1e999}', "not_finite"),
        (b'{"a": 1, "a": 2}', "duplicate_keys"),
        (b'{"a": {"b": 1, "b": 1}}', "duplicate_keys"),
        (b'{"a": "\\ud800"}', "lone_surrogate"),
        (b'{"a": "\\udc00\\ud800"}', "lone_surrogate"),
        (b'{"a": "x\\u0000"}', "nul_character"),
        (b'{"a": "\xff\xfe"}', "bad_utf8"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "too_deep"),
        (b'{"a": ' + b"[" * 90_000 + b"]" * 90_000 + b"}", "too_deep"),
        (b'{"a": ' + b"1" * 5000 + b"}", "json_invalid"),
        (b"[1]", "not_an_object"),
        (b"null", "not_an_object"),
        (b"{'a': 1}", "json_invalid"),
        (b'{"a": "' + b"x" * 200_000 + b'"}', "row_too_long"),
    ],
)
def test_a_fault_in_one_row_costs_that_row_alone(tmp_path, text, reason):
    data = b'{"a": 1}\n' + text + b'\n{"a": "\\ud83d\\ude00 \\\\ud800 \\\\u0000"}\n'

    assert reasons(tmp_path / "log.jsonl", data, max_row_bytes=200_004) == ["", reason, ""]


def test_big_numbers_keep_every_digit():
    assert parse_object('{"id": 123456789012345678901234567890}') == {"id": 123456789012345678901234567890}


def test_a_fault_in_one_element_of_an_array_costs_that_element_alone(tmp_path):
    data = b'[{"a": 1}, {"a": NaN}, 3, {"a": 1, "a": 1}, {"a": 2}]'

    assert reasons(tmp_path / "log.json", data) == ["", "not_finite", "not_an_object", "duplicate_keys", ""]


def test_faults_of_csv_cost_their_row_alone(tmp_path):
    data = b'prompt,label\na,up\nb\n"x"y,up\nc,\xff\nd,\x00\ne,down\n'

    found = reasons(tmp_path / "log.csv", data)

    assert found == ["", "wrong_number_of_cells", "csv_invalid", "bad_utf8", "nul_character", ""]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_log_cut_anywhere_loses_at_most_its_last_row(tmp_path_factory, data):
    whole = "".join(
        json.dumps({"prompt": f"p{i} \u00e9", "label": i}, ensure_ascii=False) + "\n" for i in range(5)
    ).encode()
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    path = tmp_path_factory.mktemp("cut") / "log.jsonl"
    path.write_bytes(cut)

    rows = read(path)

    whole_rows = cut.count(b"\n")
    assert [row.row["label"] for row in rows[:whole_rows]] == list(range(whole_rows))
    for row in rows[whole_rows:]:
        assert row.row is not None or row.error.reason in {"json_truncated", "bad_utf8"}


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_no_bytes_stop_the_reader(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "log.jsonl"
    path.write_bytes(b'{"a": 1}\n' + data + b'\n{"a": 2}\n')

    rows = read(path)

    assert rows[0].row == {"a": 1}
    assert rows[-1].row == {"a": 2}
    assert all(row.text.encode() is not None for row in rows)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("log.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 5000, mtime=0)[:40], "damaged or cut off"),
        ("log.parquet", b"PAR1 nothing", "damaged or cut off"),
        ("log.arrow", b"nothing", "damaged or cut off"),
        ("log.json", b'[{"a": 1}, {"a"', "log.json:1.*repair it"),
        ("log.json", b'[{"a": 1}', "cut off"),
        ("log.csv", b"a,a\n1,2\n", "names each column once"),
        ("log.txt", b"hello", "expected a log of a known kind"),
        ("log.parquet.gz", b"", "expected a log of a known kind"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)

    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


def test_text_in_a_table_that_is_no_utf8_costs_its_row_alone(tmp_path):
    column = pa.StringArray.from_buffers(3, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb"))
    table = pa.table({"prompt": column})
    with pa.OSFile(str(tmp_path / "log.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)

    rows = read(tmp_path / "log.arrow")

    assert [row.row for row in rows] == [{"prompt": "a"}, None, {"prompt": "b"}]


def names(feedback, source=None):
    with open_log(feedback, source) as log:
        return [file.name for file in log.files]


def test_a_folder_is_every_known_file_below_it_in_order(tmp_path):
    for name in ("b/2.jsonl", "b/1.csv", "a.parquet", "notes.txt", ".hidden.jsonl", "_tmp/x.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    assert names(tmp_path) == ["a.parquet", "b/1.csv", "b/2.jsonl"]
    with open_log(tmp_path, None) as log:
        assert set(log.unread) == {"notes.txt", ".hidden.jsonl", "_tmp/x.jsonl"}
    assert names(tmp_path, "b/*.jsonl") == ["b/2.jsonl"]


def test_urls_are_fetched_through_fsspec(tmp_path):
    (tmp_path / "logs").mkdir()
    for name in ("2.jsonl", "1.jsonl", "x.txt"):
        (tmp_path / "logs" / name).write_text('{"prompt": "p"}\n')
    url = f"file://{tmp_path}/logs"

    assert names(tmp_path, url) == ["1.jsonl", "2.jsonl"]
    assert names(tmp_path, f"{url}/*2.jsonl") == ["2.jsonl"]
    with open_log(tmp_path, f"{url}/1.jsonl") as log:
        assert [row.row for row in read_log(log.files)] == [{"prompt": "p"}]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing/*.jsonl", "found none"),
        ("../*.jsonl", "below"),
        ("/etc/*.json", "below"),
        ("file:///nowhere/at/all.jsonl", "can't be read"),
        ("file:///nowhere/*.jsonl", "found no files there"),
        ("nosuch://bucket/x", "can't be read"),
        ("hf:org/name", "the revision is needed"),
    ],
)
def test_a_source_that_leads_nowhere_is_one_sentence(tmp_path, source, message):
    with pytest.raises(ValueError, match=message):
        names(tmp_path, source)


def test_missing_feedback_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="expected feedback at .*absent"):
        names(tmp_path / "absent")
    with pytest.raises(ValueError, match="expected a file of a known kind"):
        names(tmp_path)
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(ValueError, match="expected a folder"):
        names(tmp_path / "a.jsonl", "*.jsonl")


def test_hub_sources_name_a_revision():
    assert parse_hub_source("hf:org/name@abc123") == ("org/name", None, "abc123", "train")
    assert parse_hub_source("hf:org/name/subset@abc123:test") == ("org/name", "subset", "abc123", "test")
    assert parse_hub_source("hf:name@v1.0:train") == ("name", None, "v1.0", "train")
    with pytest.raises(ValueError, match="name one of its commits"):
        parse_hub_source("hf:org/name@")


def test_reasons_are_of_the_closed_list():
    with pytest.raises(ValueError, match="add it there"):
        RejectedRowError("because", "no")


DOCUMENTS = {
    "an array": [{"a": 1.5, "b": ["x", {"c": None}]}, {"a": True}, 7],
    "rows below keys": {"page": 1, "result": {"items": [{"a": 1}, {"a": 2}], "none": [], "more": [{"a": 3}]}},
    "a repeated key": '[\n{"a": 1, "a": 2},\n{"a": 3}]',
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_long_document_is_read_object_by_object_as_a_short_one_is_at_once(tmp_path, monkeypatch, name):
    document = DOCUMENTS[name]
    path = tmp_path / "log.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document, indent=1))
    file = LogFile(path, "log.json")

    at_once = [(row.row, row.error and row.error.reason) for row in read_log([file])]
    monkeypatch.setattr(log_files, "STREAMED_BYTES", 8)
    tallies = {}
    streamed = [(row.row, row.error and row.error.reason) for row in read_log([file], tallies=tallies)]

    assert streamed == at_once
    assert tallies["log.json"].form.startswith("JSON, streamed")


def test_a_fault_in_a_long_document_stops_with_its_place(tmp_path, monkeypatch):
    (tmp_path / "log.json").write_text('[\n{"a": 1},\n{"a": NaN}]')
    (tmp_path / "lines.json").write_text('{"a": 1}\n{"a": 2}\n')
    monkeypatch.setattr(log_files, "STREAMED_BYTES", 8)

    with pytest.raises(ValueError, match=r"log.json: expected JSON, found a fault .*write JSON lines"):
        list(read_log([LogFile(tmp_path / "log.json", "log.json")]))
    assert len(list(read_log([LogFile(tmp_path / "lines.json", "lines.json")]))) == 2
