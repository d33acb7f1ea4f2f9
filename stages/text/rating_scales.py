"""Scales that the ratings of a log are on: one threshold is for one scale."""

from collections import Counter

from stages.text.votes import Rating


class Scales:
    """The scales of a log's ratings, as far as they are written beside the numbers."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._largest: dict[str, float] = {}
        self._has_scaled = False

    def add(self, rating: Rating) -> None:
        """Take in a rating."""
        scale = rating.scale or ""
        self._has_scaled |= rating.scale is not None
        self._counts[scale] += 1
        self._largest[scale] = max(rating.number, self._largest.get(scale, rating.number))

    def sentences(self, column: str, threshold: float) -> list[str]:
        """How the ratings of a column are written, where they aren't plain numbers.

        Args:
            column: what to call it.
            threshold: smallest rating that is desired.

        Raises:
            ValueError: they are on several scales, or the threshold is on another one.
        """
        if not self._has_scaled:
            return []
        tops = {scale: float(scale.removeprefix("of ")) for scale in self._counts if scale.startswith("of ")}
        beyond = [scale for scale, largest in self._largest.items() if tops and largest > min(tops.values())]
        listed = ", ".join(f"{scale or 'none said'} ({count:,})" for scale, count in sorted(self._counts.items()))
        if len(self._counts.keys() - {""}) > 1 or beyond or ("%" in self._counts and len(self._counts) > 1):
            raise ValueError(
                f"{column} holds ratings on several scales, {listed}, and one threshold fits one of them; write them "
                "on one scale, or say what single ones mean, as in label_words: {'4/5': desired}"
            )
        if "%" in self._counts and threshold <= 1 < self._largest["%"]:
            raise ValueError(
                f"{column} holds ratings in per cent, up to {self._largest['%']:g} %, and label_threshold is "
                f"{threshold:g}; write it in per cent as well, as in label_threshold: {100 * threshold or 80:g}"
            )
        scale = next(iter(self._counts.keys() - {""}), "")
        return [
            f"{column} holds ratings{f' {scale}' if scale != '%' else ' in per cent'}".rstrip() + ", read as numbers"
        ]
