"""PID 1 of a pod and the parent of a local run. Imports no ray and no torch."""

from servewright_runtime.supervisor.phases import Phase
from servewright_runtime.supervisor.supervisor import Audience, Settings, run

__all__ = ["Audience", "Phase", "Settings", "run"]
