"""The picture of a bench."""

import re
from xml.etree import ElementTree

import pytest
from bench.plot import draw, lines
from bench.result import OURS, RIVAL, Result

SVG = "{http://www.w3.org/2000/svg}"


def make_result(**samples: dict[str, list[float]]) -> Result:
    return Result(
        machine={},
        commit="0123456789ab",
        versions={},
        settings={"threads": [1, 2], "streams": [1, 16]},
        began="2026-01-01 00:00 UTC",
        samples=samples,
    )


def test_a_time_is_shown_as_a_speed_and_its_target_with_it() -> None:
    result = make_result(
        http_16_tok_s={OURS: [300, 280], RIVAL: [100, 100]},
        http_16_ttft_p50_s={OURS: [0.25, 0.5], RIVAL: [1.0, 1.0]},
        ready_s={OURS: [7.0, 7.0], RIVAL: [1.0, 1.0]},
    )
    rate, ttft = lines(result)
    assert (rate.speeds, rate.target) == ([3.0, 2.8], 2.8)
    assert (ttft.speeds, ttft.median) == ([4.0, 2.0], 3.0)
    assert ttft.target == pytest.approx(3.0)


def test_a_missed_target_has_another_colour_and_every_repetition_a_dot() -> None:
    result = make_result(
        decode_2t_tok_s={OURS: [170, 180, 175], RIVAL: [100] * 3},
        prefill_2t_tok_s={OURS: [250, 240, 260], RIVAL: [100] * 3},
    )
    root = ElementTree.fromstring(draw(result))  # noqa: S314 -- our own text
    background, missed, held = root.iter(f"{SVG}rect")
    assert len({rect.get("fill") for rect in (background, missed, held)}) == 3
    assert float(missed.get("width", 0)) < float(held.get("width", 0))
    assert len(list(root.iter(f"{SVG}circle"))) == 6
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"1.75", "2.50", "decode Q4_0, 2 threads, tok/s"} <= set(texts)


def test_nothing_lies_outside_the_picture() -> None:
    result = make_result(decode_1t_tok_s={OURS: [10, 9000], RIVAL: [100, 100]})
    picture = draw(result)
    width = float(re.findall(r'<svg [^>]* width="(\d+)"', picture)[0])
    places = [float(at) for at in re.findall(r' (?:cx|x|x1)="([\d.]+)"', picture)]
    assert 0 <= min(places) <= max(places) <= width


def test_an_engine_alone_gives_an_empty_picture_that_is_still_svg() -> None:
    picture = draw(make_result(decode_1t_tok_s={OURS: [100]}))
    assert ElementTree.fromstring(picture).tag == f"{SVG}svg"  # noqa: S314 -- our own text
