"""`python -m servewright_operator`: the operator, configured by its environment (settings.py)."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import platform
import resource
import sys

from kubernetes.aio.config import ConfigException

from servewright_operator import logs
from servewright_operator.client import load_configuration
from servewright_operator.lease import Lost
from servewright_operator.resync import NotInstalled
from servewright_operator.running import Operator
from servewright_operator.settings import Settings, SettingsError

log = logging.getLogger("servewright_operator")

# One answer of the API server is thousands of objects and no garbage: looked through after every
# 700 of them, as by default, they cost an eighth of the operator's CPU time.
_GC_THRESHOLD = (50_000, 50, 100)


async def _run(settings: Settings) -> int:
    try:
        await Operator(settings, await load_configuration()).run()
    except ConfigException as error:
        log.error("The API server cannot be found: run in a pod, or set KUBECONFIG (%s).", error)
    except (Lost, NotInstalled) as error:
        log.error(str(error))
    except Exception:
        log.exception("ends for a reason that a restart may mend")
    else:
        return 0
    return 1


def _allow_files() -> None:
    """As many as this process may have: a call that hangs holds a connection for its timeout, and
    containers begin with room for 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> int:
    """Run until told to stop: the exit code."""
    try:
        settings = Settings.of(os.environ, platform.node())
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    logs.start(settings.log_level)
    _allow_files()
    gc.set_threshold(*_GC_THRESHOLD)
    return asyncio.run(_run(settings))


if __name__ == "__main__":
    sys.exit(main())
