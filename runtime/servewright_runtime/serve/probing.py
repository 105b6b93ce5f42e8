"""The call that gates readiness: the model must answer before anyone is sent to it."""

from __future__ import annotations

import asyncio
import logging
import time

from servewright_runtime.config import ReplicaModel
from servewright_runtime.engine.requests import Request, SamplingParams
from servewright_runtime.engine.streams import Streams
from servewright_runtime.errors import ServewrightError
from servewright_runtime.models.loaded import Tokenizer

log = logging.getLogger(__name__)

_EXPECT_TOKENS = 32  # what the manifest's schema promises for `expect`


class ProbeFailed(ServewrightError):
    """The model does not answer as it should. Another start may: exit code 1."""

    reason = "ProbeFailed"


async def probe(model: ReplicaModel, tokenizer: Tokenizer, streams: Streams) -> str:
    """Complete `model.probe_prompt` greedily; the answer's text.

    The engine itself refuses logits that are not finite. Raises ProbeFailed.
    """
    prompt_ids = tokenizer.encode(model.probe_prompt, add_special=True, parse_special=False)
    tokens = 1 if model.probe_expect is None else _EXPECT_TOKENS
    sampling = SamplingParams(temperature=0.0, max_tokens=tokens)
    started = time.monotonic()
    try:
        async with asyncio.timeout(model.probe_timeout_s):
            stream = streams.open([Request(f"probe-{model.name}", tuple(prompt_ids), sampling)])
            text = ""
            async for outputs in stream:
                for output in outputs:
                    text += output.text
                    if output.error is not None:
                        raise output.error
    except TimeoutError:
        raise ProbeFailed(
            f"{model.title}: the probe had no answer within {model.probe_timeout_s} s; raise "
            "spec.probe.timeoutSeconds if this machine is that slow."
        ) from None
    except ServewrightError as error:
        raise ProbeFailed(f"{model.title}: the probe failed: {error.message}") from error
    if model.probe_expect is not None and model.probe_expect not in text:
        raise ProbeFailed(
            f"{model.title}: the probe wanted {model.probe_expect!r} in the answer to "
            f"{model.probe_prompt!r}, but got {text!r}."
        )
    seconds = round(time.monotonic() - started, 3)
    log.info("probe succeeded", extra={"model": model.name, "seconds": seconds})
    return text
