"""How much each tenant may ask for: requests and tokens a minute, and requests at one time.

Requests are paid before, tokens afterwards, because only then their number is known: a tenant whose tokens are used
up waits until enough have flowed back.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from windlass.app.http.tenants import Tenant

_MINUTE = 60.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request has to wait, and how many seconds."""

    message: str
    code: str
    retry_after: int


class Admission:
    """Counts what the tenants of one server use. May be called from any thread.

    Args:
        clock: Seconds, never going backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._accounts: dict[str, _Account] = {}

    def enter(self, tenant: Tenant) -> Refusal | None:
        """Let one request in, or say why not. Whoever is let in must `leave`."""
        with self._lock:
            account, now = self._account(tenant), self._clock()
            if tenant.max_concurrency is not None and account.running >= tenant.max_concurrency:
                return Refusal(f"{account.running} requests of {tenant.name} are running", "too_many_at_once", 1)
            wait = account.tokens.wait(now, 1)
            if wait > 0:
                message = f"{tenant.name} has used its {tenant.tokens_per_minute:,} tokens a minute"
                return Refusal(message, "rate_limit_exceeded", _whole(wait))
            wait = account.requests.wait(now, 1)
            if wait > 0:
                message = f"{tenant.name} has made its {tenant.requests_per_minute:,} requests a minute"
                return Refusal(message, "rate_limit_exceeded", _whole(wait))
            account.requests.pay(now, 1)
            account.running += 1
            return None

    def leave(self, tenant: Tenant) -> None:
        """One request less."""
        with self._lock:
            self._account(tenant).running -= 1

    def charge(self, tenant: Tenant, tokens: int) -> None:
        """Tokens that a request read and made."""
        with self._lock:
            self._account(tenant).tokens.pay(self._clock(), tokens)

    def headers(self, tenant: Tenant) -> dict[str, str]:
        """What is left, under the names that OpenAI clients read."""
        with self._lock:
            account, now = self._account(tenant), self._clock()
            found = {}
            for name, bucket in (("requests", account.requests), ("tokens", account.tokens)):
                if bucket.size is not None:
                    found[f"x-ratelimit-limit-{name}"] = str(bucket.size)
                    found[f"x-ratelimit-remaining-{name}"] = str(max(0, int(bucket.level(now))))
            return found

    def _account(self, tenant: Tenant) -> _Account:
        account = self._accounts.get(tenant.name)
        if account is None:
            now = self._clock()
            account = _Account(_Bucket(tenant.requests_per_minute, now), _Bucket(tenant.tokens_per_minute, now))
            self._accounts[tenant.name] = account
        return account


class _Bucket:
    """Fills up to `size` within a minute; may be overdrawn."""

    def __init__(self, size: int | None, now: float) -> None:
        self.size = size
        self._level = float(size or 0)
        self._at = now

    def level(self, now: float) -> float:
        size = self.size or 0
        self._level = min(float(size), self._level + (now - self._at) * size / _MINUTE)
        self._at = now
        return self._level

    def wait(self, now: float, amount: float) -> float:
        """Seconds until `amount` is there; 0 when it is."""
        if self.size is None:
            return 0.0
        return max(0.0, (amount - self.level(now)) * _MINUTE / self.size)

    def pay(self, now: float, amount: float) -> None:
        if self.size is not None:
            self._level = self.level(now) - amount


@dataclass(slots=True)
class _Account:
    requests: _Bucket
    tokens: _Bucket
    running: int = 0


def _whole(seconds: float) -> int:
    return max(1, min(60, math.ceil(seconds)))
