"""A model ready to serve, and the faces of its tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from servewright_runtime.models.runner import Runner


class ChatTemplate(Protocol):
    """A model's chat template, rendered in a sandbox with bounds on time, size and recursion."""

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        """Text of the conversation. Raises RequestError (400) where the template refuses it."""

    def close(self) -> None:
        """End what renders. No render may run or follow."""


class Tokenizer(Protocol):
    """Text to token ids and back. Thread-safe: the API and the engine thread share it."""

    vocab_size: int
    bos_id: int | None
    eos_ids: frozenset[int]  # tokens that end a generation (end of sequence, of turn)
    chat_template: ChatTemplate | None

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Ids of `text`. add_special: BOS if the model wants one; parse_special: control tokens
        written in the text become their ids (a rendered chat prompt needs it)."""

    def decode(self, ids: Sequence[int], *, keep_control: bool = False) -> str:
        """Text of `ids`, invalid UTF-8 as U+FFFD. keep_control: control tokens by name."""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; empty for a control token."""

    def token_text(self, token_id: int) -> str:
        """The token as a person reads it, control tokens by name, invalid UTF-8 as U+FFFD."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What a loader gives: all that the engine and the API need."""

    runner: Runner
    tokenizer: Tokenizer
    format: str
    bytes: int  # of the file

    def close(self) -> None:
        """Free weights, cache and the template's renderer. No step may run or follow."""
        self.runner.close()
        if self.tokenizer.chat_template is not None:
            self.tokenizer.chat_template.close()
