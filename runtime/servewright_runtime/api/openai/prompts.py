"""Prompts as token ids, and how many tokens an answer may have.

Short texts are encoded in place. Long ones go to a thread of their own, so that a prompt of
megabytes keeps nobody's health check waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from servewright_runtime.api.aside import aside
from servewright_runtime.api.openai.fields import invalid
from servewright_runtime.api.openai.params import Completion, Generation
from servewright_runtime.api.openai.tokens import Tokenize
from servewright_runtime.api.state import ServedModel
from servewright_runtime.engine.requests import Request
from servewright_runtime.errors import RequestError

# OpenAI's default for /v1/completions; a chat answer may fill the context.
COMPLETION_TOKENS = 16
# About 2 ms of encoding; a hand-over to a thread costs 0.1 ms.
INLINE_CHARS = 8192


class Encoder:
    """Encodes short texts in place, long ones on a thread, one request at a time."""

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(1)

    async def completion(self, model: ServedModel, request: Completion) -> list[list[int]]:
        """Ids of each prompt.

        Raises RequestError (400) on ids outside the vocabulary, on a prompt without a token, and
        on one that is longer than the context however it is encoded.
        """
        many = len(request.prompts) > 1
        paths = [f"prompt[{index}]" if many else "prompt" for index in range(len(request.prompts))]
        for prompt, path in zip(request.prompts, paths, strict=True):
            if isinstance(prompt, str):
                _check_length(model, prompt, path)
            else:
                check_ids(prompt, model, path)
        texts = [prompt for prompt in request.prompts if isinstance(prompt, str)]
        encoded = iter(await self._encode(model, texts, add_special=True))
        prompts = [
            next(encoded) if isinstance(prompt, str) else prompt for prompt in request.prompts
        ]
        for prompt, ids, path in zip(request.prompts, prompts, paths, strict=True):
            if not ids:
                raise invalid(path, "at least one token long", prompt)
        return prompts

    async def chat(self, model: ServedModel, messages: list[dict[str, str]]) -> list[int]:
        """Ids of the rendered conversation. Raises RequestError (400) without a template."""
        text = await self.render(model, messages, add_generation_prompt=True)
        _check_length(model, text, "messages")
        # The template writes the control tokens itself, the first one included.
        (ids,) = await self._encode(model, [text], add_special=False)
        if not ids:
            raise invalid("messages", "at least one token long when rendered", messages)
        return ids

    async def tokenize(self, model: ServedModel, request: Tokenize) -> list[int]:
        """Ids of a prompt or a conversation, of any length."""
        text = request.prompt
        if text is None:
            assert request.messages is not None
            text = await self.render(
                model, request.messages, add_generation_prompt=request.add_generation_prompt
            )
        (ids,) = await self._encode(model, [text], add_special=request.add_special)
        return ids

    async def _encode(
        self, model: ServedModel, texts: Sequence[str], *, add_special: bool
    ) -> list[list[int]]:
        """Token ids of the texts; control tokens written in them become their ids."""

        def encode() -> list[list[int]]:
            return [
                model.tokenizer.encode(text, add_special=add_special, parse_special=True)
                for text in texts
            ]

        if sum(map(len, texts)) <= INLINE_CHARS:
            return encode()
        async with self._turn:
            return await aside(encode, is_long=True)

    async def render(
        self, model: ServedModel, messages: list[dict[str, str]], *, add_generation_prompt: bool
    ) -> str:
        """The conversation as the model's template writes it."""
        template = model.tokenizer.chat_template
        if template is None:
            raise RequestError(
                f"{model.name} has no chat template, so it cannot chat; use /v1/completions.",
                param="messages",
                code="no_chat_template",
            )
        # A template is a program from the model file; it may take its time, but not the loop's.
        async with model.rendering:
            return await aside(
                lambda: template.render(messages, add_generation_prompt=add_generation_prompt),
                is_long=True,
            )


def check_ids(ids: Sequence[int], model: ServedModel, path: str) -> None:
    """Raise RequestError (400) unless all ids are in the vocabulary."""
    size = model.tokenizer.vocab_size
    if ids and not (min(ids) >= 0 and max(ids) < size):
        wrong = next(token for token in ids if not 0 <= token < size)
        raise invalid(path, f"token ids from 0 to {size - 1}", wrong)


def check_count(model: ServedModel, generation: Generation, prompts: int) -> None:
    """Raise RequestError (400) for more sequences than the engine ever holds at once."""
    count = prompts * generation.n
    capacity = model.config.max_batch + model.config.max_queued
    if count > capacity:
        raise RequestError(
            f"'n' is {generation.n} and there are {prompts} prompts, which makes {count} "
            f"sequences, but {model.name} holds at most {capacity}; send several requests.",
            param="n",
            code="invalid_value",
        )


def engine_requests(
    model: ServedModel,
    generation: Generation,
    prompts: Sequence[Sequence[int]],
    *,
    answer_id: str,
    prompt_field: str,
) -> list[Request]:
    """A Request a choice: choice c of prompt p is number p * n + c.

    Raises RequestError (400) when prompt and answer do not fit in the model's context.
    """
    check_ids([token for token, _ in generation.sampling.logit_bias], model, "logit_bias")
    seed = generation.first_seed()
    requests: list[Request] = []
    for ids in prompts:
        max_tokens = _max_tokens(model, generation, len(ids), prompt_field)
        prompt_ids = tuple(ids)
        for choice in range(generation.n):
            sampling = generation.sampling_of(choice, max_tokens, seed)
            requests.append(Request(f"{answer_id}-{len(requests)}", prompt_ids, sampling))
    return requests


def _max_tokens(
    model: ServedModel, generation: Generation, prompt_tokens: int, prompt_field: str
) -> int:
    context = model.config.max_model_len
    room = context - prompt_tokens
    if room < 1:
        raise _too_long(model, str(prompt_tokens), prompt_field)
    limit, wanted = model.max_output_tokens, generation.max_tokens
    if wanted is None:
        default = COMPLETION_TOKENS if prompt_field == "prompt" else room
        return min(default, room, limit or room)
    if limit is not None and wanted > limit:
        raise invalid(
            generation.max_tokens_field, f"at most {limit}, the limit of {model.name}", wanted
        )
    if wanted > room:
        raise RequestError(
            f"The prompt has {prompt_tokens} tokens and {generation.max_tokens_field} is {wanted}, "
            f"together {prompt_tokens + wanted}, but {model.name} takes at most {context}; "
            "shorten the prompt or ask for less.",
            param=generation.max_tokens_field,
            code="context_length_exceeded",
        )
    return wanted


def _check_length(model: ServedModel, text: str, path: str) -> None:
    """Refuse what cannot fit, however it is encoded: encoding megabytes takes seconds."""
    least = -(-len(text) // model.longest_token_chars)
    if least >= model.config.max_model_len:
        raise _too_long(model, f"at least {least}", path)


def _too_long(model: ServedModel, tokens: str, path: str) -> RequestError:
    return RequestError(
        f"The prompt has {tokens} tokens, but {model.name} takes at most "
        f"{model.config.max_model_len} tokens of prompt and answer together; shorten it.",
        param=path,
        code="context_length_exceeded",
    )
