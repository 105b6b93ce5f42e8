"""The block pool under random use, and its single rules."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from servewright_runtime.kvcache.pool import ROOT_HASH, BlockPool, block_hash


def test_a_freed_block_is_found_again_until_it_is_handed_out() -> None:
    pool = BlockPool(2)
    block = pool.take()
    hash_ = block_hash(ROOT_HASH, range(16))
    pool.file(block, hash_)
    pool.release([block])
    assert pool.find(hash_) == block
    pool.take()  # the unused one first
    assert pool.find(hash_) == block
    assert pool.take() == block
    assert pool.find(hash_) is None


def test_the_end_of_a_sequence_is_reused_before_its_beginning() -> None:
    pool = BlockPool(3)
    blocks = [pool.take() for _ in range(3)]
    parent = ROOT_HASH
    for index, block in enumerate(blocks):
        parent = block_hash(parent, [index] * 16)
        pool.file(block, parent)
    pool.release(blocks)
    assert [pool.take() for _ in range(3)] == blocks[::-1]


def test_the_same_tokens_after_other_tokens_have_another_hash() -> None:
    first = block_hash(ROOT_HASH, [1] * 16)
    assert block_hash(ROOT_HASH, [2] * 16) != block_hash(first, [2] * 16)


def test_the_integrity_check_sees_a_block_with_two_owners() -> None:
    pool = BlockPool(2)
    block = pool.take()
    pool.check_integrity([[block]])
    with pytest.raises(AssertionError, match="owner counts"):
        pool.check_integrity([[block], [block]])


class PoolMachine(RuleBasedStateMachine):
    """Sequences come, share what they find, and go; the books must balance after each move."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(8)
        self.tables: list[list[int]] = []

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=4))
    def start(self, tokens: list[int]) -> None:
        """A sequence whose block i holds 16 times tokens[i]."""
        table, hashes, parent = [], [], ROOT_HASH
        for token in tokens:
            parent = block_hash(parent, [token] * 16)
            hashes.append(parent)
        for hash_ in hashes:
            block = self.pool.find(hash_)
            if block is None:
                break
            self.pool.share(block)
            table.append(block)
        if len(tokens) - len(table) > self.pool.free_blocks:
            self.pool.release(table)
            return
        for hash_ in hashes[len(table) :]:
            table.append(self.pool.take())
            self.pool.file(table[-1], hash_)
        self.tables.append(table)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.pool.release(self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1))))

    @invariant()
    def books_balance(self) -> None:
        self.pool.check_integrity(self.tables)
        assert self.pool.free_blocks + self.pool.used_blocks == self.pool.num_blocks


test_random_use_keeps_the_books = PoolMachine.TestCase
