"""Which source files of this project a module runs, read from its import statements without importing it."""

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("stages", "pipelines")


def code_files(modules: Iterable[str | Path]) -> list[Path]:
    """Files of `modules` and of all modules of this project that they import, also inside functions.

    The `__init__.py` of `stages`, `pipelines` and their folders are left out: they hold a docstring or a table of lazy
    names, and no behaviour. Those of a folder below, such as `stages/trainers/reward`, hand on what stands in it.

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
            waiting.extend(_imports(file))
    return sorted(file.relative_to(ROOT) if file.is_relative_to(ROOT) else file for file in seen)


def _missing(module: str) -> Path:
    raise ValueError(f"expected a module {module} in this project, found no file of that name")


@cache
def _imports(file: Path) -> frozenset[Path]:
    found: set[Path] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found.update(path for name in names if (path := _file_of(name)))
    return frozenset(found)


def _file_of(module: str) -> Path | None:
    if module.partition(".")[0] not in PACKAGES:
        return None
    parts = module.split(".")
    folder = ROOT.joinpath(*parts)
    file = folder / "__init__.py" if len(parts) > 2 and folder.is_dir() else folder.with_suffix(".py")
    return file if file.is_file() else None
