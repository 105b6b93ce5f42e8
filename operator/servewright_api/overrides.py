"""`--set spec.engine.threads=1`: one field of a manifest, given on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, get_args

from servewright_api.fields import field_at


@dataclass(frozen=True, slots=True)
class Override:
    """A field path and the value to put there, typed as the schema has it."""

    path: tuple[str, ...]
    value: Any

    def apply(self, document: dict[str, Any]) -> None:
        """Set the field in a raw document. What stands there in the way is left for validation."""
        place: Any = document
        for part in self.path[:-1]:
            if place.get(part) is None:
                place[part] = {}
            place = place[part]
            if not isinstance(place, dict):
                return
        place[self.path[-1]] = self.value


def parse_override(text: str) -> Override:
    """Read `path=value`. Raises ValueError with the cure.

    The schema decides what the value is: digits become a number only where the field is one. A
    value or field that the schema does not know is left as text for validation to tell.
    """
    path, separator, value = text.partition("=")
    parts = tuple(path.strip().split("."))
    if not separator or not all(parts):
        raise ValueError(
            f"--set {text}: is not of the form path=value; write it as in spec.engine.threads=1."
        )
    return Override(parts, _typed(parts, value))


def _typed(path: tuple[str, ...], text: str) -> Any:
    field = field_at(path)
    kinds = (field.annotation, *get_args(field.annotation)) if field is not None else ()
    if int in kinds and re.fullmatch(r"-?[0-9]{1,18}", text):
        return int(text)
    if bool in kinds and text in ("true", "false"):
        return text == "true"
    return text
