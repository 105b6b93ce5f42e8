"""Logprobs as the two endpoints show them, in step with the text.

A token is shown once the text that it begins has gone out, so logprobs tell no more of a stop
string than the text does: the tokens of the stop string itself are left out, as is the token that
ended the answer.
"""

from __future__ import annotations

import codecs
from typing import Any

from servewright_runtime.engine.requests import FinishReason, Output, TokenLogprob
from servewright_runtime.models.loaded import Tokenizer

# OpenAI's word for "very unlikely"; JSON has no infinity.
FLOOR = -9999.0


class LogprobTracker:
    """Logprobs of one choice. Characters are counted as the engine's detokenizer makes them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._drawn_chars = 0  # of all tokens drawn
        self._sent_chars = 0  # of the text that has gone out
        self._waiting: list[tuple[int, TokenLogprob]] = []  # where the token begins, the token

    def push(self, output: Output) -> list[tuple[int, TokenLogprob]]:
        """What goes out with `output.text`: each token with its offset in the whole text."""
        for item in output.logprobs:
            raw = self._tokenizer.token_bytes(item.token_id)
            text = self._decoder.decode(raw)
            # What is whole by itself stands behind the U+FFFD of a character left unfinished.
            own = _decoded(raw)
            before = len(text) - len(own) if own is not None else 0
            self._waiting.append((self._drawn_chars + before, item))
            self._drawn_chars += len(text)
        self._sent_chars += len(output.text)
        if output.finish_reason is FinishReason.LENGTH:
            ready, self._waiting = self._waiting, []
            return ready
        count = 0
        while count < len(self._waiting) and self._waiting[count][0] < self._sent_chars:
            count += 1
        ready = self._waiting[:count]
        del self._waiting[:count]
        return ready


def chat_logprobs(
    ready: list[tuple[int, TokenLogprob]], tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """The `logprobs.content` list of /v1/chat/completions."""
    return [
        {
            **_chat_token(item.token_id, item.logprob, tokenizer),
            "top_logprobs": [_chat_token(*pair, tokenizer) for pair in item.top],
        }
        for _, item in ready
    ]


def _chat_token(token_id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token_id)
    return {
        "token": token_name(token_id, tokenizer),
        "logprob": max(logprob, FLOOR),
        "bytes": list(raw) or None,
    }


def completion_logprobs(
    ready: list[tuple[int, TokenLogprob]], tokenizer: Tokenizer
) -> dict[str, list[Any]]:
    """The `logprobs` object of /v1/completions. The drawn token is among the top ones too."""
    return {
        "tokens": [token_name(item.token_id, tokenizer) for _, item in ready],
        "token_logprobs": [max(item.logprob, FLOOR) for _, item in ready],
        "top_logprobs": [
            {
                token_name(token_id, tokenizer): max(logprob, FLOOR)
                for token_id, logprob in (*item.top, (item.token_id, item.logprob))
            }
            for _, item in ready
        ],
        "text_offset": [offset for offset, _ in ready],
    }


def token_name(token_id: int, tokenizer: Tokenizer) -> str:
    """A token's text; of one that is no whole UTF-8, its bytes as OpenAI writes them."""
    raw = tokenizer.token_bytes(token_id)
    if not raw:
        return tokenizer.token_text(token_id)
    text = _decoded(raw)
    return text if text is not None else "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _decoded(raw: bytes) -> str | None:
    """The text of bytes that are whole characters."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None
