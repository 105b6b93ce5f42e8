"""Byte-level BPE: control tokens out of reach, exact bytes, and what a file may not say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright_runtime.errors import ConfigError, RequestError
from servewright_runtime.models import bpe
from servewright_runtime.models.bpe import BpeTokenizer, build_tokenizer
from servewright_runtime.models.gguf import GGUFFile
from support.tiny import BOS_ID, IM_END_ID, IM_START_ID, byte_alphabet, make_tiny_gguf


def tokenizer_of(path: Path) -> BpeTokenizer:
    with GGUFFile(path) as file:
        return build_tokenizer(file, 384)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BpeTokenizer:
    path = tmp_path_factory.mktemp("bpe") / "m.gguf"
    return tokenizer_of(make_tiny_gguf(path, chat_template=None))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Any]:
    made: list[BpeTokenizer] = []

    def make_tokenizer(**arguments: Any) -> BpeTokenizer:
        made.append(tokenizer_of(make_tiny_gguf(tmp_path / "m.gguf", **arguments)))
        return made[-1]

    yield make_tokenizer
    for each in made:
        if each.chat_template is not None:
            each.chat_template.close()


def encode(tokenizer: BpeTokenizer, text: str, *, parse: bool = False) -> list[int]:
    return tokenizer.encode(text, add_special=False, parse_special=parse)


@given(st.text())
def test_text_comes_back_whole(tokenizer: BpeTokenizer, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        with pytest.raises(RequestError, match="lone surrogate"):
            encode(tokenizer, text)
        return
    ids = encode(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_every_byte_has_a_token_that_gives_it_back(tokenizer: BpeTokenizer) -> None:
    single = [tokenizer.token_bytes(i) for i in range(384) if len(tokenizer.token_bytes(i)) == 1]
    assert sorted(single) == [bytes([byte]) for byte in range(256)]


def test_the_alphabet_is_that_of_the_test_model() -> None:
    assert list(bpe.byte_alphabet().items()) == sorted(
        ((char, byte) for byte, char in enumerate(byte_alphabet())),
        key=lambda item: list(bpe.byte_alphabet()).index(item[0]),
    )


def test_bytes_that_are_no_utf8_decode_to_replacement_characters(tokenizer: BpeTokenizer) -> None:
    ids = {tokenizer.token_bytes(i): i for i in range(384) if len(tokenizer.token_bytes(i)) == 1}
    for data in (b"\xff", b"a\xc3(", b"\xe2\x82", b"\xf0\x9f\x99\x82\xf0\x9f", bytes(range(256))):
        found = tokenizer.decode([ids[bytes([byte])] for byte in data])
        assert found == data.decode(errors="replace")


def test_control_tokens_are_parsed_only_when_asked(tokenizer: BpeTokenizer) -> None:
    text = "<|im_start|>user<|im_end|>"
    parsed = encode(tokenizer, text, parse=True)
    assert (parsed[0], parsed[-1]) == (IM_START_ID, IM_END_ID)
    assert tokenizer.decode(parsed) == "user"
    assert tokenizer.decode(parsed, keep_control=True) == text
    plain = encode(tokenizer, text)
    assert not {IM_START_ID, IM_END_ID} & set(plain)
    assert tokenizer.decode(plain) == text


def test_a_control_token_has_a_name_and_no_bytes(tokenizer: BpeTokenizer) -> None:
    assert tokenizer.token_bytes(IM_END_ID) == b""
    assert tokenizer.token_text(IM_END_ID) == "<|im_end|>"
    [space_the] = encode(tokenizer, " the")
    assert tokenizer.token_text(space_the) == " the"


def test_all_that_ends_a_turn_ends_a_generation(tokenizer: BpeTokenizer) -> None:
    assert tokenizer.eos_ids == {BOS_ID, IM_END_ID}  # <|endoftext|> is BOS here


def test_bos_comes_first_where_the_file_says_so(make: Any) -> None:
    assert make(add_bos=True).encode("a", add_special=True, parse_special=False)[0] == BOS_ID
    assert BOS_ID not in make(add_bos=True).encode("a", add_special=False, parse_special=False)
    assert BOS_ID not in make(add_bos=False).encode("a", add_special=True, parse_special=False)


def test_llama3_starts_with_bos_unless_the_file_says_otherwise(make: Any) -> None:
    key = "tokenizer.ggml.add_bos_token"
    tokenizer = make(pre="llama-bpe", omit=(key,))
    assert tokenizer.encode("a", add_special=True, parse_special=False)[0] == BOS_ID
    tokenizer = make(pre="gpt-2", omit=(key,))
    assert BOS_ID not in tokenizer.encode("a", add_special=True, parse_special=False)


def test_a_user_defined_token_is_always_one_token(make: Any) -> None:
    tokenizer = make(token_types={"<unused0>": 4})
    ids = encode(tokenizer, "a<unused0>b")
    assert len(ids) == 3
    assert tokenizer.decode(ids) == "a<unused0>b"


def test_a_file_without_a_template_has_none(make: Any) -> None:
    assert make(chat_template=None).chat_template is None
    assert make().chat_template is not None


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"metadata": {"tokenizer.ggml.model": "llama"}}, "'llama', but only byte-level BPE"),
        ({"pre": "made-up"}, "pre-tokenizer 'made-up' is not known; those that work: codeshell"),
        ({"metadata": {"tokenizer.ggml.add_eos_token": True}}, "add_eos_token, which is not"),
        ({"metadata": {"tokenizer.ggml.eos_token_id": 384}}, "is 384, but tokens are 0 to 383"),
        ({"omit": ["tokenizer.ggml.bos_token_id"], "add_bos": True}, "bos_token_id is missing"),
        ({"merges": ["nopair"]}, "'nopair', which is no pair"),
        ({"merges": ["not there"]}, "do not fit together"),
        ({"vocab": 416}, "416 tokens, but the embedding has 384 rows"),
    ],
)
def test_a_tokenizer_that_cannot_be_right_is_refused(
    tmp_path: Path, arguments: dict[str, Any], wanted: str
) -> None:
    path = make_tiny_gguf(tmp_path / "m.gguf", **arguments)
    with pytest.raises(ConfigError) as caught:
        tokenizer_of(path)
    assert wanted in caught.value.message
