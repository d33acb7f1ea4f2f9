"""The part of the package `parameterized` that the suites use: a test for each row of arguments."""

import sys
from collections.abc import Callable, Sequence
from typing import Any


class parameterized:  # noqa: N801 - the package's name
    """Holds `expand`."""

    @staticmethod
    def expand(rows: Sequence[Sequence[Any]]) -> Callable[[Any], None]:
        """Make a test of each row in the class that the decorated one stands in."""

        def decorate(test: Any) -> None:
            names = sys._getframe(1).f_locals
            for place, row in enumerate(rows):

                def one(self: Any, row: Sequence[Any] = tuple(row)) -> None:
                    test(self, *row)

                names[f"{test.__name__}_{place}_{'_'.join(map(str, row))}"] = one

        return decorate
