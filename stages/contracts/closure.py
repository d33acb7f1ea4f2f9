"""Which source files of this project a module runs, and a digest of each that only what runs can change."""

import ast
import hashlib
import io
import json
import os
import tokenize
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from stages.contracts.files import file_digest, write_text

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("stages", "pipelines")
_SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER, tokenize.TYPE_COMMENT}
_BLOCKS = frozenset({tokenize.INDENT, tokenize.DEDENT})
_OPENS, _CLOSES = frozenset("([{"), frozenset(")]}")


def code_listing(modules: Iterable[str | Path]) -> str:
    """The source that `modules` run, as a line `DIGEST  PATH` per file of `code_files`.

    A module may be followed by what is taken from it, "module:class", which then is a line of its own.

    Digests are of what a source does; see `meaning_digest`. They are kept in .cache by the bytes that they are of, for
    reading all words of a large stage takes a second.

    Raises:
        ValueError: a module has no file, or a file is no Python.
    """
    modules = list(modules)
    named = [module for module in modules if isinstance(module, str) and ":" in module]
    files = code_files(module if isinstance(module, Path) else module.partition(":")[0] for module in modules)
    memo = Path(os.environ.get("PLUMBLINE_CACHE", ".cache"), "code", f"{file_digest(Path(__file__))[:16]}.json")
    known = _read_memo(memo)
    found = {file: file_digest(ROOT / file) for file in files}
    new = {raw: meaning_digest(ROOT / file) for file, raw in found.items() if raw not in known}
    if new:
        write_text(memo, json.dumps({**_read_memo(memo), **new}))
    lines = {file.as_posix(): known.get(raw) or new[raw] for file, raw in found.items()}
    lines |= {name: hashlib.sha256(name.encode()).hexdigest()[:32] for name in named}
    return "".join(f"{digest}  {name}\n" for name, digest in lines.items())


def _read_memo(memo: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(memo.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def code_files(modules: Iterable[str | Path]) -> list[Path]:
    """Files of `modules` and of all modules of this project that they import, also inside functions.

    The `__init__.py` of a folder is left out where it holds a docstring or a table of lazy names alone. What is loaded
    by a name in a string isn't seen; a method's trainer, which is, is given by name.

    Args:
        modules: dotted names, such as "stages.tokenization", or files.

    Returns:
        Paths relative to the root of the project, sorted; a file that stands elsewhere keeps its whole path.

    Raises:
        ValueError: a module has no file.
    """
    seen: set[Path] = set()
    waiting = [
        module.resolve() if isinstance(module, Path) else _file_of(module) or _missing(module) for module in modules
    ]
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.add(file)
            waiting.extend(_imports(file, file.stat().st_mtime_ns))
    return sorted(file.relative_to(ROOT) if file.is_relative_to(ROOT) else file for file in seen)


def _missing(module: str) -> Path:
    raise ValueError(f"expected a module {module} in this project, found no file of that name")


@cache
def _imports(file: Path, _written: int) -> frozenset[Path]:
    found: set[Path] = set()
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{file}: expected Python, found {error}") from None
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = file.relative_to(ROOT).parts[: -node.level] if node.level and file.is_relative_to(ROOT) else ()
            module = ".".join([*above, *filter(None, [node.module])])
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        for name in names:
            found.update(path for path in (_file_of(name), *_packages_of(name)) if path)
    return frozenset(found)


def _packages_of(module: str) -> list[Path]:
    """The `__init__.py` of the folders that a module lies in, where they do more than name things lazily."""
    parts = module.split(".")
    if parts[0] not in PACKAGES:
        return []
    files = [ROOT.joinpath(*parts[:depth], "__init__.py") for depth in range(1, len(parts) + 1)]
    return [file for file in files if file.is_file() and _does_something(file, file.stat().st_mtime_ns)]


@cache
def _does_something(package: Path, _written: int) -> bool:
    """Whether the file of a package holds more than a docstring, and is no table of lazy names."""
    body = ast.parse(package.read_bytes()).body
    is_table = any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in body)
    return not is_table and any(not isinstance(node, ast.Expr) for node in body)


def _file_of(module: str) -> Path | None:
    if module.partition(".")[0] not in PACKAGES:
        return None
    parts = module.split(".")
    folder = ROOT.joinpath(*parts)
    file = folder / "__init__.py" if len(parts) > 2 and folder.is_dir() else folder.with_suffix(".py")
    return file if file.is_file() else None


def meaning_digest(file: Path) -> str:
    """Digest of a source file without what changes no result: comments, docstrings, blank lines and line breaks.

    Nor does the comma count that a formatter puts behind the last of several things in brackets. Its quotes count, and
    the parentheses that it puts around what it breaks.

    It is made of tokens and not of a syntax tree, so that any version of Python gives the same.

    Raises:
        ValueError: the file is no Python.
    """
    try:
        words = list(_words(file.read_text(encoding="utf-8")))
    except (tokenize.TokenError, SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: expected Python, found {error}") from None
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:32]


def _words(source: str) -> Iterator[str]:
    """The words of a source that say what it does."""
    line: list[tuple[int, str]] = []
    for kind, text in _tokens(source):
        line.append((kind, text))
        if kind == tokenize.NEWLINE:
            # A line of strings alone is a docstring; one that formats something runs it.
            if all(kind in _BLOCKS or (kind == tokenize.STRING and not _formats(text)) for kind, text in line[:-1]):
                line = [token for token in line if token[0] in _BLOCKS]
            yield from (text for _, text in line)
            line = []
    yield from (text for _, text in line)


def _formats(string: str) -> bool:
    """Whether a string has a prefix such as f, by which values stand in it."""
    return not {"f", "t"}.isdisjoint(string.partition('"')[0].partition("'")[0].lower())


def _tokens(source: str) -> Iterator[tuple[int, str]]:
    """Kind and text of each token that counts, with an f-string as one token, as Python 3.11 has it."""
    # As the tokenizer counts lines; `splitlines` also ends one at a form feed.
    lines = io.StringIO(source).readlines()
    starts: list[tuple[int, int]] = []
    before: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        name = tokenize.tok_name[token.type]
        if name.endswith("STRING_START"):
            starts.append(token.start)
        elif name.endswith("STRING_END"):
            start = starts.pop()
            if not starts:
                before.append((tokenize.STRING, _between(lines, start, token.end)))
        elif starts or token.type in _SILENT:
            continue
        elif token.type in {tokenize.INDENT, tokenize.DEDENT, tokenize.NEWLINE}:
            before.append((token.type, name))
        else:
            before.append((token.type, token.string))
    yield from _without_trailing_commas(before)


def _between(lines: list[str], start: tuple[int, int], end: tuple[int, int]) -> str:
    (first, left), (last, right) = start, end
    if first == last:
        return lines[first - 1][left:right]
    return "".join([lines[first - 1][left:], *lines[first : last - 1], lines[last - 1][:right]])


def _without_trailing_commas(tokens: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """The tokens without the comma that a formatter puts behind the last of several things in brackets.

    A comma behind a single thing stays: it makes a tuple.
    """
    commas, lambdas = [0], [0]
    for place, (kind, text) in enumerate(tokens):
        if kind == tokenize.OP and text in _OPENS:
            commas.append(0)
            lambdas.append(0)
        elif kind == tokenize.OP and text in _CLOSES and len(commas) > 1:
            commas.pop()
            lambdas.pop()
        elif kind == tokenize.NAME and text == "lambda":
            lambdas[-1] += 1
        elif kind == tokenize.OP and text == ":" and lambdas[-1]:
            lambdas[-1] -= 1
        elif kind == tokenize.OP and text == ",":
            following = tokens[place + 1] if place + 1 < len(tokens) else (tokenize.ENDMARKER, "")
            if commas[-1] and following[0] == tokenize.OP and following[1] in _CLOSES:
                continue
            # Commas between the arguments of a lambda don't part things in brackets.
            commas[-1] += not lambdas[-1]
        yield kind, text
