"""docs/performance.md: prose by hand, with parts between marks that benches write."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"


def marks(part: str) -> tuple[str, str]:
    """The lines around a generated part."""
    return f"<!-- {part}:begin -->", f"<!-- {part}:end -->"


def replaced(page: str, part: str, text: str) -> str:
    """`page` with one of its generated parts replaced. Raises ValueError if it has no such part."""
    begin_mark, end_mark = marks(part)
    head, begin, rest = page.partition(begin_mark)
    _, end, tail = rest.partition(end_mark)
    if not begin or not end:
        raise ValueError(f"the page has no part between {begin_mark} and {end_mark}")
    return f"{head}{begin_mark}\n{text}{end_mark}{tail}"


def write(part: str, text: str, picture: str | None = None) -> None:
    """Renew one part of the page. picture: an SVG to keep beside the page and show first."""
    if picture is not None:
        path = PAGE.with_name(f"{part}.svg")
        path.write_text(picture)
        text = f"![{part}]({path.name})\n\n{text}"
    PAGE.write_text(replaced(PAGE.read_text(), part, text))
    print(f"written: {PAGE}")
