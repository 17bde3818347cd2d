"""Which rows each tenant has, by serial number.

An immutable map: a change makes a new one that shares what did not change, so a search keeps the state that it
resolved its access under, and a change to one tenant touches nothing of another.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.access import Access, Directory
from windlass.vectors.columns import packed_words, unpacked_words

Serials = NDArray[np.int64]

_SHARDS = 256
NO_SERIALS: Serials = np.zeros(0, np.int64)


@dataclass(frozen=True)
class TenantRows:
    """The rows of every tenant, and who stands for which tenants.

    Example:
        >>> rows = TenantRows.none().granted(np.array([3, 5]), ["a"]).granted(np.array([5, 9]), ["b"])
        >>> rows.of(["a", "b"]).tolist()
        [3, 5, 9]
    """

    shards: tuple[dict[str, Serials], ...]
    directory: Directory

    @staticmethod
    def none() -> TenantRows:
        return TenantRows(tuple({} for _ in range(_SHARDS)), Directory())

    def one(self, tenant: str) -> Serials:
        """The sorted serials of one tenant; the same array until they change."""
        return self.shards[_shard(tenant)].get(tenant, NO_SERIALS)

    def of(self, tenants: Collection[str]) -> Serials:
        """The sorted serials that any of these tenants has."""
        found = [serials for tenant in tenants if len(serials := self.one(tenant))]
        if len(found) < 2:
            return found[0] if found else NO_SERIALS
        return np.unique(np.concatenate(found))

    def resolve(self, access: Access) -> frozenset[str]:
        return self.directory.resolve(access)

    def granted(self, serials: Serials, tenants: Collection[str]) -> TenantRows:
        """With these rows (sorted) given to each of `tenants`."""
        return self._changed({tenant: _union(self.one(tenant), serials) for tenant in tenants})

    def granted_each(self, tenants: dict[str, Serials]) -> TenantRows:
        """With rows (sorted) given to each tenant."""
        return self._changed({tenant: _union(self.one(tenant), serials) for tenant, serials in tenants.items()})

    def revoked(self, serials: Serials, tenants: Collection[str]) -> TenantRows:
        """With these rows (sorted) taken from each of `tenants`."""
        return self._changed({tenant: _difference(self.one(tenant), serials) for tenant in tenants})

    def dropped(self, tenant: str) -> TenantRows:
        """Without a tenant."""
        return self._changed({tenant: NO_SERIALS})

    def only(self, serials: Serials) -> TenantRows:
        """Without rows that are not among `serials` (sorted)."""
        return self._changed({tenant: have[_inside(have, serials)] for tenant, have in self.items()})

    def only_of(self, tenant: str) -> Serials:
        """The rows of a tenant that no other has."""
        own = self.one(tenant)
        shared = np.zeros(len(own), np.bool_)
        for other, serials in self.items():
            if other != tenant:
                shared |= _inside(own, serials)
        return own[~shared]

    def with_directory(self, directory: Directory) -> TenantRows:
        return TenantRows(self.shards, directory)

    def items(self) -> Iterator[tuple[str, Serials]]:
        for shard in self.shards:
            yield from shard.items()

    @property
    def grants(self) -> int:
        return sum(len(serials) for _, serials in self.items())

    @property
    def nbytes(self) -> int:
        return sum(serials.nbytes for _, serials in self.items())

    def packed(self) -> dict[str, Any]:
        """Arrays and values for `packing.pack`: each tenant's serials as differences, in 32 bits where they fit."""
        pairs = sorted(self.items())
        parts = [np.diff(serials, prepend=0) for _, serials in pairs]
        steps = np.concatenate(parts) if parts else NO_SERIALS
        small = not len(steps) or int(steps.max()) < 2**32
        return {
            **packed_words([tenant for tenant, _ in pairs]),
            "sizes": np.array([len(part) for part in parts], np.int64),
            "steps": steps.astype(np.uint32) if small else steps,
            "directory": self.directory.to_json(),
        }

    @staticmethod
    def unpacked(values: dict[str, Any]) -> TenantRows:
        """What `packed` took apart.

        Raises:
            KeyError, TypeError, ValueError: It is no such thing.
        """
        shards: tuple[dict[str, Serials], ...] = tuple({} for _ in range(_SHARDS))
        ends = np.cumsum(values["sizes"]).tolist()
        for tenant, start, end in zip(unpacked_words(values), [0, *ends], ends, strict=False):
            shards[_shard(tenant)][tenant] = np.cumsum(values["steps"][start:end].astype(np.int64))
        return TenantRows(shards, Directory.from_json(values["directory"]))

    def _changed(self, changes: dict[str, Serials]) -> TenantRows:
        shards = list(self.shards)
        touched: set[int] = set()
        for tenant, serials in changes.items():
            number = _shard(tenant)
            if number not in touched:
                shards[number] = dict(shards[number])
                touched.add(number)
            if len(serials):
                shards[number][tenant] = serials
            else:
                shards[number].pop(tenant, None)
        return TenantRows(tuple(shards), self.directory)


def _shard(tenant: str) -> int:
    return zlib.crc32(tenant.encode("utf-8")) % _SHARDS


def _union(have: Serials, more: Serials) -> Serials:
    if not len(have) or not len(more):
        return have if len(have) else np.array(more, np.int64)
    if more[0] > have[-1]:
        return np.concatenate([have, more])
    if len(more) * 64 < len(have):
        new = more[~_inside(more, have)]
        return np.insert(have, np.searchsorted(have, new), new) if len(new) else have
    return np.union1d(have, more)


def _difference(have: Serials, less: Serials) -> Serials:
    gone = _inside(have, less) if len(less) * 64 >= len(have) else np.zeros(len(have), np.bool_)
    if len(less) * 64 < len(have):
        hit = less[_inside(less, have)]
        gone[np.searchsorted(have, hit)] = True
    return have[~gone] if gone.any() else have


def _inside(values: Serials, among: Serials) -> NDArray[np.bool_]:
    """bool: which of `values` stand in `among` (sorted)."""
    if not len(among):
        return np.zeros(len(values), np.bool_)
    at = np.searchsorted(among, values)
    at[at == len(among)] = 0
    hit: NDArray[np.bool_] = among[at] == values
    return hit
