"""Reading a JSON object field by field, so that none is accepted and ignored.

Each `take` checks one field and removes it; `close` refuses what is left, by name. `null` means
"not given", as OpenAI's clients send it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from servewright_runtime.errors import RequestError

_KINDS = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}


def invalid(path: str, wanted: str, value: object) -> RequestError:
    """The 400 for a field whose value does not fit."""
    return RequestError(
        f"'{path}' must be {wanted}, not {brief(value)}.", param=path, code="invalid_value"
    )


def unsupported(path: str, why: str) -> RequestError:
    """The 400 for a field that exists elsewhere but not here."""
    return RequestError(
        f"'{path}' is not supported: {why}.", param=path, code="unsupported_parameter"
    )


def brief(value: object) -> str:
    """A value as an error message shows it: short, whatever it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return repr(value) if len(value) <= 40 else f"a string of {len(value)} characters"
    if isinstance(value, int | float):
        return str(value)
    if value == []:
        return "an empty list"
    return _KINDS[type(value)]


class Fields:
    """The fields of one JSON object. `path` is where it lies in the body, "" for the body."""

    def __init__(self, value: Mapping[str, Any], path: str = "") -> None:
        self._left = {name: item for name, item in value.items() if item is not None}
        self._path = path

    @classmethod
    def of(cls, value: object, path: str) -> Fields:
        """The fields of a value that must be an object."""
        if not isinstance(value, dict):
            raise invalid(path, "an object", value)
        return cls(value, path)

    def at(self, name: str) -> str:
        """Where the field lies in the body."""
        return f"{self._path}.{name}" if self._path else name

    def take(self, name: str) -> Any:
        """The field's value unchecked, None if it is not given."""
        return self._left.pop(name, None)

    def has(self, name: str) -> bool:
        """Whether the field is given and has not been taken."""
        return name in self._left

    def missing(self, name: str) -> RequestError:
        """The 400 for a field that must be there."""
        path = self.at(name)
        return RequestError(f"'{path}' is required.", param=path, code="missing_parameter")

    def flag(self, name: str, *, default: bool = False) -> bool:
        """true or false."""
        value = self.take(name)
        if value is None:
            return default
        if type(value) is not bool:
            raise invalid(self.at(name), "true or false", value)
        return value

    def whole(self, name: str, low: int, high: int) -> int | None:
        """An integer from low to high."""
        value = self.take(name)
        if value is None:
            return None
        if type(value) is not int or not low <= value <= high:
            raise invalid(self.at(name), f"a whole number from {low} to {high}", value)
        return value

    def number(
        self, name: str, low: float, high: float, *, default: float, above_low: bool = False
    ) -> float:
        """A number from low (or above it) to high."""
        value = self.take(name)
        if value is None:
            return default
        fits = type(value) in (int, float) and low <= value <= high
        if not fits or (above_low and value == low):
            wanted = f"a number {'above' if above_low else 'from'} {low:g} "
            wanted += f"and up to {high:g}" if above_low else f"to {high:g}"
            raise invalid(self.at(name), wanted, value)
        return float(value)

    def text(self, name: str) -> str | None:
        """A string."""
        value = self.take(name)
        if value is None:
            return None
        if type(value) is not str:
            raise invalid(self.at(name), "a string", value)
        return value

    def only(self, name: str, accepted: Sequence[object], why: str) -> None:
        """Refuse every value but those whose meaning is exactly what happens anyway."""
        value = self.take(name)
        if value is None or any(type(value) is type(item) and value == item for item in accepted):
            return
        raise unsupported(self.at(name), f"{why}, and it is {brief(value)}")

    def close(self, known: Mapping[str, str]) -> None:
        """Refuse the first field left. known: why fields that others have are not here."""
        for name in self._left:
            path = self.at(name[:100])
            if name in known:
                raise unsupported(path, known[name])
            raise RequestError(
                f"'{path}' is not a field of this request; leave it out.",
                param=path,
                code="unknown_parameter",
            )
