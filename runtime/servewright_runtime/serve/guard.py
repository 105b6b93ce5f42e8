"""What driver and replica do when the supervisor is gone, `kill -9` included: end the run."""

from __future__ import annotations

import logging
import os
import signal
import time

from servewright_runtime.supervisor import processes
from servewright_runtime.supervisor.rundir import RunDir

log = logging.getLogger(__name__)

# The driver cleans up; the replica only if it has not been killed by then.
REPLICA_PATIENCE_S = 3.0


def end_run(run: RunDir, *, after_s: float = 0.0) -> None:
    """Kill every process of this run, remove its folder, end this process.

    Ray aborts a process that has lost its raylet, this one too. So the others are stopped first,
    which nobody notices, and killed when nothing but that is left to do.
    """
    time.sleep(after_s)
    log.error("the supervisor is gone, ending everything")
    run_id = os.environ[processes.RUN_ID_VARIABLE]
    try:
        processes.stop_all(run_id)
        run.remove()
        processes.kill_all(run_id, None)
    finally:
        os.kill(os.getpid(), signal.SIGKILL)
