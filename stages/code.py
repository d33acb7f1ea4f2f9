"""Stage `code`: the source that each stage runs, so that a stage runs again when its own code changed, and no other.

    dvc repro code

Every other stage depends on its own file of these instead of on a list of sources. It runs whenever anything below
`stages/` was edited and takes seconds; a stage whose file comes out the same doesn't run again, as after an edit of a
comment or of another stage's code.
"""

from pathlib import Path

from stages.contracts.closure import code_listing
from stages.contracts.files import write_text
from stages.contracts.stage import Input, Output, stage_main
from stages.trainers import METHODS


def run(*, source: Input, code: Output) -> None:
    """Write a file per stage, and per method that the stage `training` trains.

    Args:
        source: the folder of the stages.
        code: folder to write; a file has a line `DIGEST  PATH` per source file.

    Raises:
        ValueError: a source file is no Python.
    """
    listings = code_listings(source)
    code.mkdir(parents=True)
    for name, listing in listings.items():
        write_text(code / name, listing)
    print(f"code: {len(listings)} files")


def code_listings(source: Path) -> dict[str, str]:
    """What the stage writes: by name of a file, its text.

    Args:
        source: the folder of the stages.
    """
    return {name: code_listing(modules) for name, modules in _modules_by_name(source).items()}


def code_names(source: Path) -> set[str]:
    """Names of the files that the stage writes."""
    return set(_modules_by_name(source))


def _modules_by_name(source: Path) -> dict[str, list[str]]:
    # An editor may leave files of other names beside them.
    files = [file for file in source.glob("*.py") if file.stem.isidentifier() and file.is_file()]
    stages = {file.stem for file in files} - {"__init__", "code", "training"}
    found = {stage: [f"stages.{stage}"] for stage in sorted(stages)}
    for name, method in METHODS.items():
        if f"{name}_training" not in stages:
            found[f"{name}_training"] = ["stages.training", *method.modules]
    return found


if __name__ == "__main__":
    stage_main(run)
