"""The import closure: what a stage runs, and nothing of the methods beside it; and what of a source counts."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.contracts import closure
from stages.contracts.closure import ROOT, code_files, code_listing, meaning_digest
from stages.contracts.stage import parse_listing


def names(*modules):
    return {path.as_posix() for path in code_files(modules)}


def test_follows_imports_also_inside_functions():
    found = names("stages.density_ratio")

    assert {"stages/density_ratio.py", "stages/contracts/stage.py", "stages/udm/classifier.py"} <= found
    assert not any(path.endswith("__init__.py") for path in found)


def test_training_does_not_run_a_method_that_is_not_named():
    assert "stages/losses/bco.py" not in names("stages.training")
    assert "stages/losses/bco.py" in names("stages.training", "stages.trainers.bco.trainer")


def test_a_module_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"stages\.nothing"):
        code_files(["stages.nothing"])


# ---- digests ----


@pytest.fixture(scope="module")
def digest(tmp_path_factory):
    """The digest of a text, as of a file."""
    file = tmp_path_factory.mktemp("source") / "module.py"

    def digest_of(source):
        file.write_text(source, encoding="utf-8")
        return meaning_digest(file)

    return digest_of


PLAIN = "def f(a, b):\n    return a + b\n"


@pytest.mark.parametrize(
    "written",
    [
        "# why\ndef f(a, b):\n    return a + b\n",
        "def f(a, b):  # why\n    return a + b  # what\n# end\n",
        '"""What it is for."""\n\ndef f(a, b):\n    """What it gives."""\n    return a + b\n',
        "\n\n\ndef f(a, b):\n\n    return a + b\n\n\n",
        "def f(\n    a,\n    b,\n):\n    return a + b\n",
        "def f(a, b):\n    return (\n        a + b\n    )\n".replace("(\n        a + b\n    )", "a \\\n        + b"),
        "def f(a, b):\n  return a + b\n",
        "def f(a,b):\n    return a+b",
        "def f(a, b):\n    return a + b\n    'a text alone' \"and another\"\n",
        "def f(a, b):\r\n    return a + b\r\n",
    ],
)
def test_what_changes_no_result_changes_no_digest(digest, written):
    assert digest(written) == digest(PLAIN)


@pytest.mark.parametrize(
    "written",
    [
        "def f(a, b):\n    return a - b\n",
        "def f(b, a):\n    return a + b\n",
        "def f(a, b=1):\n    return a + b\n",
        "def f(a, b):\n    return a + b,\n",
        "def f(a, b):\n    return (a + b,)\n",
        "def f(a, b):\n    return a + b\nf(1, 2)\n",
        "def f(a, b):\n    f'{a.pop()}'\n    return a + b\n",
        "def f(a, b):\n    return 'a' + b\n",
        "async def f(a, b):\n    return a + b\n",
    ],
)
def test_what_may_change_a_result_changes_the_digest(digest, written):
    assert digest(written) != digest(PLAIN)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("if a:\n    b()\nc()\n", "if a:\n    b()\n    c()\n"),
        ("x = (a)\n", "x = (a,)\n"),
        ("x = (lambda a, b: a)\n", "x = (lambda a, b: a,)\n"),
        ("x[a]\n", "x[a,]\n"),
        ("x = 'a, b'\n", "x = 'a,b'\n"),
        ("x = f'{a}  {b}'\n", "x = f'{a} {b}'\n"),
        ("x = f'{a!r}'\n", "x = f'{a}'\n"),
        ("x = f'a{(lambda: 1)()}'\n", "x = f'a{(lambda: 2)()}'\n"),
        ("x = '''\n# no comment\n'''\n", "x = '''\n'''\n"),
        ("x = 'a' 'b'\n", "x = 'a', 'b'\n"),
        ("x = b'a'\n", "x = 'a'\n"),
        ("x = a\nb = c\n", "x = a; b = d\n"),
        ("x = '\x0c'\ny = f'{a}\x0c{b}'\n", "x = '\x0c'\ny = f'{a}\x0c{c}'\n"),
        ("x = '\u2028'\ny = f'''{a}\n{b}'''\n", "x = '\u2028'\ny = f'''{a}\n{c}'''\n"),
    ],
)
def test_sources_of_another_meaning_have_another_digest(digest, one, other):
    assert digest(one) != digest(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = [a, b]\n", "x = [\n    a,\n    b,\n]\n"),
        ("x = [(lambda a, b: a), c]\n", "x = [(lambda a, b: a), c,]\n"),
        ("x = {a: b, c: d}\n", "x = {a: b, c: d,}\n"),
        ("x = f(a, *b, c=d)\n", "x = f(\n    a,\n    *b,\n    c=d,\n)\n"),
        ("from a import (b, c)\n", "from a import (\n    b,\n    c,\n)\n"),
    ],
)
def test_the_comma_that_a_formatter_puts_behind_the_last_of_several_does_not_count(digest, one, other):
    assert digest(one) == digest(other)


@pytest.mark.parametrize("source", ["x = (\n", "x = '''\n", "def f():\n        a\n    b\n"])
def test_what_is_no_python_is_named(digest, source):
    with pytest.raises(ValueError, match=r"module\.py: expected Python, found"):
        digest(source)


SOURCES = [
    ROOT / "stages" / name
    for name in ("code.py", "contracts/closure.py", "contracts/stage.py", "rows/pairs.py", "trainers/core/base.py")
]


def lines_between_statements(source):
    """Numbers of the lines behind which a line may be put in, for no bracket or string is open there."""
    found, open_at = [], 0
    tokens = closure.tokenize.generate_tokens(iter(source.splitlines(keepends=True)).__next__)
    for token in tokens:
        if token.type == closure.tokenize.NEWLINE and token.start[0] > open_at:
            open_at = token.start[0]
            found.append(open_at)
    return found


@settings(deadline=None, max_examples=25)  # some of the files take half a second
@given(file=st.sampled_from(SOURCES), seed=st.integers(0, 2**32))
def test_comments_and_blank_lines_anywhere_in_real_sources_change_no_digest(digest, file, seed):
    chance, source = random.Random(seed), file.read_text(encoding="utf-8")
    lines = source.splitlines()
    for number in sorted(chance.sample(lines_between_statements(source), k=3), reverse=True):
        lines[number - 1] += chance.choice(["  # why", "", "  "])
        lines.insert(number, chance.choice(["# what", "        # deeper (", "", "   "]))

    assert digest("\n".join(lines)) == digest(source)


@settings(deadline=None, max_examples=25)  # some of the files take half a second
@given(file=st.sampled_from(SOURCES), seed=st.integers(0, 2**32))
def test_another_name_or_number_anywhere_in_real_sources_changes_the_digest(digest, file, seed):
    chance, source = random.Random(seed), file.read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    kinds = {closure.tokenize.NAME, closure.tokenize.NUMBER}
    tokens = [t for t in closure.tokenize.generate_tokens(iter(lines).__next__) if t.type in kinds]
    token = chance.choice(tokens)
    line = lines[token.start[0] - 1]
    lines[token.start[0] - 1] = line[: token.end[1]] + "0" + line[token.end[1] :]

    assert digest("".join(lines)) != digest(source)


def other_pythons():
    """Interpreters on this machine, of any version."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [str(path) for path in sorted(versions.glob("3.*/bin/python3"))]
    return found + [path for minor in range(11, 20) if (path := shutil.which(f"python3.{minor}"))]


_DIGESTS = """
import json, sys
if sys.version_info < (3, 11):
    sys.exit(3)
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from stages.contracts.closure import meaning_digest
print(json.dumps([list(sys.version_info[:2]), [meaning_digest(Path(file)) for file in sys.argv[2:]]]))
"""
# Nested, over several lines, beside letters of several bytes, with quotes and a form feed.
_F_STRINGS = """# no end of line behind the last comment
x = f'ä{a!r:>{width}}ö' 'b' f"{{no}} {f'{b}' + 'ü'}"
y = f'''{
    {'a': 1}['a']
} # no comment
{f"{f'{x}'}"}''' + rf'\\d{x}'
'\x0c'
z = (f"{lambda_}", f"\x0c{x}")
def f(
    a, b,  # one each
):
    '''Docstring.'''
    f'{a()}'
    return x[a, b,], (a,), lambda c, d: (c, d,)
if x:
    pass
# end"""


@pytest.mark.slow
def test_every_python_gives_the_same_digests(tmp_path):
    strings = tmp_path / "strings.py"
    strings.write_text(_F_STRINGS, encoding="utf-8")
    files = [strings, *sorted((ROOT / "stages").rglob("*.py"))]
    here = [meaning_digest(file) for file in files]
    seen = set()

    for python in other_pythons():
        command = [python, "-c", _DIGESTS, str(ROOT), *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONUTF8": "1"})
        if done.returncode in {3, 127}:  # too old, or a name that leads to no interpreter
            continue
        assert done.returncode == 0, done.stderr
        version, found = json.loads(done.stdout)
        if tuple(version) != sys.version_info[:2]:
            seen.add(tuple(version))
        assert {str(file) for file, a, b in zip(files, here, found, strict=True) if a != b} == set(), version
    if not seen:
        pytest.skip("no other Python from 3.11 on this machine")


# ---- listings ----


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PLUMBLINE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.usefixtures("cache")
def test_a_listing_has_a_digest_per_file_and_one_per_name():
    found = parse_listing(code_listing(["stages.gate", "stages.contracts.stage:Section"]))

    assert set(found) == names("stages.gate") | {"stages.contracts.stage:Section"}
    assert found["stages/gate.py"] == meaning_digest(ROOT / "stages" / "gate.py")
    assert code_listing(["stages.contracts.stage:Section"]) != code_listing(["stages.contracts.stage:Input"])


def test_digests_are_kept_by_the_bytes_that_they_are_of(cache, monkeypatch):
    first = code_listing(["stages.gate"])
    monkeypatch.setattr(closure, "meaning_digest", None)

    again = code_listing(["stages.gate"])

    assert again == first
    assert len(list((cache / "code").iterdir())) == 1


def test_a_memo_that_was_damaged_is_made_anew(cache):
    first = code_listing(["stages.gate"])
    (memo,) = (cache / "code").iterdir()
    memo.write_text("{")

    assert code_listing(["stages.gate"]) == first
    assert json.loads(memo.read_text())


@pytest.mark.usefixtures("cache")
def test_a_file_from_elsewhere_keeps_its_path(tmp_path):
    own = tmp_path / "own.py"
    own.write_text("import stages.contracts.files\n")

    found = parse_listing(code_listing([own]))

    assert set(found) == {str(own), "stages/contracts/files.py"}
