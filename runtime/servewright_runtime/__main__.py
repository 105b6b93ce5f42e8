"""The command `servewright`, also `python -m servewright_runtime`."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Entry point. Ctrl-C ends it quietly, also while the command's modules are still loading."""
    try:
        from servewright_runtime import cli  # 0.3 s, in which a hasty Ctrl-C falls

        cli.main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
