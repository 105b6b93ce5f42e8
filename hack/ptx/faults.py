"""What stops a run: code that the interpreter does not know, or a kernel that does wrong."""

from __future__ import annotations


class Refused(Exception):
    """The code asks for something that the interpreter does not know, named with its line."""


class Fault(Exception):
    """The kernel breaks a rule of the machine, told with the line that does it."""
