"""The table of a bench, from samples that a person can check."""

import re

import pytest
from bench.report import render, verdicts
from bench.result import BARE, IN_PROCESS, OURS, RIVAL, Result


def make_result(**samples: dict[str, list[float]]) -> Result:
    settings = {"threads": [1, 2], "streams": [1, 16], "repeats": 3}
    return Result(
        machine={"Model name": "a CPU"},
        commit="0123456789ab",
        versions={"servewright": "0.1"},
        settings={**settings, "tokens_in": 64, "tokens_out": 64},
        began="2026-01-01 00:00 UTC",
        samples=samples,
    )


def cells(text: str, label: str) -> list[str]:
    """The cells of the one line that `label` begins."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {label} ")]
    return [re.sub(r"\s+", " ", cell.strip()) for cell in line.strip("|").split("|")]


def test_a_row_shows_medians_spread_and_the_median_of_paired_ratios() -> None:
    result = make_result(decode_2t_tok_s={OURS: [300, 310, 200], RIVAL: [100, 310, 100]})
    row = cells(render(result), "decode Q4_0, 2 threads, tok/s")
    assert row[1:] == ["300 (200..310)", "100 (100..310)", "2.00 (1.00..3.00)", ">= 1.8", "yes"]


def test_a_missed_target_is_told() -> None:
    result = make_result(http_16_ttft_p50_s={OURS: [0.6], RIVAL: [1.0]})
    (verdict,) = verdicts(result)
    assert not verdict.holds
    assert verdict.ratio == pytest.approx(0.6)
    assert cells(render(result), "HTTP 16 streams, TTFT p50, ms")[1:] == [
        "600", "1,000", "0.60", "<= 0.333", "NO",
    ]  # fmt: skip


def test_only_the_largest_stream_count_has_a_target() -> None:
    result = make_result(
        http_1_tok_s={OURS: [1.0], RIVAL: [1.0]},
        http_16_tok_s={OURS: [3.0], RIVAL: [1.0], BARE: [3.0], IN_PROCESS: [3.2]},
    )
    assert [(verdict.label, verdict.holds) for verdict in verdicts(result)] == [
        ("HTTP 16 streams, tok/s", True),
        ("HTTP / in-process, 16 streams, tok/s", True),
    ]


@pytest.mark.parametrize(
    ("kernel", "target"), [("avx512", ">= 1.5"), ("avx2", ">= 1.6"), ("another", "")]
)
def test_one_thread_s_target_is_that_of_the_kernels_that_ran(kernel: str, target: str) -> None:
    result = make_result(decode_1t_tok_s={OURS: [155], RIVAL: [100]})
    result.versions["kernel"] = kernel
    assert cells(render(result), "decode Q4_0, 1 thread, tok/s")[4] == target


def test_without_a_rival_our_numbers_stand_alone_and_nothing_is_claimed() -> None:
    result = make_result(decode_2t_tok_s={OURS: [300]})
    row = cells(render(result), "decode Q4_0, 2 threads, tok/s")
    assert row[1:] == ["300", "-", "-", ">= 1.8", ""]
    assert verdicts(result) == []


def test_the_client_s_own_share_of_a_core_is_told() -> None:
    result = make_result(client_cpu_share={OURS: [0.012, 0.02], RIVAL: [0.01]})
    assert "- The load client took at most 2.0% of a core." in render(result)
