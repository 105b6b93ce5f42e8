"""What a bench found, as samples; one JSON object holds it all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

OURS = "ours"
RIVAL = "llama.cpp"
BARE = "bare"  # this engine and its HTTP app without Ray
IN_PROCESS = "in-process"  # this engine without HTTP
MACHINE = "machine"


@dataclass
class Result:
    """All that one bench found.

    samples: metric -> who -> one number a repetition; the numbers of one repetition belong
    together, since they were taken one after the other. Units are in the metric's name.
    """

    machine: dict[str, str]
    commit: str
    versions: dict[str, str]
    settings: dict[str, Any]
    began: str
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, metric: str, who: str, *values: float) -> None:
        """Append what one repetition found."""
        self.samples.setdefault(metric, {}).setdefault(who, []).extend(values)

    def of(self, metric: str, who: str) -> list[float]:
        """The samples, empty if there are none."""
        return self.samples.get(metric, {}).get(who, [])
