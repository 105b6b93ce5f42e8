"""What of the KV cache is committed, and when."""

import itertools
import os
from pathlib import Path

import numpy as np

from servewright_runtime import native
from servewright_runtime.models.runner import BLOCK_TOKENS
from support.native_model import SMALL, Piece, logits_of, make_batch, make_model, random_tokens

BEST = native.variants()[0]
MIB = 1 << 20
PAGE = 2 * MIB
AHEAD = 256 * MIB
BLOCK_BYTES = SMALL.kv_bytes_per_token * BLOCK_TOKENS


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def commit_all(runner: native.NativeRunner) -> int:
    """Calls that committed something, the last of them included."""
    return next(count for count in itertools.count(1) if not runner.commit_ahead())


def test_a_small_cache_is_committed_whole_and_no_more() -> None:
    runner = make_model().runner(BEST, num_blocks=5 * MIB // BLOCK_BYTES)
    before = resident()
    assert commit_all(runner) == 3
    assert 5 * MIB <= resident() - before < 8 * MIB
    assert not runner.commit_ahead()


def test_what_is_committed_stays_ahead_of_what_is_written() -> None:
    model = make_model()
    runner = model.runner(BEST, num_blocks=600 * MIB // BLOCK_BYTES)
    before = resident()
    assert commit_all(runner) == AHEAD // PAGE
    assert AHEAD <= resident() - before < AHEAD + 4 * MIB
    tokens = random_tokens(model.config, 3 * BLOCK_TOKENS)
    first = logits_of(runner.step(make_batch([Piece(tokens)])))
    far = logits_of(runner.step(make_batch([Piece(tokens, first_block=32 * MIB // BLOCK_BYTES)])))
    np.testing.assert_array_equal(first, far)
    commit_all(runner)
    assert AHEAD + 32 * MIB <= resident() - before < AHEAD + 38 * MIB


def test_a_closed_runner_commits_nothing() -> None:
    runner = make_model().runner(BEST)
    runner.close()
    assert not runner.commit_ahead()
