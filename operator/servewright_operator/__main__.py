"""`python -m servewright_operator`: the operator, configured by its environment (settings.py)."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import sys

from servewright_operator import logs
from servewright_operator.client import load_configuration
from servewright_operator.lease import Lost
from servewright_operator.resync import NotInstalled
from servewright_operator.running import Operator
from servewright_operator.settings import Settings, SettingsError

log = logging.getLogger("servewright_operator")


async def _run(settings: Settings) -> int:
    try:
        await Operator(settings, await load_configuration()).run()
    except (Lost, NotInstalled) as error:
        log.error(str(error))
        return 1
    return 0


def main() -> int:
    """Run until told to stop: the exit code."""
    try:
        settings = Settings.of(os.environ, platform.node())
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    logs.start(settings.log_level)
    return asyncio.run(_run(settings))


if __name__ == "__main__":
    sys.exit(main())
