"""The page that benches write parts of."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench import page
from bench.page import PAGE, marks, replaced


def test_a_part_is_replaced_and_the_rest_kept() -> None:
    (begin, end), (others, others_end) = marks("scale"), marks("bench")
    rest = f"after\n{others}\n1\n{others_end}\n"
    page = f"before\n{begin}\nold\n{end}\n{rest}"
    assert replaced(page, "scale", "new\n") == f"before\n{begin}\nnew\n{end}\n{rest}"


def test_a_page_without_the_marks_is_not_overwritten() -> None:
    with pytest.raises(ValueError, match="scale:begin"):
        replaced("a page", "scale", "new\n")


def test_a_picture_lies_beside_the_page_which_shows_it_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.md"
    begin, end = marks("bench")
    path.write_text(f"{begin}\nold\n{end}\n")
    monkeypatch.setattr(page, "PAGE", path)
    page.write("bench", "new\n", "<svg/>\n")
    assert path.read_text() == f"{begin}\n![bench](bench.svg)\n\nnew\n{end}\n"
    assert (tmp_path / "bench.svg").read_text() == "<svg/>\n"


@pytest.mark.parametrize("part", ["bench", "scale"])
def test_our_page_has_the_parts_that_benches_write(part: str) -> None:
    assert replaced(PAGE.read_text(), part, "new\n") != PAGE.read_text()
