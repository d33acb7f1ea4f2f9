"""Edits of dvc.yaml and params.yaml as texts: what isn't named stays as it was, to the byte, comments too."""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipelines.graph import StageNode, stages_of
from pipelines.planning import ancestors

DEMO = ("demo_feedback", "demo_image_prompts")
"""Stages that only the demo has."""
_ANCHOR = re.compile(r"&(?P<name>\w+) (?P<value>\{.*\})$", re.MULTILINE)
_PLOT = re.compile(r"  - .*\{x:.*plots/")
_HEADING = re.compile(r"^ *# ---- .* ----$")


def stages_for(methods: Sequence[str], nodes: Sequence[StageNode]) -> set[str]:
    """Names of the stages that the methods need, without those that only the demo has."""
    own = [node.name for method in methods for node in stages_of(method, nodes)]
    return ancestors(nodes, own) - set(DEMO)


def graph_for(text: str, nodes: Sequence[StageNode], methods: Sequence[str], *, is_hub: bool) -> str:
    """dvc.yaml with what the methods need and nothing else.

    Args:
        text: dvc.yaml.
        nodes: its graph.
        methods: methods to keep.
        is_hub: whether the base model comes from the hub, so that `base_model` reads no folder.
    """
    kept = stages_for(methods, nodes)
    written = {out for node in nodes if node.name in kept for out in node.outs}
    known = {name for node in nodes for name in [node.name.partition("@")[2]] if name}
    groups = {name.partition("@")[0] for name in kept}
    document = _parse(text)
    gone = [("stages", name) for name in document["stages"] if name not in groups]
    lines = text.split("\n")
    dropped = _lines_of(document, gone, lines)
    for number, line in enumerate(lines):
        # An entry of a foreach over methods, such as `kto: {method: kto, ...}`.
        entry = re.match(r" {6,}(?P<key>\w+): \{.*start_from", line)
        if entry and entry["key"] in known and entry["key"] not in methods:
            dropped.add(number)
        if _PLOT.match(line):
            lines[number] = _plot_of(line, methods)
            if any(not _is_written(path, written) for path in re.findall(r"\bplots/[\w/.]+", lines[number])):
                dropped.add(number)
    removed = "\n".join(line for number, line in enumerate(lines) if number in dropped)
    found = _without(lines, dropped)
    for anchor in _ANCHOR.finditer(removed):
        # Its first alias takes its place.
        found = re.sub(rf"\*{anchor['name']}$", anchor[0].replace("\\", r"\\"), found, count=1, flags=re.MULTILINE)
    # A map that nothing is left of.
    found = re.sub(r"^ *<<: &(\w+)\n(?! {8})", "", found, flags=re.MULTILINE)
    found = re.sub(r"\n(#.*\n)*plots:\n$", "", found)
    if is_hub:
        found = found.replace(" --source {inputs.base_model}", "").replace('"${inputs.base_model}", ', "")
    return found


def params_for(text: str, values: Mapping[str, Any], sections: Iterable[str]) -> str:
    """params.yaml with other values, and without sections that nothing reads.

    Args:
        text: params.yaml.
        values: by dotted key; a mapping replaces what stands there, None with `null`.
        sections: dotted names of sections to leave out, where they stand there.
    """
    document = _parse(text)
    gone = {path for path in (tuple(name.split(".")) for name in sections) if _has(document, path)}
    # A section that nothing is left of goes as a whole.
    gone |= {
        path[:-1] for path in gone if len(path) > 1 and all((*path[:-1], key) in gone for key in document[path[0]])
    }
    lines = text.split("\n")
    trimmed = _without(lines, _lines_of(document, gone, lines))
    document = _parse(trimmed)
    for key, value in values.items():
        *folders, leaf = key.split(".")
        place = document
        for folder in folders:
            if not isinstance(place.get(folder), dict):
                place[folder] = {}
            place = place[folder]
        _set(place, leaf, value)
    stream = io.StringIO()
    _yaml().dump(document, stream)
    return _spaced(stream.getvalue())


def _plot_of(line: str, methods: Sequence[str]) -> str:
    """A plot that the demo draws of BCO, of the first method that has the like."""
    if "bco" in methods:
        return line
    wanted = r"\brewards/|calibration.csv" if "training/" in line or "evaluation/" in line else ""
    alike = [name for name in methods if name in {"dpo", "kto"} or not re.search(wanted or "$^", line)]
    return line.replace("/bco", f"/{alike[0]}") if alike else line


def _spaced(text: str) -> str:
    """With an empty line before each section and none within: those of the old text stand where its values ended."""
    found: list[str] = []
    for line in text.rstrip("\n").split("\n"):
        is_below_comment = bool(found) and found[-1].startswith("#")
        if not line.strip():
            found += [""] if is_below_comment else []
        else:
            begins = found and found[-1] and not is_below_comment and not line.startswith((" ", "-"))
            found += ["", line] if begins else [line]
    return "\n".join(found) + "\n"


def _set(place: Any, leaf: str, value: Any) -> None:
    """Set a value; comments beside entries of a mapping that stay are kept."""
    if isinstance(value, Mapping) and isinstance(place.get(leaf), dict):
        for key in [key for key in place[leaf] if key not in value]:
            del place[leaf][key]
        for key, part in value.items():
            _set(place[leaf], key, part)
    else:
        place[leaf] = dict(value) if isinstance(value, Mapping) else value


def _yaml() -> Any:
    # It comes with DVC, which edits these files by it as well; only commands that write them pay for its import.
    from ruamel.yaml import YAML
    from ruamel.yaml.representer import RoundTripRepresenter

    class Representer(RoundTripRepresenter):
        """Of our own, since what is added to ruamel's is for all of the process, DVC among it."""

    Representer.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null"))
    # PyYAML, which stages read them with, takes 1e-06 for a word and 1.0e-06 for a number.
    Representer.add_representer(
        float, lambda self, number: self.represent_scalar("tag:yaml.org,2002:float", _as_float(number))
    )
    yaml = YAML()
    yaml.Representer = Representer
    yaml.width = 120
    return yaml


def _as_float(number: float) -> str:
    text = repr(number)
    return text.replace("e", ".0e", 1) if "e" in text and "." not in text else text


def _parse(text: str) -> Any:
    return _yaml().load(text)


def _has(document: Any, path: Sequence[str]) -> bool:
    for part in path:
        if not isinstance(document, dict) or part not in document:
            return False
        document = document[part]
    return True


def _lines_of(document: Any, paths: Iterable[Sequence[str]], lines: Sequence[str]) -> set[int]:
    """Numbers of the lines of entries, each with the comment right above it."""
    found: set[int] = set()
    for path in paths:
        parent = document
        for part in path[:-1]:
            parent = parent[part]
        start, column = parent.lc.key(path[-1])
        end = start + 1
        while end < len(lines) and (not lines[end].strip() or len(lines[end]) - len(lines[end].lstrip()) > column):
            end += 1
        # A comment below it is of what follows.
        while end > start + 1 and _is_apart(lines[end - 1]):
            end -= 1
        while lines[start - 1].lstrip().startswith("#") and not _HEADING.match(lines[start - 1]):
            start -= 1
        found.update(range(start, end))
    return found


def _is_apart(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


def _without(lines: Sequence[str], dropped: set[int]) -> str:
    """The other lines, without headings that nothing is left under and with single empty lines."""
    kept: list[str] = []
    for number, line in enumerate(lines):
        if number in dropped or (not line.strip() and kept and not kept[-1].strip()):
            continue
        is_top = line and not line.startswith(" ")
        while kept and (_HEADING.match(line) or is_top) and (_HEADING.match(kept[-1]) or _ends_under_heading(kept)):
            kept.pop()
        kept.append(line)
    return "\n".join(kept).rstrip("\n") + "\n"


def _ends_under_heading(kept: Sequence[str]) -> bool:
    return len(kept) > 1 and not kept[-1].strip() and bool(_HEADING.match(kept[-2]))


def _is_written(path: str, written: set[str]) -> bool:
    return any(path == out or path.startswith(f"{out}/") for out in written)
