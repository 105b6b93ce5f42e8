"""Text from tokens: characters whole, stop strings out, nothing lost."""

import codecs
import itertools

from hypothesis import given
from hypothesis import strategies as st

from servewright_runtime.engine.detokenizer import Detokenizer


def run(data: bytes, cuts: list[int], stop: tuple[str, ...]) -> tuple[list[str], str | None]:
    """Push `data` cut at `cuts`, then flush. Returns the pieces and the stop string."""
    detokenizer = Detokenizer(stop)
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    pieces = []
    for start, end in itertools.pairwise(edges):
        text, matched = detokenizer.push(data[start:end])
        pieces.append(text)
        if matched is not None:
            return pieces, matched
    return [*pieces, detokenizer.flush()], None


texts = st.text(st.sampled_from("ab\n é漢🙂"), max_size=30)
stops = st.lists(st.text(st.sampled_from("ab\né🙂"), min_size=1, max_size=4), max_size=3)


@given(texts, st.lists(st.integers(0, 200), max_size=12), stops)
def test_text_ends_before_the_earliest_stop_string_however_it_is_cut(
    text: str, cuts: list[int], stop: list[str]
) -> None:
    pieces, matched = run(text.encode(), cuts, tuple(stop))
    places = [text.find(s) for s in stop if s in text]
    # Which of several stop strings is seen first depends on the cuts: a longer one that begins
    # earlier may still be incomplete when a shorter one is whole. The text never holds one whole.
    whole = "".join(pieces)
    if not places:
        assert (whole, matched) == (text, None)
    else:
        assert matched in stop
        assert text.startswith(whole + matched)
        assert not any(s in whole for s in stop)


@given(texts, st.lists(st.integers(0, 200), max_size=12))
def test_no_piece_ends_inside_a_character(text: str, cuts: list[int]) -> None:
    pieces, _ = run(text.encode(), cuts, ())
    assert "".join(pieces) == text
    assert not any("�" in piece for piece in pieces)


@given(st.binary(max_size=40), st.lists(st.integers(0, 200), max_size=12))
def test_bytes_that_are_no_utf8_decode_as_in_one_piece(data: bytes, cuts: list[int]) -> None:
    whole = codecs.getincrementaldecoder("utf-8")("replace").decode(data)
    assert "".join(run(data, cuts, ())[0]) == whole


def test_a_possible_stop_string_is_held_back_and_given_when_it_is_none() -> None:
    detokenizer = Detokenizer(("END",))
    assert detokenizer.push(b"the EN") == ("the ", None)
    assert detokenizer.push(b"EMY") == ("ENEMY", None)
    assert detokenizer.push(b" E") == (" ", None)
    assert detokenizer.flush() == "E"


def test_an_unfinished_character_at_the_end_is_left_out() -> None:
    detokenizer = Detokenizer()
    assert detokenizer.push("a🙂".encode()[:4]) == ("a", None)
    assert detokenizer.flush() == ""
