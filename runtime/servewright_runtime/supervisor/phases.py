"""What a run is doing."""

from __future__ import annotations

import enum


class Phase(enum.Enum):
    """In the order they come. Ray starts while the models are fetched."""

    FETCHING = "Fetching"  # the models' files; Ray starts meanwhile
    STARTING = "Starting"  # the files are there, Ray is not yet
    LOADING = "Loading"  # weights into memory
    WARMING = "Warming"  # the probe runs
    READY = "Ready"  # the probe succeeded, the port is open
    DRAINING = "Draining"  # told to stop, finishing what is in flight
