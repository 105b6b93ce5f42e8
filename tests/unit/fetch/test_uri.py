from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright_runtime.errors import ConfigError
from servewright_runtime.fetch.uri import (
    FileSource,
    HttpSource,
    PvcSource,
    PypiSource,
    parse,
    redacted,
)

SEGMENT = st.text(min_size=1, max_size=8).filter(
    lambda s: s not in (".", "..") and not set(s) & set("/\\\0") and s.isprintable()
)


@given(st.lists(SEGMENT, min_size=1, max_size=4))
def test_any_path_survives_as_file_member_and_part_of_a_claim(segments: list[str]) -> None:
    path = "/".join(segments)
    uri = "file:///" + quote(path)
    assert parse(uri) == FileSource(uri, Path("/" + path))
    uri = "pypi://a-model==1.2.post3/" + quote(path)
    assert parse(uri) == PypiSource(uri, "a-model", "1.2.post3", path)
    uri = "pvc://my-claim.1/" + quote(path)
    assert parse(uri) == PvcSource(uri, "my-claim.1", path)


@given(st.text(max_size=60))
def test_any_text_is_a_source_or_a_sentence(text: str) -> None:
    for uri in (
        text,
        f"file://{text}",
        f"pypi://{text}",
        f"https://{text}",
        f"pypi://a==1/{text}",
        f"pvc://a/{text}",
    ):
        try:
            source = parse(uri)
        except ConfigError as error:
            message = error.message
        else:
            message = "."
            assert source.uri == uri.partition("#")[0]
            if isinstance(source, PypiSource):
                assert not source.distribution.startswith("-")
                assert not source.version.startswith("-")
                assert ".." not in source.member.split("/")
            if isinstance(source, PvcSource):
                assert not {"", ".", ".."} & set(source.path.split("/"))
            if isinstance(source, FileSource):
                assert source.path.is_absolute()
        assert message.endswith(".")
        assert "\n" not in message


@given(st.text("abc123@:/?#[]%.", max_size=30))
def test_redacting_never_fails_and_never_shows_a_query(text: str) -> None:
    assert "s3cret" not in redacted(f"https://{text}?x=s3cret")
    assert "s3cret" not in redacted(f"https://ann:s3cret@{text}")


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("", "no scheme"),
        ("model.gguf", "no scheme"),
        ("/models/model.gguf", "file:///absolute/path"),
        ("s3://bucket/model", "'s3:'"),
        ("file://model.gguf", "no absolute path"),
        ("file://./model.gguf", "no absolute path"),
        ("file:model.gguf", "no absolute path"),
        ("file://server/model.gguf", "no absolute path"),
        ("file:///model.gguf?v=1", "query or fragment"),
        ("file:///a%00b", "decodes to no path"),
        ("file:///a%ff", "decodes to no path"),
        ("file:///a b", "%20"),
        ("pypi://model/x", "no exact version"),
        ("pypi://model==/x", "no exact version"),
        ("pypi://model==1.*/x", "no exact version"),
        ("pypi://model>=1/x", "no exact version"),
        ("pypi://model===1/x", "no exact version"),
        ("pypi://--help==1/x", "no exact version"),
        ("pypi://model[extra]==1/x", "no valid URI|no exact version"),
        ("pypi://model==1", "no file inside"),
        ("pypi://model==1/", "no file inside"),
        ("pypi://model==1/a/", "no file inside"),
        ("pypi://model==1//etc/passwd", "no file inside"),
        ("pypi://model==1/../x", "no file inside"),
        ("pypi://model==1/a/./x", "no file inside"),
        ("pypi://model==1/a%2F..%2Fx", "no file inside"),
        ("pypi://model==1/a%5Cx", "no file inside"),
        ("pypi://model==1/x#y", "query or fragment"),
        ("pvc://claim", "no file of a PersistentVolumeClaim"),
        ("pvc:///path", "no file of a PersistentVolumeClaim"),
        ("pvc://Claim/x", "no file of a PersistentVolumeClaim"),
        ("pvc://claim:1/x", "no file of a PersistentVolumeClaim"),
        ("pvc://claim/../x", "pvc://CLAIM/PATH"),
        ("pvc://claim/a%2F..%2F..%2Fetc/passwd", "pvc://CLAIM/PATH"),
        ("pvc://claim//x", "pvc://CLAIM/PATH"),
        ("pvc://claim/x?ro", "query or fragment"),
        ("https:///path", "no host"),
        ("https://", "no host"),
        ("https://host:port/x", "no valid URI"),
        ("https://[::1/x", "no valid URI"),
        ("https://host/\nHost: other", "control character"),
    ],
)
def test_bad_source_is_named_with_its_cure(uri: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(uri)


def test_secrets_are_kept_out_of_what_is_shown() -> None:
    source = parse("https://ann:s3cret@host:8443/a/b%20c.gguf?token=s3cret#part")
    assert source == HttpSource("https://ann:s3cret@host:8443/a/b%20c.gguf?token=s3cret")
    assert source.shown == "https://host:8443/a/b%20c.gguf"
    with pytest.raises(ConfigError) as caught:
        parse("pypi://ann:s3cret@model==1/x")
    assert "s3cret" not in caught.value.message


def test_token_is_not_in_what_python_shows_of_a_source() -> None:
    assert "s3cret" not in repr(HttpSource("https://host/x", token="s3cret"))  # noqa: S106


def test_scheme_may_be_written_in_capitals() -> None:
    source = parse("HTTPS://host/x")
    assert isinstance(source, HttpSource)
    assert source.is_encrypted
