"""Ids of our tokenizers against those that `transformers` builds from the same file."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from servewright_runtime.models.bpe import BpeTokenizer, build_tokenizer
from servewright_runtime.models.gguf import GGUFFile
from servewright_runtime.models.llama import read_config
from support.smollm2 import smollm2_path
from support.tiny import make_tiny_gguf

CORPUS = (
    "",
    " ",
    "Hello, world! It's the user's turn; we'll see, they'd say I'm RIGHT, DON'T you?",
    "🎉 emoji 👩‍👩‍👧‍👦 and 🏳️‍🌈, ✊🏿, 🇩🇪🇯🇵 and 1️⃣",
    "日本語のテキスト、中文文本，한국어 텍스트。",
    "Ελληνικά, русский, العربية مع أرقام ٣٤٥, עברית, हिन्दी, ไทย",
    "é e\u0301 ﬁ Ⅻ ½ ² \u00a0\u2003\u3000\u200b\u200d\ufeff",
    "def f(x: int) -> str:\n\treturn f'{x:>10}'  # comment\n\n\nclass A:\n    pass\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * 3.14159e-10f; }\r\n\r\n",
    "a" + " " * 1000 + "b" + "\n" * 50 + "\t" * 50 + " \n \n  x",
    "   leading and trailing   ",
    "12345 1,234,567.89 0x1F 2024-05-01 3rd",
    "!!!???...---===___///\\\\\\|||```~~~@@@###$$$%%%^^^&&&***((()))",
    "https://example.com/a?b=c&d=%20#e user@example.com",
    "x" * 3000,
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|><|im_start",
    "\x00\x01\x1f\x7f\x80\x9f",
    "\U0010ffff\ue000\ufffd",
)


def ours(path: Path) -> BpeTokenizer:
    with GGUFFile(path) as file:
        return build_tokenizer(file, read_config(file).vocab_size)


def theirs(path: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def assert_same_ids(tokenizer: BpeTokenizer, reference: PreTrainedTokenizerFast) -> None:
    for text in CORPUS:
        wanted = reference.encode(text, add_special_tokens=False)
        assert tokenizer.encode(text, add_special=False, parse_special=True) == wanted, text
        wanted = reference.encode(text, add_special_tokens=False, split_special_tokens=True)
        assert tokenizer.encode(text, add_special=False, parse_special=False) == wanted, text


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2", "tekken"])
def test_ids_equal_for_each_pre_tokenizer_that_transformers_reads(tmp_path: Path, pre: str) -> None:
    path = make_tiny_gguf(tmp_path / "m.gguf", pre=pre, chat_template=None)
    assert_same_ids(ours(path), theirs(path))


def test_ids_equal_for_smollm2() -> None:
    path = smollm2_path()
    reference = theirs(path)
    # transformers takes the file for GPT-2's rules; the model's own tokenizer.json says these.
    reference.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer = ours(path)
    assert_same_ids(tokenizer, reference)
    for start in range(0, tokenizer.vocab_size, 997):
        # Any run of tokens, most of them no UTF-8 at the seams.
        ids = list(range(start, min(start + 40, tokenizer.vocab_size)))
        assert tokenizer.decode(ids) == reference.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def test_smollm2_splits_numbers_into_digits() -> None:
    tokenizer = ours(smollm2_path())
    ids = tokenizer.encode("2024", add_special=False, parse_special=False)
    assert [tokenizer.token_text(token_id) for token_id in ids] == ["2", "0", "2", "4"]
