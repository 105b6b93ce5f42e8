"""Renders one chat template in a process of its own; started by `chat.py`, as a script.

Imports nothing of this package. Messages on stdin and stdout are a length of 8 bytes (little
endian) and JSON of that length. The first message in is {source, bos_token, eos_token, cpu_s,
memory_bytes, max_chars} and is answered with {} or {error}; each further one is {messages,
add_generation_prompt} and is answered with {text}, {refused} or {error}. A render that uses up its
processor time ends the process; so does the end of stdin, or a parent that is gone.
"""

import datetime
import json
import os
import resource
import select
import signal
import sys
from typing import Any, BinaryIO, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

ORPHAN_CHECK_S = 2.0


class RefusedError(Exception):
    """The template called raise_exception: the conversation is not one it can render."""


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words for training; here it is its body."""

    tags = {"generation"}  # noqa: RUF012 -- jinja2's own face

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def refuse(message: str) -> NoReturn:
    """`raise_exception` of the templates."""
    raise RefusedError(message)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """`tojson` as chat templates expect it: no HTML escapes, unlike jinja2's own."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def compile_template(source: str) -> jinja2.Template:
    """`source` in the environment that transformers gives chat templates, sandboxed."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(source)


def render(template: jinja2.Template, variables: dict[str, Any], max_chars: int) -> dict[str, str]:
    """The answer to one request."""
    pieces: list[str] = []
    chars = 0
    try:
        for piece in template.generate(variables):
            pieces.append(piece)
            chars += len(piece)
            if chars > max_chars:
                return {"error": f"wrote more than {max_chars} characters"}
        return {"text": "".join(pieces)}
    except RefusedError as error:
        return {"refused": str(error)}
    except RecursionError:
        return {"error": "recursed too deeply"}
    except MemoryError:
        return {"error": "needed too much memory"}
    except Exception as error:
        return {"error": f"failed with {type(error).__name__}: {error}"}


def receive(stream: BinaryIO) -> Any:
    """The next message. Ends the process where there will be none."""
    parent = os.getppid()
    while not select.select([stream], [], [], ORPHAN_CHECK_S)[0]:
        if os.getppid() != parent:
            sys.exit()
    length = stream.read(8)
    if len(length) < 8:
        sys.exit()
    return json.loads(stream.read(int.from_bytes(length, "little")))


def send(stream: BinaryIO, message: dict[str, str]) -> None:
    """Write one message."""
    # Lone surrogates can come out of escapes in a template; the escape keeps them in the JSON.
    data = json.dumps(message).encode()
    stream.write(len(data).to_bytes(8, "little") + data)
    stream.flush()


def main() -> None:
    """Compile the first message's template, then render until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # Unbuffered, so that `select` sees all that has come.
    with open(0, "rb", buffering=0) as raw, open(1, "wb") as answers:
        requests: BinaryIO = _Exact(raw)  # type: ignore[assignment]
        first = receive(requests)
        resource.setrlimit(resource.RLIMIT_AS, (first["memory_bytes"],) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
        cpu_s: float = first["cpu_s"]
        # Templates test `tools` and `documents`, which transformers always defines.
        constants = {key: first[key] for key in ("bos_token", "eos_token")}
        constants |= {"tools": None, "documents": None}
        # SIGPROF counts processor time, so a busy machine takes nothing from a good template;
        # it is not caught, so no `except` and no long call in C can outlast it.
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        try:
            template = compile_template(first["source"])
        except Exception as error:
            send(answers, {"error": f"does not compile ({type(error).__name__}: {error})"})
            return
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(answers, {})
        while True:
            variables = receive(requests)
            signal.setitimer(signal.ITIMER_PROF, cpu_s)
            answer = render(template, {**constants, **variables}, first["max_chars"])
            signal.setitimer(signal.ITIMER_PROF, 0)
            send(answers, answer)


class _Exact:
    """An unbuffered stream whose `read` gives all that was asked for, unless the stream ends."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def fileno(self) -> int:
        number: int = self._raw.fileno()
        return number

    def read(self, count: int) -> bytes:
        pieces = []
        while count:
            piece = self._raw.read(count)
            if not piece:
                break
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)


if __name__ == "__main__":
    main()
