"""Changes to params.yaml from the command line, in the grammar of `dvc exp run --set-param`."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from stages.contracts.files import write_text
from stages.contracts.stage import PARAMS_FILE


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
    from pipelines.params import load_params

    with TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(path.read_bytes())
        if overrides:
            _set_values(overrides, copy)
        load_params(copy)
        return copy.read_text(encoding="utf-8")


def as_given_to_dvc(override: str) -> str:
    """The override with the signs by which a value can be set that so far stands at its default.

    Names that are no parameter are refused by the model instead.
    """
    return override if override[0] in "+~" else f"++{override}"


def refuse_malformed(overrides: Sequence[str]) -> None:
    """Refuse what is no KEY=VALUE.

    Raises:
        ValueError: one of them isn't.
    """
    for override in overrides:
        key, sign, _ = override.partition("=")
        if not key or not sign:
            raise ValueError(f"--set: expected KEY=VALUE such as training.bco.beta=0.3, found {override!r}")


def _set_values(overrides: Sequence[str], path: Path) -> None:
    from dvc.exceptions import InvalidArgumentError
    from dvc.utils.hydra import apply_overrides as set_values

    refuse_malformed(overrides)
    others = [override for override in overrides if not _set_mapping(override, path)]
    try:
        set_values(str(path), [as_given_to_dvc(override) for override in others])
    except InvalidArgumentError as error:
        reason = error.__cause__ or error
        raise ValueError(f"--set {' '.join(overrides)}: {' '.join(str(reason).split())}") from None


def _set_mapping(override: str, path: Path) -> bool:
    """Set a mapping whose keys the grammar has no words for, such as columns of a log in any language.

    Returns:
        Whether it is one, and set.
    """
    import yaml
    from dvc.utils.serialize import modify_yaml
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    key, _, text = override.partition("=")
    if not text.lstrip().startswith("{"):
        return False
    try:
        OverridesParser.create().parse_overrides([as_given_to_dvc(override)])
    except OverrideParseException:
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            return False
    else:
        return False
    *sections, name = key.lstrip("+~").split(".")
    with modify_yaml(str(path)) as params:
        section = params
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = {**(section.get(name) or {}), **value}
    return True
