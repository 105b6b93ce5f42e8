"""Rules that the schema's bounds cannot say: pure functions over a valid ModelService.

Each yields (field path, sentence) for what is wrong; the sentence names the cure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from servewright_api.later import LATER_SCHEMES
from servewright_api.modelservice import ModelService

Finding = tuple[str, str]

SCHEMES = ("file", "pypi", "https", "http")
# pypi://DIST==VERSION/PATH: names as PEP 508 has them, versions without the blanks of PEP 440.
_PYPI = re.compile(
    r"pypi://[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?==[A-Za-z0-9][A-Za-z0-9.!+_-]*/(?P<path>.+)"
)


def broken_rules(service: ModelService) -> Iterator[Finding]:
    """All that is wrong with `service`."""
    for rule in RULES:
        yield from rule(service)


def source_is_understood(service: ModelService) -> Iterator[Finding]:
    """A known scheme, in the shape that scheme has, without credentials."""
    source = service.spec.model.source
    path = "spec.model.source"
    scheme, separator, _ = source.partition("://")
    if not separator:
        yield path, "is not a URI; begin it with file:///, pypi:// or https://."
        return
    if scheme in LATER_SCHEMES:
        yield path, f"{scheme}:// is planned and not in this version; use file, pypi or https."
        return
    if scheme not in SCHEMES:
        yield (
            path,
            f"does not begin with {', '.join(f'{s}://' for s in SCHEMES)}; use one of these.",
        )
        return
    if any(ord(char) <= 0x20 or ord(char) == 0x7F for char in source):
        yield path, "holds a blank or a control character; write it as %20 and the like."
        return
    try:
        parts = urlsplit(source)
        host, has_login = parts.hostname, parts.username is not None
        _ = parts.port  # raises ValueError where it is no port
    except ValueError:
        yield path, "is not a URI; check its host, port and brackets."
        return
    if scheme == "file" and (parts.netloc or len(parts.path) < 2 or parts.query or parts.fragment):
        yield path, "does not name a file on this machine; write file:///PATH with three slashes."
    if scheme == "pypi":
        match = _PYPI.fullmatch(source)
        if match is None:
            yield path, "is not of the form pypi://DIST==VERSION/PATH; write it so."
        elif any(part in ("", ".", "..") for part in match["path"].split("/")):
            yield (
                path,
                "has an empty part, . or .. in its PATH; write the path as the wheel has it.",
            )
    if scheme in ("https", "http"):
        if has_login:  # the login itself is not repeated
            yield path, "holds a user name or password; a manifest is no place for it, remove it."
        if not host or len(parts.path) < 2:
            yield path, f"does not name a host and a file; write {scheme}://HOST/PATH."


def plain_http_has_a_digest(service: ModelService) -> Iterator[Finding]:
    """Without TLS only the digest tells that the file is the right one."""
    model = service.spec.model
    if model.source.startswith("http://") and model.digest is None:
        yield (
            "spec.model.digest",
            "is missing, and http:// is read only with a digest; give sha256:... of the file or "
            "use https://.",
        )


def open_has_no_secret(service: ModelService) -> Iterator[Finding]:
    """Keys that nobody asks for are a misunderstanding."""
    access = service.spec.access
    if access.mode == "Open" and access.secret_ref is not None:
        yield (
            "spec.access.secretRef",
            "names API keys, but spec.access.mode is Open; remove one of the two.",
        )


def output_fits_the_context(service: ModelService) -> Iterator[Finding]:
    """An answer needs a prompt of at least one token."""
    longest, output = service.spec.engine.max_model_len, service.spec.limits.max_output_tokens
    if longest is not None and output is not None and output >= longest:
        yield (
            "spec.limits.maxOutputTokens",
            f"is {output}, but spec.engine.maxModelLen is {longest}, prompt included; choose less.",
        )


RULES: tuple[Callable[[ModelService], Iterator[Finding]], ...] = (
    source_is_understood,
    plain_http_has_a_digest,
    open_has_no_secret,
    output_fits_the_context,
)
