"""What the pipeline has to know of a method; `stages.trainers.METHODS` is the table of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from stages.contracts.stage import Section
from stages.contracts.training_rows import Kind


@dataclass(frozen=True)
class Method:
    """What belongs to a method; modules are loaded when they are asked for, so that no method pays for another."""

    trainer: str
    """Its trainer, as "module:class"."""
    params: str
    """Its section of params.yaml, likewise; the module is light to import."""
    rows: Kind
    """What it learns from."""
    in_processes: bool = False
    """Whether several processes may share its training."""

    @property
    def modules(self) -> Sequence[str]:
        """What training by it runs besides what all methods share, as "module:class"."""
        return [self.trainer, self.params]

    def trainer_class(self) -> Any:
        """The class of its trainer."""
        return _at(self.trainer)

    def section(self) -> type[Section]:
        """The class of its section."""
        found: type[Section] = _at(self.params)
        return found


def _at(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
