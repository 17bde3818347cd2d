"""Keys and values of chunks, used again wherever the chunk stands next time.

Cache-Craft (Agarwal et al., SIGMOD 2025): a chunk of a prompt (a retrieved passage) is computed once; later its keys
and values are copied to its new place, the keys turned to their new positions, and only those of its tokens are
computed again that depended on what stood before them then. Different here: the question itself says which tokens those
are, by what it attends to when it reads the copies (`chunk_plan.tokens_to_repair`); what the prefix tree has is always
used first; copies are private to a sequence, so a stored chunk is never written. The layer-by-layer stop of repairs is
left out.

It is not exact, so it is off unless a request allows it, and an answer says what was taken.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from windlass.core import storage
from windlass.core.errors import UsageError
from windlass.kernels import rope_shift
from windlass.models.page_pool import PagePool
from windlass.serving.chunk_plan import ReusePlan, Taken, Wanted, context_impact, fix_overhead, tokens_to_repair
from windlass.serving.chunk_record import ChunkRecord
from windlass.serving.chunk_store import ChunkStats, ChunkStore
from windlass.serving.request import Request, Sequence

_TOO_MUCH = 0.95
"""A chunk of which more than this is to be repaired is computed as a whole, and kept as another variant."""


@dataclass(frozen=True, slots=True)
class ChunkOptions:
    """How chunks are kept and used.

    Attributes:
        alpha: Factor on the share of a chunk that is repaired; 0 repairs nothing, larger is nearer to exact.
        head_tokens: Tokens at the beginning of a chunk that are repaired first.
        probe_tokens: So many tokens of a prompt, at most, are computed twice: once to see what of the copies they look
            at, and again when that is repaired. Where more would be, what looked outside its chunk when it was
            computed is repaired; 0: always.
        max_variants: Of a chunk, computed in different contexts.
        memory_bytes, disk_bytes: Room for chunks in memory, and in `folder`.
        folder: Where chunks outlive the process; None: memory only.
        sightings: A chunk is kept when it is computed for the so manyth time.
        least_tokens: Shorter chunks are not worth the trouble.

    Raises:
        UsageError: a value makes no sense.
    """

    alpha: float = 0.3
    head_tokens: int = 8
    probe_tokens: int = 96
    max_variants: int = 5
    memory_bytes: int = 256 << 20
    disk_bytes: int = 1 << 30
    folder: Path | None = None
    sightings: int = 1
    least_tokens: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 100:
            raise UsageError(f"alpha is {self.alpha}, expected 0 to 100")
        if min(self.head_tokens, self.probe_tokens, self.memory_bytes, self.disk_bytes) < 0:
            raise UsageError("sizes of the chunk cache must not be negative")
        if min(self.max_variants, self.sightings, self.least_tokens) < 1:
            raise UsageError("variants, sightings and tokens of a chunk count from 1")


class ChunkCache:
    """Chunks of one model. `KVManager` asks it what to take; the engine has it write and keep.

    Args:
        pool: The memory that chunks are copied from and to.
        frequencies: Radians a position of each channel pair of a key, float64 [head_dim / 2].
        interleaved: Whether channel pairs are neighbours.
        revision: Names the weights; chunks of other weights are not found.
        options: How chunks are kept and used.
        disk: What the folder is on.
    """

    def __init__(
        self,
        pool: PagePool,
        frequencies: NDArray[np.float64],
        *,
        interleaved: bool,
        revision: str,
        options: ChunkOptions,
        disk: storage.Disk = storage.LOCAL_DISK,
    ) -> None:
        self.options = options
        self.store = ChunkStore(
            options.memory_bytes, options.folder, disk_bytes=options.disk_bytes, max_variants=options.max_variants,
            disk=disk,
        )  # fmt: skip
        self._pool, self._frequencies, self._interleaved = pool, frequencies, interleaved
        self._revision = revision
        self._seen: Counter[bytes] = Counter()
        self.reused_tokens = self.repaired_tokens = 0

    def fetch(self, request: Request) -> None:
        """Bring the chunks of a request from the disk; may be called from any thread."""
        if self._serves(request):
            owner = self._owner(request)
            for _, _, content in self._chunks(request, owner):
                self.store.load(content, owner)

    def plan(self, seq: Sequence, known: int) -> ReusePlan | None:
        """What of `seq` is taken from chunks, beyond the `known` tokens that need none; None when it has no chunks."""
        request = seq.request
        if not self._serves(request):
            return None
        before: list[bytes] = []
        taken, wanted, bounds = [], [], []
        for start, stop, content in self._chunks(request, self._owner(request)):
            bounds += [start, stop]
            if start >= known:
                part = self._best(content, start, stop, before)
                if part is None:
                    wanted.append(Wanted(content, start, stop, tuple(before), len(bounds) - 1))
                else:
                    taken.append(part)
            before.append(content)
        if not before:
            return None
        for part in taken:
            self.store.used(part.record, 1 - part.overhead)
        plan = ReusePlan(
            known, tuple(taken), tuple(wanted), (*bounds, len(seq.tokens)) if wanted else (), self.options.alpha
        )
        if wanted:
            plan.shares = np.zeros((len(seq.tokens), len(plan.bounds)), np.float32)
        elif any(part.budget for part in taken):
            self._let_look(plan, len(seq.tokens), bounds[-1])
        if not plan.probing:
            self._repair(plan)
        return plan

    def place(self, seq: Sequence) -> None:
        """Write the keys and values of taken chunks to the sequence's pages, once."""
        plan = seq.reuse
        if plan is None or plan.placed:
            return
        plan.placed = True
        assert seq.view is not None
        pages, layers, heads, size = self._shape(seq)
        for part in plan.taken:
            record = part.record
            cosine, sine = rope_shift.angles(
                self._frequencies, part.start - record.position, interleaved=self._interleaved
            )
            rope_shift.place(
                record.data.reshape(-1), layers, heads, record.tokens, size, 0, record.tokens, cosine, sine,
                self._interleaved, self._pool.data.reshape(-1), self._pool.page_tokens, pages, part.start,
            )  # fmt: skip

    def watch(self, seq: Sequence, indices: NDArray[np.int64], shares: NDArray[np.float32]) -> None:
        """Tokens `indices` of `seq` were computed and attended to this: float32 [tokens, stretches]."""
        plan = seq.reuse
        if plan is None:
            return
        if plan.probes is None or plan.looked_at is None:
            if plan.shares is not None:
                plan.shares[indices] = shares
            return
        plan.looked_at[: shares.shape[1]] += shares[indices >= plan.question].sum(axis=0)
        plan.probes = plan.probes[plan.probes > indices[-1]]
        if not len(plan.probes):
            plan.probes = None
            self._repair(plan)
        seq.set_todo(plan.todo(len(seq.tokens)))

    def keep(self, seq: Sequence) -> None:
        """Remember the chunks that `seq` computed, while it still has its pages."""
        plan = seq.reuse
        if plan is None or seq.view is None:
            return
        for part in plan.wanted:
            if seq.computed < part.stop:
                break
            self._seen[part.content] += 1
            if self._seen[part.content] >= self.options.sightings:
                self.store.add(self._record(seq, plan, part))
        seq.reuse = ReusePlan(plan.known, plan.taken, (), (), plan.alpha, placed=True)

    def stats(self) -> ChunkStats:
        return self.store.stats()

    def close(self) -> None:
        """Write what waits to be written."""
        self.store.close()

    def _let_look(self, plan: ReusePlan, length: int, question: int) -> None:
        """Have the tokens that are computed anyway look at the copies first, if they are few."""
        todo = plan.todo(length)
        if np.count_nonzero(todo > plan.exact) <= self.options.probe_tokens:
            plan.probes, plan.looked_at, plan.question = todo, np.zeros(length), question

    def _repair(self, plan: ReusePlan) -> None:
        """Decide which tokens of the taken chunks are computed again."""
        plan.taken = tuple(tokens_to_repair(plan.taken, plan.looked_at, self.options.head_tokens))
        repaired = sum(len(part.repaired) for part in plan.taken)
        self.repaired_tokens += repaired
        self.reused_tokens += sum(part.stop - part.start for part in plan.taken) - repaired

    def _serves(self, request: Request) -> bool:
        return request.reuse_chunks and request.cache and bool(request.segments)

    def _owner(self, request: Request) -> bytes:
        """Who may use what this request computes: the same tenant, adapter and weights, behind the same instructions.

        Everything is counted from tokens; what a caller says about identity of content is not believed.
        """
        digest = hashlib.blake2b(digest_size=16)
        for name in (self._revision, request.tenant, repr(request.adapter)):
            digest.update(len(name).to_bytes(4, "little") + name.encode())
        for segment in request.segments:
            if segment.kind == "system":
                digest.update(request.prompt[segment.start : segment.stop].tobytes() + b";")
        return digest.digest()

    def _chunks(self, request: Request, owner: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Start, stop and digest of each chunk that is long enough, in order, none inside another."""
        reached = 0
        for segment in sorted(request.segments, key=lambda each: each.start):
            if segment.kind == "chunk" and segment.start >= reached:
                reached = segment.stop
                if segment.stop - segment.start >= self.options.least_tokens:
                    tokens = request.prompt[segment.start : segment.stop]
                    yield (
                        segment.start,
                        segment.stop,
                        hashlib.blake2b(owner + tokens.tobytes(), digest_size=16).digest(),
                    )

    def _best(self, content: bytes, start: int, stop: int, before: list[bytes]) -> Taken | None:
        """The variant that needs the least repair here; None when computing the chunk as a whole is better."""
        found = [(fix_overhead(record, before, self.options.alpha), record) for record in self.store.variants(content)]
        if not found:
            return None
        overhead, record = min(found, key=lambda pair: pair[0])
        if overhead >= _TOO_MUCH or record.tokens != stop - start:
            return None
        return Taken(record, start, stop, np.zeros(0, np.int64), overhead)

    def _record(self, seq: Sequence, plan: ReusePlan, part: Wanted) -> ChunkRecord:
        assert plan.shares is not None
        shares, lengths = plan.shares[part.start : part.stop], np.diff(plan.bounds, prepend=0)
        earlier = range(1, part.first_stretch, 2)
        count = part.stop - part.start
        attended: dict[bytes, float] = {}
        outside_mean = 0.0
        for content, stretch in zip(part.before, earlier, strict=True):
            weight = float(shares[:, stretch].sum())
            attended[content] = attended.get(content, 0.0) + weight
            outside_mean += weight / (count * float(lengths[stretch]))
        inside_mean = float(shares[:, part.first_stretch].sum()) / count**2
        return ChunkRecord(
            self._owner(seq.request), part.content, part.start, attended,
            shares[:, list(earlier)].sum(axis=1).astype(np.float32), context_impact(outside_mean, inside_mean),
            self._copy(seq, part.start, part.stop),
        )  # fmt: skip

    def _copy(self, seq: Sequence, start: int, stop: int) -> NDArray[np.uint16]:
        """Keys and values of some tokens of `seq`, uint16 [layers, 2, key_heads, tokens, head_dim]."""
        pages, layers, heads, size = self._shape(seq)
        page_tokens, view = self._pool.page_tokens, self._pool.view()
        data = np.empty((layers, 2, heads, stop - start, size), np.uint16)
        at = start
        while at < stop:
            row = at % page_tokens
            count = min(page_tokens - row, stop - at)
            data[:, :, :, at - start : at - start + count] = view[pages[at // page_tokens], :, :, :, row : row + count]
            at += count
        return data

    def _shape(self, seq: Sequence) -> tuple[NDArray[np.int64], int, int, int]:
        """The sequence's pages, and layers, key heads and head size of the memory."""
        assert seq.view is not None
        layers, _, heads, _, size = self._pool.shape
        return np.array(seq.view.pages, np.int64), layers, heads, size
