"""Makes the graph and its choices those of a log and a model: what is found, what is chosen, what is written."""

import re
import shlex
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import chdir
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from pipelines.adoption.base_models import BaseModel, look_at
from pipelines.adoption.choices import choose
from pipelines.adoption.describe import choices_text, survey_text
from pipelines.adoption.survey import Survey, survey
from pipelines.adoption.texts import DEMO, graph_for, params_for, stages_for
from pipelines.checks import graph_problems
from pipelines.dvc_process import run_dvc
from pipelines.graph import StageNode, read_graph
from pipelines.leftovers import pointer_of
from pipelines.overrides import overridden
from pipelines.params import InputsParams, Params, load_params
from pipelines.processes import ProcessGroups
from stages.contracts.files import files_below, tree_digest, write_text
from stages.contracts.stage import PARAMS_FILE
from stages.trainers import METHODS

GRAPH_FILE = Path("dvc.yaml")
LOCK_FILE = Path("dvc.lock")
DATA = Path("data")
SMALL_BYTES = 2 * 10**9
"""Weights up to this size are put under DVC; larger ones stay where they are."""
NO_TEMPLATE = "no_chat_template"
"""Why rows are rejected whose conversation the model has no template for."""
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)
"""For models that have none."""
_IMAGES = ("image_prompts", "base_diffusion", "diffusion_evaluation", "diffusion_report")


def adopt(
    log: str,
    model: str,
    *,
    overrides: Sequence[str] = (),
    methods: Sequence[str] = (),
    encoder: str | None = None,
    dry_run: bool = False,
    force: bool = False,
) -> int:
    """Look at a log and a model; print what was understood and chosen; write it, and put both under DVC.

    Args:
        log: file or folder.
        model: folder of a model, or owner/name[@REVISION] of one of the hub.
        overrides: values of params.yaml that decide how the log is read, or that are to stand there whatever is chosen.
        methods: methods to keep in the graph; none takes the one that fits the log best.
        encoder: folder or repository@COMMIT of the encoder of prompts.
        dry_run: print only.
        force: write over a params.yaml or dvc.yaml that somebody changed.

    Returns:
        Exit status, 0.

    Raises:
        ValueError: log or model can't be used, something is unclear, or files were changed.
    """
    load_params()  # which names what is wrong before anything is looked at
    path = _existing(log)
    if not force and not dry_run:
        refuse_changed()
    text = overridden(overrides)
    with TemporaryDirectory() as folder:
        artifact = Path(folder) / "base_model"
        found_model = look_at(model, artifact)
        text, found = _surveyed(path, artifact, text)
    print(survey_text(found, found_model))
    _refuse_rejects(found, _loaded(text))
    chosen = choose(found, found_model, methods=methods, encoder=encoder)
    sources = {"feedback": path} | ({"base_model": found_model.folder} if found_model.folder else {})
    places = {key: _place_of(source) for key, source in sources.items()}
    values = {**_inputs(found_model, places), **chosen.values}
    new_params, graph = _written(text, _whole_graph(chosen.methods), values, overrides)
    print(choices_text(chosen, found_model, {key: str(place) for key, place in places.items()}))
    if overrides:
        print(f"  above all that, as --set says: {', '.join(overrides)}")
    if dry_run:
        print("\nnothing is written; without --dry-run it is")
        return 0
    for key, source in sources.items():
        _put_under_dvc(source, places[key], is_needed=key == "feedback", force=force)
    _write(new_params, graph)
    print(_next_steps())
    return 0


def _surveyed(log: Path, artifact: Path, text: str) -> tuple[str, Survey]:
    """What is known of a log, and params.yaml with a template where the model has none for its conversations."""
    try:
        found = survey(log, artifact, _loaded(text))
        if NO_TEMPLATE not in found.counts["reject_reasons"]:
            return text, found
    except ValueError as error:
        if NO_TEMPLATE not in str(error):
            raise
    print("the log holds conversations, and the model has no template for them: each turn gets its speaker's name\n")
    text = params_for(text, {"normalization.chat_template": PLAIN_TEMPLATE}, ())
    return text, survey(log, artifact, _loaded(text))


def _existing(log: str) -> Path:
    if "://" in log or log.startswith("hf:"):
        raise ValueError(f"expected a file or folder of this machine, found {log}; {_how_to_bring(log)}")
    path = Path(log)
    if not path.exists():
        is_repository = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", log) is not None
        hint = f"; if it is a data set of the hub, {_how_to_bring(f'hf:{log}')}" if is_repository else ""
        raise ValueError(f"expected a log at {log}, found nothing there{hint}")
    if not any(file.stat().st_size for file in files_below(path)):
        raise ValueError(f"expected rows of feedback in {log}, found it empty")
    return path


def _how_to_bring(log: str) -> str:
    """What puts a log of elsewhere below data/, so that it has a version there."""
    if found := re.fullmatch(r"hf:(?://datasets/)?([\w.-]+/[\w.-]+)(?:@([^:/\s]+))?\S*", log):
        place = DATA / found[1].rpartition("/")[2]
        revision = f" --revision {found[2]}" if found[2] else ""
        return (
            f"bring it here with `hf download {found[1]} --repo-type dataset{revision} --local-dir {place}`, then "
            f"adopt {place}, or the files of one split below it"
        )
    # DVC takes a file or a folder, and no pattern.
    url = re.split(r"/[^/]*[*?\[]", log)[0] if log.startswith(("s3:", "gs:", "az:")) else log
    place = DATA / (PurePosixPath(urlsplit(url).path).name or "log")
    return f"bring it here and have DVC watch it with `dvc import-url {shlex.quote(url)} {place}`, then adopt {place}"


def refuse_changed() -> None:
    """Refuse to write over files that somebody changed since the clone.

    Raises:
        ValueError: they differ from what is committed, or are of another log than the demo's.
    """
    status = _git("status", "--porcelain", "--", str(PARAMS_FILE), str(GRAPH_FILE))
    changed = sorted(line[3:] for line in status.splitlines())
    if changed:
        raise ValueError(
            f"{' and '.join(changed)} {'differ' if len(changed) > 1 else 'differs'} from what is committed; commit the "
            "changes or set them back, or write over them with --force; --dry-run shows what would be written"
        )
    feedback = load_params().inputs.feedback
    if feedback != InputsParams().feedback:
        raise ValueError(
            f"{PARAMS_FILE} is that of another log already ({feedback}); --force writes over it, and git has it as it "
            "was committed"
        )


def _loaded(text: str) -> Params:
    with TemporaryDirectory() as folder:
        copy = Path(folder) / PARAMS_FILE.name
        copy.write_text(text, encoding="utf-8")
        return load_params(copy)


def _refuse_rejects(found: Survey, params: Params) -> None:
    rejected, read = found.counts["rejects"], found.counts["rows_read"]
    if rejected > params.normalization.max_reject_share * read:
        reasons = ", ".join(f"{name} ({count:,})" for name, count in sorted(found.counts["reject_reasons"].items()))
        raise ValueError(
            f"{rejected:,} of {read:,} rows would be rejected ({reasons}), more than the share of "
            f"{params.normalization.max_reject_share} that normalization.max_reject_share allows; what stands "
            "above says which setting decides, and --set KEY=VALUE gives it"
        )


def _place_of(source: Path) -> Path:
    """Where a log or model stands once it is adopted: where it is, or in data/ if git doesn't see it there."""
    inside = source.resolve().relative_to(Path.cwd()) if source.resolve().is_relative_to(Path.cwd()) else None
    if inside is not None and (_is_in_git(inside) or not _git_ignores(inside) or pointer_of(inside).is_file()):
        return inside
    return DATA / source.resolve().name if _size(source) <= SMALL_BYTES or source.is_file() else source.resolve()


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in files_below(path))


def _put_under_dvc(source: Path, place: Path, *, is_needed: bool, force: bool) -> None:
    """Have DVC keep a log or a model, unless git does or it is too large.

    Raises:
        ValueError: DVC refuses.
    """
    if _is_in_git(place) or (place.is_absolute() and not is_needed):
        return
    # An adoption that was broken off has put it there.
    is_here = place.exists() and (source.resolve() == place.resolve() or tree_digest(source) == tree_digest(place))
    if not is_here and place.exists() and not force:
        raise ValueError(f"{place} is there already, with other content; take it away, or write over it with --force")
    place.parent.mkdir(parents=True, exist_ok=True)
    words = [str(place)] if is_here else [str(source.resolve()), "--out", str(place), *(["--force"] if force else [])]
    last: deque[str] = deque(maxlen=3)
    if run_dvc(["add", "--quiet", *words], ProcessGroups(), on_line=last.append, on_progress=lambda _: None):
        raise ValueError(f"`dvc add {' '.join(words)}` failed: {' '.join(last)}")


def _whole_graph(methods: Sequence[str]) -> tuple[str, list[StageNode]]:
    """dvc.yaml with the stages of the methods: as it is, or as git has it from before it was made another log's.

    Raises:
        ValueError: nobody has it.
    """
    text = GRAPH_FILE.read_text(encoding="utf-8")
    needed = [f"\n  {method}_rows:" for method in methods]
    if all(name in text for name in needed):
        return text, _nodes_of(text, PARAMS_FILE.read_text(encoding="utf-8"))
    for commit in _git("log", "--format=%H", "--", str(GRAPH_FILE)).split():
        older = _git("show", f"{commit}:{GRAPH_FILE}")
        if all(name in older for name in needed):
            print(f"\n{GRAPH_FILE} has no stages of {', '.join(methods)}; they are taken from commit {commit[:12]}")
            return older, _nodes_of(older, _git("show", f"{commit}:{PARAMS_FILE}"))
    raise ValueError(f"{GRAPH_FILE} has no stages of {', '.join(methods)}, and no commit of it that git has does")


def _inputs(model: BaseModel, places: Mapping[str, Path]) -> dict[str, Any]:
    """Values of params.yaml that say where log and model are."""
    source = {"source": "local"}
    if model.repository:
        source = {"source": "hub", "repository": model.repository, "revision": str(model.revision)}
    return {**{f"inputs.{key}": place.as_posix() for key, place in places.items()}, "base_model": source}


def _written(
    text: str, whole: tuple[str, list[StageNode]], values: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[str, str]:
    """The new params.yaml and dvc.yaml, checked against each other.

    Args:
        text: params.yaml as it is.
        whole: a dvc.yaml with all that is needed, and its stages.
        values: what params.yaml is to say.
        overrides: what it is to say above all.

    Raises:
        ValueError: they don't fit the code.
    """
    methods: list[str] = values["run.methods"]
    is_hub = values["base_model"]["source"] == "hub"
    graph, nodes = whole
    idle = {node.name for node in nodes} - stages_for(methods, nodes)
    others = set(METHODS) - set(methods)
    unread = [*DEMO, *_IMAGES, *(f"{part}.{name}" for part in ("training", "gate", "rows") for name in others)]
    unread += ["inputs.image_prompts", "inputs.base_diffusion", *(["inputs.base_model"] if is_hub else [])]
    unread += [name for name in Params.model_fields if name in idle]
    with TemporaryDirectory() as folder:
        file = Path(folder) / PARAMS_FILE.name
        file.write_text(params_for(text, values, unread), encoding="utf-8")
        params = overridden(overrides, file)
    graph = graph_for(graph, nodes, methods, is_hub=is_hub)
    problems = graph_problems(_nodes_of(graph, params), _loaded(params))
    if problems:
        raise ValueError(f"what would be written doesn't fit the code: {'; '.join(problems)}")
    return params, graph


def _nodes_of(graph: str, params: str) -> list[StageNode]:
    """The stages of a dvc.yaml that stands nowhere yet."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / GRAPH_FILE).write_text(graph, encoding="utf-8")
        (folder / PARAMS_FILE).write_text(params, encoding="utf-8")
        (folder / ".dvc").mkdir()
        (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
        # DVC names stages by their way from where it is asked.
        with chdir(folder):
            return read_graph()


def _write(params: str, graph: str) -> None:
    """Write both files; what dvc.lock recorded is of the demo, and its outputs would be looked for on every pull."""
    write_text(PARAMS_FILE, params)
    write_text(GRAPH_FILE, graph)
    LOCK_FILE.unlink(missing_ok=True)


def _next_steps() -> str:
    return (
        "\nto train, evaluate, judge and report:\n  dvc repro --keep-going\n"
        "to keep it:\n  git add -A && git commit -m 'Adopt our log'\n  dvc push     # with a remote: "
        "dvc remote add --default NAME URL"
    )


def _git(*words: str) -> str:
    """What git prints; nothing where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def _is_in_git(path: Path) -> bool:
    return bool(_git("ls-files", "--", str(path)).strip())


def _git_ignores(path: Path) -> bool:
    return bool(_git("check-ignore", "--", str(path)).strip())
