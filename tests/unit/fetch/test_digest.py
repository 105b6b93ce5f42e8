from __future__ import annotations

import hashlib
import io

import pytest

from servewright_runtime.errors import ConfigError
from servewright_runtime.fetch.digest import CHUNK_BYTES, digest_of, parse_digest, require_digest

HEX = "0123456789abcdef" * 4


def test_digest_may_be_written_in_capitals() -> None:
    assert parse_digest(f"SHA256:{HEX.upper()}") == f"sha256:{HEX}"


@pytest.mark.parametrize("text", ["", HEX, "md5:" + HEX, "sha256:" + HEX[1:], f"sha256:{HEX}\n"])
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="sha256:<64"):
        parse_digest(text)


def test_hashing_tells_its_progress() -> None:
    data = bytes(range(256)) * (CHUNK_BYTES // 128)
    seen: list[tuple[int, int | None]] = []
    digest = digest_of(io.BytesIO(data), total=len(data), progress=lambda *at: seen.append(at))
    assert digest == "sha256:" + hashlib.sha256(data).hexdigest()
    assert seen == [(CHUNK_BYTES, len(data)), (2 * CHUNK_BYTES, len(data))]


def test_digest_is_required_only_where_one_was_asked_for() -> None:
    require_digest("it", wanted=None, came="sha256:a")
    require_digest("it", wanted="sha256:a", came="sha256:a")
    with pytest.raises(ConfigError, match=r"it: the file's digest is sha256:b.*asks for sha256:a"):
        require_digest("it", wanted="sha256:a", came="sha256:b")
