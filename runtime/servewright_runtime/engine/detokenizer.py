"""Token bytes to text, as they come: whole characters only, stop strings cut out.

A byte-level token may end inside a UTF-8 character, and a stop string may lie across tokens. So the
text lags behind the tokens by the unfinished character and by the longest end that could still
become a stop string.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Detokenizer:
    """The text of one request. Invalid bytes become U+FFFD."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(stop)
        self._held = ""  # could still be the beginning of a stop string
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: bytes) -> tuple[str, str | None]:
        """Take the next token's bytes. Returns the text that is certain now, and the stop string
        that ended it, if one is complete: the text then ends before it, and nothing may follow."""
        text = self._decoder.decode(token)
        return self._cut(text) if self._stop else (text, None)

    def flush(self) -> str:
        """What was held back, when no token follows. An unfinished character is left out: its
        end was cut off with the tokens that did not come."""
        rest, self._held = self._held, ""
        return rest

    def _cut(self, new: str) -> tuple[str, str | None]:
        text = self._held + new
        # Every beginning of a stop string in earlier text is in `_held`, so the whole of `text` is
        # all there is to search. The earliest match wins, the longest among equals.
        matches = [(at, -len(stop), stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if matches:
            at, _, stop = min(matches)
            self._held = ""
            return text[:at], stop
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut], None


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with, less than all of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
