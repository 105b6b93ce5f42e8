"""The one place that holds Servewright's version."""

__version__ = "0.1.0"
