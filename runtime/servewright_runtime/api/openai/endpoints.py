"""The paths of the OpenAI API, and vLLM's two for tokens, as ASGI endpoints."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from servewright_runtime.api.access import Caller
from servewright_runtime.api.answers import dumps, send_json
from servewright_runtime.api.aside import aside
from servewright_runtime.api.bodies import read_json
from servewright_runtime.api.call import SCOPE_KEY, Call
from servewright_runtime.api.envelope import unauthorized
from servewright_runtime.api.openai.answering import Job, answer
from servewright_runtime.api.openai.fields import Fields, brief
from servewright_runtime.api.openai.params import Generation, parse_chat, parse_completion
from servewright_runtime.api.openai.prompts import Encoder, check_count, check_ids, engine_requests
from servewright_runtime.api.openai.tokens import parse_detokenize, parse_tokenize
from servewright_runtime.api.openai.wire import ChatWire, CompletionWire, Head
from servewright_runtime.api.state import AppState, Bounds, ServedModel
from servewright_runtime.errors import NotFound
from servewright_runtime.metrics import HttpMetrics

T = TypeVar("T")

# Up to here an answer about tokens takes a few milliseconds.
INLINE_TOKENS = 8192

Handler = Callable[[Call, Scope, Receive, Send], Awaitable[None]]


class Endpoint:
    """A handler as Starlette routes it; a class, so that Starlette adds nothing around it."""

    def __init__(self, route: str, handler: Handler) -> None:
        self._route = route
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call: Call = scope[SCOPE_KEY]
        call.route = self._route
        await self._handler(call, scope, receive, send)


class OpenAI:
    """The API over `models`, by served name."""

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        *,
        state: AppState,
        bounds: Bounds,
        metrics: HttpMetrics,
    ) -> None:
        self._models = models
        self._state = state
        self._bounds = bounds
        self._metrics = metrics
        self._encoder = Encoder()

    def routes(self) -> list[Route]:
        """All paths, each with its method."""
        return [
            Route(path, Endpoint(path.replace(":path", ""), handler), methods=[method])
            for method, path, handler in (
                ("GET", "/v1/models", self.list_models),
                ("GET", "/v1/models/{model:path}", self.get_model),
                ("POST", "/v1/completions", self.completions),
                ("POST", "/v1/chat/completions", self.chat),
                ("POST", "/tokenize", self.tokenize),
                ("POST", "/detokenize", self.detokenize),
            )
        ]

    async def list_models(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        """GET /v1/models: those that the caller may use."""
        admitted = [model for model in self._models.values() if model.admits(call.caller)]
        data = [_model_json(model) for model in admitted]
        await send_json(send, dumps({"object": "list", "data": data}))

    async def get_model(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        """GET /v1/models/{id}."""
        model = self._model(call, scope["path_params"]["model"])
        await send_json(send, dumps(_model_json(model)))

    async def completions(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /v1/completions."""
        request = await self._read(call, receive, parse_completion)
        model = self._model(call, request.generation.model)
        check_count(model, request.generation, len(request.prompts))
        with model.place():
            prompts = await self._encoder.completion(model, request)
            job = self._job(model, request.generation, prompts, "cmpl", "prompt")
            wire = CompletionWire(job.head, model.tokenizer, len(job.requests), request.generation)
            await answer(call, receive, send, job, wire)

    async def chat(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /v1/chat/completions."""
        request = await self._read(call, receive, parse_chat)
        model = self._model(call, request.generation.model)
        check_count(model, request.generation, 1)
        with model.place():
            prompt = await self._encoder.chat(model, request.messages)
            job = self._job(model, request.generation, [prompt], "chatcmpl", "messages")
            wire = ChatWire(job.head, model.tokenizer, len(job.requests), request.generation)
            await answer(call, receive, send, job, wire)

    def _job(
        self,
        model: ServedModel,
        generation: Generation,
        prompts: Sequence[Sequence[int]],
        prefix: str,
        prompt_field: str,
    ) -> Job:
        answer_id = f"{prefix}-{uuid.uuid4().hex}"
        requests = engine_requests(
            model, generation, prompts, answer_id=answer_id, prompt_field=prompt_field
        )
        self._metrics.on_generation(model.name, generation.n, generation.max_tokens)
        head = Head(answer_id, int(time.time()), model.name, model.fingerprint)
        return Job(model, generation, requests, head)

    async def tokenize(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /tokenize: ids of a prompt, or of a conversation as the chat endpoint sees it."""
        request = await self._read(call, receive, parse_tokenize)
        model = self._model(call, request.model)
        with model.place():
            ids = await self._encoder.tokenize(model, request)
        body = await aside(
            lambda: _tokens_json(model, ids, with_texts=request.with_texts),
            is_long=len(ids) > INLINE_TOKENS,
        )
        await send_json(send, body)

    async def detokenize(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        """POST /detokenize: the text of token ids, control tokens included, as vLLM answers."""
        request = await self._read(call, receive, parse_detokenize)
        model = self._model(call, request.model)
        ids = request.ids
        check_ids(ids, model, "tokens")
        body = await aside(
            lambda: dumps({"prompt": model.tokenizer.decode(ids, keep_control=True)}),
            is_long=len(ids) > INLINE_TOKENS,
        )
        await send_json(send, body)

    async def _read(self, call: Call, receive: Receive, check: Callable[[dict[str, Any]], T]) -> T:
        return await read_json(call, receive, self._bounds, self._state, check)

    def _model(self, call: Call, name: str | None) -> ServedModel:
        """The model of that name, if the caller may use it. None: the only one there is."""
        if name is None:
            if len(self._models) != 1:
                raise Fields({}).missing("model")
            name = next(iter(self._models))
        model = self._models.get(name)
        if model is not None:
            call.model, call.revision = model.name, model.revision
            if model.keys is None:
                return model
            call.key_name = model.keys.find(call.caller)
            if call.key_name is not None:
                return model
            call.model = call.revision = ""
            if not self._knows(call.caller):
                raise unauthorized(call)
        raise NotFound(
            f"The model {brief(name)} does not exist or is not yours to use; GET /v1/models lists "
            "those that are.",
            param="model",
            code="model_not_found",
        )

    def _knows(self, caller: Caller) -> bool:
        """Whether the caller's key is one of any model's."""
        folders = [model.keys for model in self._models.values() if model.keys is not None]
        return any(keys.find(caller) is not None for keys in folders)


def _tokens_json(model: ServedModel, ids: list[int], *, with_texts: bool) -> bytes:
    """vLLM's answer to /tokenize."""
    body = {
        "count": len(ids),
        "max_model_len": model.config.max_model_len,
        "tokens": ids,
        "token_strs": [model.tokenizer.token_text(token) for token in ids] if with_texts else None,
    }
    return dumps(body)


def _model_json(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "servewright",
        "max_model_len": model.config.max_model_len,
    }
