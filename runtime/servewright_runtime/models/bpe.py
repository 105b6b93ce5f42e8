"""Byte-level BPE tokenizers, built from a GGUF file's fields into the `tokenizers` library.

The library splits and merges text; which text stands for a control token is decided here, so that
text from a client never becomes one unless the caller says so. Ids to bytes go through a table
made once: a token's bytes are exact even where they are no UTF-8 by themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from tokenizers import AddedToken, Regex, pre_tokenizers
from tokenizers import Tokenizer as HfTokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import PreTokenizer

from servewright_runtime.errors import ConfigError, RequestError
from servewright_runtime.models.chat import JinjaChatTemplate
from servewright_runtime.models.gguf import GGUFFile
from servewright_runtime.models.loaded import ChatTemplate

# tokenizer.ggml.token_type. Unused tokens (5) stay, merges may pass through them.
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4

# Control tokens that end a turn or a text in the models known, whatever eos_token_id says.
_END_TEXTS = frozenset(
    {
        "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>",
        "<end_of_turn>", "<|END_OF_TURN_TOKEN|>", "<EOT>",
    }
)  # fmt: skip

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _gpt2() -> PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> PreTokenizer:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, _gpt2()])


def _split(pattern: str) -> Callable[[], PreTokenizer]:
    def make() -> PreTokenizer:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        return pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )

    return make


def _ggml_default() -> PreTokenizer:
    """What llama.cpp does with a file that does not name its pre-tokenizer."""
    punctuation = pre_tokenizers.Split(Regex(r"[\p{P}$+<=>^~|]+"), behavior="isolated")
    words = pre_tokenizers.Split(
        Regex(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
        behavior="isolated",
    )
    numbers = pre_tokenizers.Split(Regex(r"\p{N}+"), behavior="isolated")
    triples = pre_tokenizers.Split(Regex(r"[0-9][0-9][0-9]"), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([punctuation, words, numbers, triples, to_bytes])


# By tokenizer.ggml.pre. The rules are those of each model's own tokenizer.json.
_PRE_TOKENIZERS: dict[str, Callable[[], PreTokenizer]] = {
    "default": _ggml_default,
    **dict.fromkeys(("gpt-2", "gpt2", "mpt", "olmo", "jais"), _gpt2),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), _single_digits
    ),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "smaug-bpe"), _split(_LLAMA3)),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen"), _split(_QWEN2)),
    "tekken": _split(_TEKKEN),
}

# These take a word that is a token as it is, without merging, and start with BOS unless the file
# says otherwise.
_WHOLE_WORDS_FIRST = frozenset({"llama-bpe", "llama3", "llama-v3", "falcon3", "tekken"})


class BpeTokenizer:
    """A `Tokenizer` over byte-level BPE. Thread-safe: nothing changes after construction."""

    def __init__(
        self,
        tokenizer: HfTokenizer,
        texts: Sequence[str],
        token_bytes: Sequence[bytes],
        control_ids: dict[str, int],
        *,
        bos_id: int | None,
        add_bos: bool,
        eos_ids: frozenset[int],
        chat_template: ChatTemplate | None,
    ) -> None:
        self.vocab_size = len(texts)
        self.bos_id = bos_id
        self.eos_ids = eos_ids
        self.chat_template = chat_template
        self._tokenizer = tokenizer
        self._texts = texts
        self._bytes = token_bytes
        self._control_ids = control_ids
        self._add_bos = add_bos
        # The longest first, so that a token which starts another does not hide it.
        longest_first = sorted(control_ids, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Ids of `text`. See `Tokenizer.encode`. Raises RequestError where it is no Unicode."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the text has a lone surrogate (U+{ord(text[error.start]):04X}) at character "
                f"{error.start}, which no UTF-8 text can hold; remove it."
            ) from None
        ids = [self.bos_id] if add_special and self._add_bos and self.bos_id is not None else []
        start = 0
        if parse_special:
            for match in self._control.finditer(text):
                ids += self._encode_plain(text[start : match.start()])
                ids.append(self._control_ids[match.group()])
                start = match.end()
        ids += self._encode_plain(text[start:])
        return ids

    def decode(self, ids: Sequence[int], *, keep_control: bool = False) -> str:
        """Text of `ids`, invalid UTF-8 as U+FFFD. keep_control: control tokens by name."""
        pieces = [self._bytes[token_id] for token_id in ids]
        if keep_control:
            pieces = [
                piece or self._texts[token_id].encode()
                for piece, token_id in zip(pieces, ids, strict=True)
            ]
        return b"".join(pieces).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; empty for a control token."""
        return self._bytes[token_id]

    def token_text(self, token_id: int) -> str:
        """The token as a person reads it, control tokens by name, invalid UTF-8 as U+FFFD."""
        text = self._texts[token_id]
        return text if text in self._control_ids else self._bytes[token_id].decode(errors="replace")

    def _encode_plain(self, text: str) -> list[int]:
        if not text:
            return []
        # `encode` would hold the GIL, for seconds on a text of megabytes; this gives it up.
        ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids


def build_tokenizer(file: GGUFFile, vocab_size: int) -> BpeTokenizer:
    """The tokenizer that `file` describes. Raises ConfigError where it is unknown or inconsistent.

    vocab_size: rows of the model's embedding.
    """
    model = file.get("tokenizer.ggml.model", str)
    if model != "gpt2":
        raise ConfigError(
            f"{file.path}: the tokenizer is {model!r}, but only byte-level BPE ('gpt2') is served; "
            "choose a model with such a tokenizer (Llama 3, SmolLM2)."
        )
    pre = file.get("tokenizer.ggml.pre", str, "default")
    if pre not in _PRE_TOKENIZERS:
        raise ConfigError(
            f"{file.path}: the pre-tokenizer {pre!r} is not known; those that work: "
            f"{', '.join(sorted(_PRE_TOKENIZERS))}."
        )
    for key in ("tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_space_prefix"):
        if file.get(key, bool, False):
            raise ConfigError(
                f"{file.path}: sets {key}, which is not supported for byte-level BPE; "
                "convert the model again without it."
            )
    texts = _strings(file, "tokenizer.ggml.tokens")
    if len(texts) != vocab_size:
        raise ConfigError(
            f"{file.path}: the tokenizer has {len(texts)} tokens, but the embedding has "
            f"{vocab_size} rows; convert the model again."
        )
    kinds = _token_types(file, vocab_size)
    control_ids: dict[str, int] = {}
    for token_id in np.flatnonzero((kinds == _CONTROL) | (kinds == _UNKNOWN)).tolist():
        if texts[token_id]:
            control_ids.setdefault(texts[token_id], token_id)
    user_ids = np.flatnonzero(kinds == _USER_DEFINED).tolist()

    bos_id = _token_id(file, "bos", vocab_size)
    add_bos = file.get("tokenizer.ggml.add_bos_token", bool, pre in _WHOLE_WORDS_FIRST)
    if add_bos and bos_id is None:
        raise ConfigError(
            f"{file.path}: prompts start with a BOS token, but tokenizer.ggml.bos_token_id is "
            "missing; convert the model again."
        )
    ends = {_token_id(file, name, vocab_size) for name in ("eos", "eot", "eom")}
    ends |= {control_ids[text] for text in _END_TEXTS & control_ids.keys()}
    eos_ids = frozenset(token_id for token_id in ends if token_id is not None)

    source = file.get("tokenizer.chat_template", str, "")
    chat_template = None
    if source:
        chat_template = JinjaChatTemplate(
            source,
            bos_token="" if bos_id is None else texts[bos_id],
            eos_token=_eos_text(file, texts),
        )
    return BpeTokenizer(
        _hf_tokenizer(file, pre, texts, control_ids, user_ids),
        texts,
        _bytes_table(texts, kinds),
        control_ids,
        bos_id=bos_id,
        add_bos=add_bos,
        eos_ids=eos_ids,
        chat_template=chat_template,
    )


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte, to that byte.

    A byte that Latin-1 prints stands for itself; the others, in order, are U+0100 and up.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }


def _hf_tokenizer(
    file: GGUFFile,
    pre: str,
    texts: Sequence[str],
    control_ids: dict[str, int],
    user_ids: Sequence[int],
) -> HfTokenizer:
    merges = []
    for merge in _strings(file, "tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        if not left or not right:
            raise ConfigError(
                f"{file.path}: tokenizer.ggml.merges holds {merge!r}, which is no pair of tokens; "
                "convert the model again."
            )
        merges.append((left, right))
    # Control tokens are not in the library's vocabulary, so no text can be merged into one,
    # except where a file's merges make it from the others.
    merged = {left + right for left, right in merges}
    vocab: dict[str, int] = {}
    for token_id, text in enumerate(texts):
        if text not in control_ids or text in merged:
            vocab.setdefault(text, token_id)
    try:
        model = BPE(vocab=vocab, merges=merges, ignore_merges=pre in _WHOLE_WORDS_FIRST)
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(
            f"{file.path}: tokens and merges do not fit together ({error}); "
            "convert the model again."
        ) from None
    tokenizer = HfTokenizer(model)
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    tokenizer.add_tokens(
        [AddedToken(texts[token_id], normalized=False) for token_id in user_ids if texts[token_id]]
    )
    return tokenizer


def _bytes_table(texts: Sequence[str], kinds: np.ndarray) -> list[bytes]:
    """The bytes that each token stands for."""
    # Characters outside the alphabet go to one that Latin-1 lacks, and the token to the fallback.
    table = dict.fromkeys(range(256), "\uffff")
    table |= {ord(char): chr(byte) for char, byte in byte_alphabet().items()}
    silent = (kinds == _CONTROL) | (kinds == _UNKNOWN)
    result = []
    for text, is_silent, is_user in zip(
        texts, silent.tolist(), (kinds == _USER_DEFINED).tolist(), strict=True
    ):
        if is_silent:
            result.append(b"")
        elif is_user:
            result.append(text.encode())
        else:
            try:
                result.append(text.translate(table).encode("latin-1"))
            except UnicodeEncodeError:
                result.append(text.encode())
    return result


def _strings(file: GGUFFile, key: str) -> list[str]:
    value = file.metadata.get(key)
    if not isinstance(value, list):
        raise ConfigError(
            f"{file.path}: the GGUF metadata lack the list of texts {key}; "
            "convert the model again with a current converter."
        )
    return value


def _token_types(file: GGUFFile, vocab_size: int) -> np.ndarray:
    """[vocab] integers; all normal where the file does not say."""
    value = file.metadata.get("tokenizer.ggml.token_type")
    if value is None:
        return np.ones(vocab_size, dtype=np.int32)
    if not isinstance(value, np.ndarray) or value.dtype.kind != "i" or len(value) != vocab_size:
        raise ConfigError(
            f"{file.path}: tokenizer.ggml.token_type is no list of {vocab_size} whole numbers; "
            "convert the model again."
        )
    return value


def _token_id(file: GGUFFile, name: str, vocab_size: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    if key not in file.metadata:
        return None
    token_id = file.get(key, int)
    if not 0 <= token_id < vocab_size:
        raise ConfigError(
            f"{file.path}: {key} is {token_id}, but tokens are 0 to {vocab_size - 1}; "
            "convert the model again."
        )
    return token_id


def _eos_text(file: GGUFFile, texts: Sequence[str]) -> str:
    token_id = _token_id(file, "eos", len(texts))
    return "" if token_id is None else texts[token_id]
