"""Adapters by name: registered, checked, kept in memory or read again, and brought to the pages that a step reads.

A name belongs to a tenant, or to all of them. What a request runs with is not the name but the *key* of the content it
stood for when the request came: a name may be given to another adapter, or taken away, while requests with the old one
go on, and two names of one content share its pages and its cached prefixes.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from windlass.core.errors import AdapterError, AdapterNotFound, ContextLengthError
from windlass.models.adapter import Adapter, read_adapter
from windlass.models.adapter_tables import AdapterTables, Layout, PlacedAdapter, TokenAdapters
from windlass.models.config import ModelConfig
from windlass.models.installed_adapters import installed_adapters
from windlass.models.page_pool import PagePool
from windlass.serving.adapter_pages import AdapterPages, ResidentAdapter
from windlass.serving.batch import WorkItem
from windlass.serving.request import Request

log = logging.getLogger("windlass.serving")

MEMORY_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """A registered adapter: what it is called, whose it is (empty: everybody's), and what it takes."""

    name: str
    tenant: str
    key: str
    folder: str
    rank: int
    modules: tuple[str, ...]
    base_model: str
    nbytes: int
    pages: int


@dataclass(slots=True)
class _Content:
    """One adapter's content. `names` and `users` keep it; it is in memory, or in `folder`, or both."""

    folder: Path
    layout: Layout
    adapter: Adapter | None
    names: int = 0
    users: int = 0
    reading: Future[Adapter] | None = field(default=None, repr=False)


class AdapterStore:
    """The adapters of one model. May be used from any thread.

    Args:
        config: The model's shape.
        page_elements: Half-precision numbers in a page of the engine's memory.
        total_pages: Pages of that memory: an adapter that takes them all is refused.
        memory_bytes: Adapters that no request runs with are dropped from memory beyond this, the longest unused first,
            and read again when they are wanted.

    Example:
        store = AdapterStore(model.config, pool.data.shape[1], pool.count)
        store.register("harbour", Path("adapters/harbour"))
        request = Request("1", prompt, adapter=store.resolve("harbour"))
    """

    def __init__(
        self, config: ModelConfig, page_elements: int, total_pages: int, *, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self.config = config
        self._page_elements, self._total_pages, self._memory_bytes = page_elements, total_pages, memory_bytes
        self._lock = threading.RLock()
        self._names: dict[tuple[str, str], AdapterInfo] = {}
        self._contents: OrderedDict[str, _Content] = OrderedDict()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="windlass-adapters")

    def register(self, name: str, folder: Path, *, tenant: str = "") -> AdapterInfo:
        """Read, check and name an adapter; a name that is taken stands for the new content from now on.

        Raises:
            AdapterError: it is broken, for another model, or does not fit the memory; nothing changed then.
        """
        if not name or len(name) > 200 or ":" in name or not name.isprintable():
            raise AdapterError(f"{name[:80]!r} is no name for an adapter", hint="use letters, digits and dashes")
        adapter = read_adapter(folder, self.config)
        layout = Layout.of(adapter, self._page_elements)
        if layout.pages >= self._total_pages:
            raise AdapterError(
                f"adapter {name} takes {layout.pages} pages, the engine's memory has {self._total_pages}",
                hint="give the engine more memory (server.kv_cache_mb)",
            )
        info = AdapterInfo(
            name, tenant, adapter.digest, str(folder), adapter.rank, adapter.modules, adapter.base_model,
            adapter.nbytes, layout.pages,
        )  # fmt: skip
        with self._lock:
            content = self._contents.setdefault(info.key, _Content(folder, layout, adapter))
            content.folder, content.adapter, content.names = folder, adapter, content.names + 1
            self._contents.move_to_end(info.key)
            before = self._names.get((tenant, name))
            self._names[tenant, name] = info
            if before is not None:
                self._forget_name(before)
            self._keep_within_memory()
        return info

    def remove(self, name: str, *, tenant: str = "") -> bool:
        """Forget a name; requests that run with the adapter go on. False when there is none."""
        with self._lock:
            info = self._names.pop((tenant, name), None)
            if info is not None:
                self._forget_name(info)
            return info is not None

    def resolve(self, name: str, *, tenant: str = "") -> str:
        """The key of what `name` stands for now: the tenant's own adapter, or the one for everybody.

        Raises:
            AdapterNotFound: there is neither.
        """
        with self._lock:
            info = self._names.get((tenant, name)) or self._names.get(("", name))
            if info is None:
                raise AdapterNotFound(f"no adapter {name[:80]!r}", hint="GET /v1/models lists them")
            return info.key

    def list(self, *, tenant: str = "") -> list[AdapterInfo]:
        """What a tenant may use, by name; its own before those of everybody."""
        with self._lock:
            found = {name: info for (owner, name), info in self._names.items() if owner == ""}
            found |= {name: info for (owner, name), info in self._names.items() if owner == tenant}
            return [found[name] for name in sorted(found)]

    def claim(self, key: str) -> None:
        """A request with this adapter came: its content stays, and is read now when it is not in memory.

        Raises:
            AdapterNotFound: nothing with this key is registered.
        """
        with self._lock:
            content = self._contents.get(key)
            if content is None:
                raise AdapterNotFound(f"no adapter with the key {key[:80]!r}")
            content.users += 1
            self._contents.move_to_end(key)
            if content.adapter is None and content.reading is None:
                content.reading = self._reader.submit(self._read_again, key, content.folder)

    def release(self, key: str) -> None:
        """A request with this adapter is over."""
        with self._lock:
            content = self._contents[key]
            content.users -= 1
            if content.users == 0:
                content.reading = None  # one that failed is tried again when the next request comes
            if content.names == 0 and content.users == 0:
                del self._contents[key]
            self._keep_within_memory()

    def get(self, key: str) -> tuple[Adapter, Layout]:
        """The content of an adapter that is claimed, waiting for the disk when it must.

        Raises:
            AdapterError: its files are gone or were changed since it was registered.
        """
        with self._lock:
            content = self._contents[key]
            reading = content.reading
        if content.adapter is None:
            assert reading is not None
            adapter = reading.result()
            with self._lock:
                content.adapter, content.reading = adapter, None
        return content.adapter, content.layout

    def pages_of(self, key: str) -> int:
        """Pages that it takes."""
        with self._lock:
            return self._contents[key].layout.pages

    @property
    def memory_used(self) -> int:
        """Bytes of adapters in memory, those in the engine's pages not counted."""
        with self._lock:
            return sum(content.adapter.nbytes for content in self._contents.values() if content.adapter is not None)

    def close(self) -> None:
        """End the thread that reads."""
        self._reader.shutdown(wait=True, cancel_futures=True)

    def _read_again(self, key: str, folder: Path) -> Adapter:
        adapter = read_adapter(folder, self.config)
        if adapter.digest != key:
            raise AdapterError(f"the adapter in {folder} was changed after it was registered", hint="register it again")
        return adapter

    def _forget_name(self, info: AdapterInfo) -> None:
        content = self._contents[info.key]
        content.names -= 1
        if content.names == 0 and content.users == 0:
            del self._contents[info.key]

    def _keep_within_memory(self) -> None:
        used = self.memory_used
        for content in self._contents.values():
            if used <= self._memory_bytes:
                return
            # One without a name has nobody to register it again, should its files change.
            if content.adapter is not None and content.users == 0 and content.names:
                used -= content.adapter.nbytes
                content.adapter = None


class EngineAdapters:
    """The adapters of one engine: its store, its books, and the pages they stand in.

    Args:
        store: Where they come from.
        pool: Where they go; the engine's own.
    """

    def __init__(self, store: AdapterStore, pool: PagePool) -> None:
        self.store, self.pages = store, AdapterPages(store.pages_of)
        self._pool = pool
        self._written: dict[str, tuple[ResidentAdapter, PlacedAdapter]] = {}
        self._order: list[ResidentAdapter] = []
        self._slots: dict[str, int] = {}
        self._tables = AdapterTables.of([], 1, store.config)

    def claim(self, request: Request, page_tokens: int, total_pages: int) -> None:
        """A request came.

        Raises:
            AdapterNotFound: its adapter is not there.
            ContextLengthError: adapter, prompt and answer do not fit the memory together.
        """
        if request.adapter is None:
            return
        self.store.claim(request.adapter)
        pages = self.store.pages_of(request.adapter)
        tokens = len(request.prompt) + request.params.max_tokens
        if pages + -(-tokens // page_tokens) > total_pages:
            self.store.release(request.adapter)
            raise ContextLengthError(
                f"the adapter takes {pages} of {total_pages} pages, {tokens:,} tokens do not fit the others",
                hint="send less, lower max_tokens, or give the engine more memory",
            )

    def release(self, request: Request) -> None:
        """A request is over."""
        if request.adapter is not None:
            self.store.release(request.adapter)

    def prepare(self, items: Iterable[WorkItem]) -> tuple[TokenAdapters, dict[str, Exception]]:
        """Copy what a step needs to its pages, where it is not there already.

        Returns:
            Which adapter each token of the others has, and why some adapters could not be read, by key: items with
            those cannot run.
        """
        failed: dict[str, Exception] = {}
        wanted = [(item, item.seq.request.adapter) for item in items]
        for key in {key for _, key in wanted if key is not None}:
            try:
                self._bring(key)
            except AdapterError as error:
                failed[key] = error
        self._index()
        able = [(item, key) for item, key in wanted if key not in failed]
        slots = [-1 if key is None else self._slots[key] for _, key in able]
        counts = [item.n_tokens for item, _ in able]
        return TokenAdapters(np.repeat(np.array(slots, np.int64), counts), self._tables), failed

    def _bring(self, key: str) -> None:
        resident = self.pages.get(key)
        known = self._written.get(key)
        if known is not None and known[0] is resident:
            return
        adapter, layout = self.store.get(key)
        placed = PlacedAdapter(adapter, layout, resident.pages)
        placed.write(self._pool.data)
        self._written[key] = resident, placed

    def _index(self) -> None:
        """Make the tables again when other adapters stand in the pool than last time."""
        order = [
            resident
            for resident in self.pages.resident()
            if (known := self._written.get(resident.key)) is not None and known[0] is resident
        ]
        if set(order) == set(self._order):
            return
        self._order = order
        self._written = {resident.key: self._written[resident.key] for resident in order}
        placed = [self._written[resident.key][1] for resident in order]
        self._tables = AdapterTables.of(placed, self._pool.data.shape[1], self.store.config)
        self._slots = {resident.key: slot for slot, resident in enumerate(order)}


def register_installed(store: AdapterStore) -> None:
    """Offer the adapters that are installed on this machine, as far as they are for the store's model."""
    for installed in installed_adapters():
        try:
            store.register(installed.name, installed.folder)
        except AdapterError as error:
            log.info("adapter %s is not offered: %s", installed.name, error)
