"""Changes to params.yaml from the command line, in the grammar of `dvc exp run --set-param`."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from stages.contracts.files import write_text
from stages.contracts.stage import PARAMS_FILE, parse_section, read_params


def apply_overrides(overrides: Sequence[str], path: Path = PARAMS_FILE) -> None:
    """Set values in params.yaml and leave them there, or leave it as it is if one of them is wrong.

    Args:
        overrides: such as "training.bco.beta=0.3".
        path: the file; its comments stay.

    Raises:
        ValueError: an override can't be read, or names no parameter, or its value is of the wrong kind.
    """
    write_text(path, overridden(overrides, path))


def overridden(overrides: Sequence[str], path: Path = PARAMS_FILE) -> str:
    """What params.yaml would say with some values set.

    Raises:
        ValueError: an override can't be read, or names no parameter, or a value is of the wrong kind.
    """
    from pipelines.params import Params

    with TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(path.read_bytes())
        if overrides:
            _set_values(overrides, copy)
        parse_section(Params, read_params("", copy), where="")
        return copy.read_text(encoding="utf-8")


def _set_values(overrides: Sequence[str], path: Path) -> None:
    from dvc.exceptions import InvalidArgumentError
    from dvc.utils.hydra import apply_overrides as set_values

    for override in overrides:
        if "=" not in override or not override.partition("=")[0]:
            raise ValueError(f"--set: expected KEY=VALUE such as training.bco.beta=0.3, found {override!r}")
    try:
        # The two signs let a value be set that so far stands at its default; the model refuses what is no parameter.
        set_values(str(path), [override if override[0] in "+~" else f"++{override}" for override in overrides])
    except InvalidArgumentError as error:
        reason = error.__cause__ or error
        raise ValueError(f"--set {' '.join(overrides)}: {' '.join(str(reason).split())}") from None
