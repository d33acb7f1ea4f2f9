"""Packages that only some parts of the project need, and what to say where one is missing."""


class MissingExtraError(ImportError, ValueError):
    """An optional package isn't installed; a stage prints it as a sentence, like whatever else a user can mend."""


def missing_extra(error: ModuleNotFoundError, *, extra: str, purpose: str) -> MissingExtraError:
    """The error to raise in place of `error`.

    Args:
        error: of the import that failed.
        extra: name of the project's extra that holds the package.
        purpose: what needs it.
    """
    package = (error.name or extra).partition(".")[0]
    return MissingExtraError(
        f"{purpose}: expected the package {package}, found none; install it with pip install -e '.[{extra}]' in the "
        "project's root",
        name=error.name,
    )
