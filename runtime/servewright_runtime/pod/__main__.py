"""`python -m servewright_runtime.pod`, and with `fetch` after it the init container."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Returns the exit code."""
    # PID 1 does not get a signal that it has no handler for. Without one, a pod deleted in its
    # first second would hang until its grace period is over.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from servewright_runtime.pod import containers  # half a second

        return containers.run(sys.argv[1:])
    except KeyboardInterrupt:
        return 1  # of an init container, 0 would say that the model is there


if __name__ == "__main__":
    sys.exit(main())
