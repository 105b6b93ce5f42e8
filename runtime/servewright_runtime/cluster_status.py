"""`servewright status`: what the operator's own reader finds, on this terminal."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from rich.console import Console

from servewright_runtime.errors import ConfigError


def print_status(
    name: str, *, namespace: str | None, context: str | None, kubeconfig: str | None
) -> bool:
    """Print the story of a ModelService: whether it is Ready.

    Raises ConfigError where it cannot be looked at.
    """
    try:
        from servewright_operator.showing import render, story
        from servewright_operator.viewing import CannotLook, look
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package.startswith("servewright"):
            raise
        raise ConfigError(
            f"`servewright status` needs the Python package {package}, which is not installed; "
            "run: pip install 'servewright[operator]'"
        ) from error
    try:
        view = asyncio.run(look(name, namespace=namespace, context=context, kubeconfig=kubeconfig))
    except CannotLook as error:
        raise ConfigError(str(error)) from error
    console, now = Console(), datetime.now(UTC)
    if console.is_terminal:
        console.print(story(view, now))
    else:
        print(render(view, now, width=console.width), end="")
    return view.is_ready
