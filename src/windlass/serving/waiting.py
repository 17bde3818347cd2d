"""The order in which sequences wait: first come first served, or fair between tenants."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Protocol

from windlass.core.errors import UsageError
from windlass.serving.request import Sequence

INPUT_PRICE, OUTPUT_PRICE = 1.0, 2.0
"""What a token costs its tenant: one that is made takes a step of its own, one of a prompt shares it."""


class WaitingQueue(Protocol):
    """Sequences that wait, in an order of the queue's own."""

    def __len__(self) -> int: ...

    def push(self, seq: Sequence) -> None:
        """`seq` waits behind those that came before."""

    def push_front(self, seq: Sequence) -> None:
        """`seq` waits again, before those that never ran."""

    def head(self) -> Sequence | None:
        """Who is next."""
        ...

    def first(self, count: int) -> Iterator[Sequence]:
        """The next ones in order, at most `count`."""
        ...

    def remove(self, seq: Sequence) -> None:
        """`seq` waits no longer; nothing when it did not."""

    def charge_prompt(self, seq: Sequence) -> None:
        """`seq` was admitted."""

    def charge_token(self, seq: Sequence) -> None:
        """`seq` made a token."""


class FirstCome:
    """Higher priority first; first come, first served among equals."""

    def __init__(self) -> None:
        self._lines: dict[int, OrderedDict[str, Sequence]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, seq: Sequence) -> None:
        self._lines.setdefault(seq.request.priority, OrderedDict())[seq.id] = seq
        self._count += 1

    def push_front(self, seq: Sequence) -> None:
        self.push(seq)
        self._lines[seq.request.priority].move_to_end(seq.id, last=False)

    def head(self) -> Sequence | None:
        return next(iter(self._lines[max(self._lines)].values())) if self._lines else None

    def first(self, count: int) -> Iterator[Sequence]:
        ordered = sorted(self._lines, reverse=True)
        return islice((seq for priority in ordered for seq in self._lines[priority].values()), count)

    def remove(self, seq: Sequence) -> None:
        line = self._lines.get(seq.request.priority)
        if line is not None and line.pop(seq.id, None) is not None:
            self._count -= 1
            if not line:
                del self._lines[seq.request.priority]

    def charge_prompt(self, seq: Sequence) -> None:
        pass

    def charge_token(self, seq: Sequence) -> None:
        pass


class FairQueue:
    """Next is the tenant who was served least, weighted; within a tenant, as `FirstCome`.

    Args:
        weights: Shares of tenants; 1 for those it does not name.

    Raises:
        UsageError: a weight is not positive.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self.weigh(weights or {})
        self._lines: dict[str, FirstCome] = {}
        self._count = 0
        self.served: dict[str, float] = {}
        """Weighted service of each tenant so far, lifted when it comes back after a pause."""
        self._last_gone = 0.0

    def __len__(self) -> int:
        return self._count

    def weigh(self, weights: Mapping[str, float]) -> None:
        """Serve by other weights from now on.

        Raises:
            UsageError: a weight is not positive.
        """
        for tenant, weight in weights.items():
            if not weight > 0:
                raise UsageError(f"the weight of tenant {tenant!r} is {weight}, expected more than 0")
        self._weights = dict(weights)

    def push(self, seq: Sequence) -> None:
        self._line_of(seq).push(seq)
        self._count += 1

    def push_front(self, seq: Sequence) -> None:
        self._line_of(seq).push_front(seq)
        self._count += 1

    def head(self) -> Sequence | None:
        if not self._lines:
            return None
        tenant = min(self._lines, key=lambda name: self.served[name])
        return self._lines[tenant].head()

    def first(self, count: int) -> Iterator[Sequence]:
        ordered = sorted(self._lines, key=lambda name: self.served[name])
        return islice((seq for tenant in ordered for seq in self._lines[tenant].first(count)), count)

    def remove(self, seq: Sequence) -> None:
        tenant = seq.request.tenant
        line = self._lines.get(tenant)
        if line is not None:
            before = len(line)
            line.remove(seq)
            self._count -= before - len(line)
            if not len(line):
                del self._lines[tenant]
                self._last_gone = self.served[tenant]

    def charge_prompt(self, seq: Sequence) -> None:
        # A preempted sequence comes here again; its prompt is charged once.
        if seq.preemptions == 0:
            self._charge(seq, INPUT_PRICE * seq.prompt_length)

    def charge_token(self, seq: Sequence) -> None:
        self._charge(seq, OUTPUT_PRICE)

    def _charge(self, seq: Sequence, price: float) -> None:
        tenant = seq.request.tenant
        self.served[tenant] = self.served.get(tenant, 0.0) + price / self._weights.get(tenant, 1.0)

    def _line_of(self, seq: Sequence) -> FirstCome:
        """The tenant's line. Who comes back saved nothing up: its counter is lifted to that of the least served."""
        tenant = seq.request.tenant
        line = self._lines.get(tenant)
        if line is None:
            floor = min((self.served[name] for name in self._lines), default=self._last_gone)
            self.served[tenant] = max(self.served.get(tenant, 0.0), floor)
            line = self._lines[tenant] = FirstCome()
        return line
