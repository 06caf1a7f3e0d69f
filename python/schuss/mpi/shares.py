"""Which process has which elements of which array.

Arrays are put into buckets, whole and in their order, and each bucket is cut into a share for each
process: by bytes, at multiples of 4096 elements of an array, in the order of memory. So every
process has work, and messages to and from all the others, in every bucket.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from schuss import _core

CHUNK = 4096  # elements, at whose edges an array may be cut: what is summed of them isn't
# Bytes of a process' share of a bucket, from which on another one begins. Of many processes they
# are fewer, since each has room for two buckets of what the others send.
BUCKET, LEAST, ALL = 1 << 22, 1 << 18, 1 << 28

Slice = tuple[int, int]  # the first element of an array, and the one behind the last


class Shares:
    """How arrays are divided among processes.

    sizes     of the arrays, in elements
    widths    of their elements, in bytes
    ranks     how many processes there are
    """

    def __init__(self, sizes: Sequence[int], widths: Sequence[int], ranks: int) -> None:
        self.sizes = list(sizes)
        self.buckets: list[list[int]] = list(buckets(sizes, widths, ranks * each(ranks)))
        self.slices: list[list[Slice]] = [[] for _ in sizes]  # of each array, of each process
        for bucket in self.buckets:
            total, before = sum(sizes[i] * widths[i] for i in bucket), 0
            for i in bucket:
                where = sizes[i], widths[i], before, total
                self.slices[i] = [_core.share(*where, rank, ranks) for rank in range(ranks)]
                before += sizes[i] * widths[i]
        # Of each bucket, of each process: the arrays of which it has something, and what.
        self.parts = [
            [
                [(i, slice(*self.slices[i][rank])) for i in bucket if self.chunks(i, rank)]
                for rank in range(ranks)
            ]
            for bucket in self.buckets
        ]

    def chunks(self, number: int, rank: int) -> int:
        """How many chunks a process has of an array."""
        first, last = self.slices[number][rank]
        return -((first - last) // CHUNK)


def each(ranks: int) -> int:
    """The bytes of a process' share of a bucket."""
    return min(BUCKET, max(LEAST, ALL // ranks))


def buckets(sizes: Sequence[int], widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """The numbers of arrays, in order, until they make up as many bytes."""
    bucket: list[int] = []
    filled = 0
    for i, (size, width) in enumerate(zip(sizes, widths, strict=True)):
        bucket.append(i)
        filled += size * width
        if filled >= room:
            yield bucket
            bucket, filled = [], 0
    if bucket:
        yield bucket
