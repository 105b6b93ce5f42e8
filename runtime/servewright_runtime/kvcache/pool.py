"""Blocks of the paged KV cache: who holds which, and which hold a known prefix.

Pure bookkeeping over block numbers: no tensors, no clock. A block is in use (owned by one or more
sequences) or free. A full block is filed under the hash of all tokens up to its end, so that a
later sequence with the same beginning takes it as it is; a shared block is full and never written
again, hence no copy-on-write. A freed block keeps its content and its hash until it is handed out
again, the longest unused first.

Source of the scheme: block-hash prefix caching as in vLLM's automatic prefix caching.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

ROOT_HASH = b""


def block_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Hash of a full block's tokens and, through `parent`, of all tokens before it.

    128 bits of BLAKE2b: a wrong hit would serve another prompt's cache, so a collision must be out
    of reach also for someone who tries.
    """
    return hashlib.blake2b(parent + array("i", token_ids).tobytes(), digest_size=16).digest()


class BlockPool:
    """`num_blocks` blocks, handed out one by one and counted by owners."""

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks >= 1
        self.num_blocks = num_blocks
        self._owners = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        # Free blocks, the longest unused first.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def free_blocks(self) -> int:
        """Blocks that no sequence owns."""
        return len(self._free)

    @property
    def used_blocks(self) -> int:
        """Blocks that some sequence owns."""
        return self.num_blocks - len(self._free)

    def find(self, hash_: bytes) -> int | None:
        """The block filed under `hash_`, if its content is still there. Takes nothing."""
        return self._block_of.get(hash_)

    def is_free(self, block: int) -> bool:
        """Whether no sequence owns the block."""
        return self._owners[block] == 0

    def take(self) -> int:
        """Hand out the longest unused free block, forgetting what it held. Needs a free block."""
        block, _ = self._free.popitem(last=False)
        old = self._hash_of[block]
        if old is not None:
            del self._block_of[old]
            self._hash_of[block] = None
        self._owners[block] = 1
        return block

    def share(self, block: int) -> None:
        """Add an owner to a block found by its hash."""
        assert self._hash_of[block] is not None, "only full blocks are shared"
        if self._owners[block] == 0:
            del self._free[block]
        self._owners[block] += 1

    def file(self, block: int, hash_: bytes) -> None:
        """Make a full block findable. The first block under a hash keeps it."""
        assert self._owners[block] >= 1
        if hash_ not in self._block_of:
            assert self._hash_of[block] is None, "a block's content changes only through take()"
            self._block_of[hash_] = block
            self._hash_of[block] = hash_

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one owner from each block of a sequence, in sequence order.

        The end is freed first, hence reused first: a prefix is of use without its continuation.
        """
        for block in reversed(blocks):
            self._owners[block] -= 1
            assert self._owners[block] >= 0
            if self._owners[block] == 0:
                self._free[block] = None
                if self._hash_of[block] is None:
                    self._free.move_to_end(block, last=False)  # nothing to lose in it

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Assert that owners are counted as `tables` (one a sequence) say and all adds up.

        Raises AssertionError with what is wrong. For tests, after each step.
        """
        counted = [0] * self.num_blocks
        for table in tables:
            assert len(set(table)) == len(table), f"a sequence owns a block twice: {table}"
            for block in table:
                counted[block] += 1
        assert counted == self._owners, "owner counts differ from the sequences' tables"
        free = {block for block, owners in enumerate(counted) if owners == 0}
        assert free == set(self._free), "free list and owner counts differ"
        filed = {block: h for block, h in enumerate(self._hash_of) if h is not None}
        assert {h: b for b, h in filed.items()} == self._block_of, "hash index is not one to one"
        for block, owners in enumerate(counted):
            assert owners <= 1 or block in filed, f"block {block} is shared but not full"
