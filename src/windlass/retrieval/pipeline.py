"""One folder, lifted: index it, search it, ask it.

>>> pipeline = Pipeline.open("reports")               # doctest: +SKIP
>>> pipeline.index().passages_added                   # doctest: +SKIP
1204
>>> answer = pipeline.ask("Who approves dredging?")   # doctest: +SKIP
>>> print(answer.text)                                # doctest: +SKIP
The harbour master approves dredging works. [1]
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TypeVar

from windlass.core import settings as settings_module
from windlass.core.errors import ModelError, NotFound, UsageError
from windlass.core.progress import Progress, Silent
from windlass.core.settings import ServerSettings, Settings
from windlass.core.workspace import Workspace
from windlass.lake.scan import Catalog
from windlass.lake.scan_update import ScanDelta
from windlass.lake.stored import document_text
from windlass.lake.table_joins import survey_all
from windlass.retrieval import embedding, indexing
from windlass.retrieval.dense import DenseIndex
from windlass.retrieval.hop_search import HopSearch
from windlass.retrieval.hybrid import HybridRetriever
from windlass.retrieval.lexical import LexicalIndex, merge_words
from windlass.retrieval.overview import FileInfo, Overview, list_files, overview
from windlass.retrieval.passage_store import load_passages
from windlass.retrieval.topics import Topics, find_topics
from windlass.retrieval.types import Answer, Hit, Hits, Passage, Retriever

if TYPE_CHECKING:
    from windlass.models.chat_model import ChatModel
    from windlass.models.encoder import Encoder

SearchMode = Literal["hybrid", "lexical", "dense", "hops"]
_LONGEST_QUERY = 20_000
# A run that leaves less than this share of the passages also clears the word index of what is gone.
_MUCH_KEPT = 0.8
_T = TypeVar("_T")


@dataclass
class IndexReport:
    """What one `index` run did. `seconds` is by stage; `searchable` is when lexical search was complete."""

    delta: ScanDelta
    files_read: int = 0
    passages_added: int = 0
    passages_embedded: int = 0
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SourceView:
    """A span of a document in its surroundings. `line` is the 1-based line of the span in the document's text."""

    file: str
    kind: str
    faithful: bool
    text_before: str
    quote: str
    text_after: str
    line: int
    page: int | None


class Pipeline:
    """Search and answers over one folder.

    Models are loaded at first use. Without an encoder search goes by words alone, without a decoder answers are
    extracted; both say so.

    Args:
        workspace: The folder's open workspace.
        settings: The options in force.
        encoder: Replaces the encoder that the settings name; None for none.
        model: Replaces the language model that the settings name; None for none.
    """

    def __init__(
        self,
        workspace: Workspace,
        settings: Settings,
        *,
        encoder: Encoder | Literal["auto"] | None = "auto",
        model: ChatModel | Literal["auto"] | None = "auto",
    ) -> None:
        self.workspace = workspace
        self.settings = settings
        self._encoder = encoder
        self._model = model
        self._own_model: ChatModel | None = None
        self._loading = threading.RLock()
        self._notices: dict[str, str] = {}
        self._skipped: list[tuple[str, str]] = []
        self._topics: Topics | None = None
        self._lexical = LexicalIndex(workspace)
        self._dense: DenseIndex | None = None

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        settings: Settings | None = None,
        overrides: Mapping[str, object] | None = None,
        state: str | os.PathLike[str] | None = None,
        encoder: Encoder | Literal["auto"] | None = "auto",
        model: ChatModel | Literal["auto"] | None = "auto",
    ) -> Pipeline:
        """The pipeline over `folder`; nothing is read until `index`.

        Args:
            folder: The user's folder.
            settings: All options; None takes those that hold for the folder (its `windlass.toml`, the environment).
            overrides: Single options by dotted name, e.g. `{"search.k": 20}`; entries that are None do not count.
            state: Where the index is kept instead of `folder/.windlass`.
            encoder, model: Used instead of what the settings name; None for none.

        Raises:
            NotFound, UsageError, WorkspaceError: As `Workspace.open`; settings that are wrong name their field.
        """
        workspace = Workspace.open(folder, state=state)
        options = (settings or settings_module.load(workspace.folder)).with_overrides(overrides or {})
        return cls(workspace, options, encoder=encoder, model=model)

    @property
    def encoder(self) -> Encoder | None:
        """The encoder, loaded on first use; None (and a notice) while it is not installed."""
        with self._loading:
            if not isinstance(self._encoder, str):
                return self._encoder
            loaded = self._load(
                "encoder",
                lambda name: _load_encoder(name, self.settings.models.encoder_precision),
                self.settings.models.encoder,
            )
            if loaded is not None:  # else it may be on its way
                self._encoder = loaded
            return loaded

    @property
    def model(self) -> ChatModel | None:
        """The language model, loaded on first use; None (and a notice) while it is not installed."""
        with self._loading:
            if not isinstance(self._model, str):
                return self._model
            loaded = self._load(
                "model",
                lambda name: _load_model(name, self.settings.server, self.workspace.state / "chunks"),
                self.settings.models.decoder,
            )
            if loaded is not None:
                self._model = loaded
                self._own_model = loaded
            return loaded

    @property
    def notices(self) -> tuple[str, ...]:
        """What a reader should know about how complete this pipeline is."""
        notices = list(self._notices.values())
        if self._encoder is not None and not isinstance(self._encoder, str):
            with self.workspace.reading() as connection:
                waiting, embedded, by_this = connection.execute(
                    "SELECT (SELECT count(*) FROM files WHERE state = 'parsed'), EXISTS (SELECT 1 FROM embeddings),"
                    " EXISTS (SELECT 1 FROM embeddings WHERE encoder = ?)",
                    (self._encoder.fingerprint,),
                ).fetchone()
            if embedded and not by_this:
                notices.append(
                    f"this folder was embedded by another model or precision than {self.settings.models.encoder}:"
                    " search goes by words alone until `windlass up` embeds it again"
                )
            elif waiting:
                notices.append(f"{waiting} files are found by their words only until their embeddings are made")
        return tuple(notices)

    def index(
        self,
        *,
        progress: Progress | None = None,
        embed: bool = True,
        on_searchable: Callable[[], None] | None = None,
    ) -> IndexReport:
        """Bring the index in line with the folder. Unchanged files cost a stat call.

        Args:
            progress: Hears of the stages `scan`, `hash`, `read`, `embed`.
            embed: False leaves the vectors for later; search goes by words meanwhile.
            on_searchable: Called when every file was read and can be found by its words.

        Raises:
            WorkspaceLocked: Another process is indexing this folder.
            StorageError: The disk is full or failing; what was committed stays.
            Cancelled: Stopped through `progress`; what was committed stays.
        """
        progress = progress or Silent()
        clock = _Stopwatch()
        with self.workspace.acquire():
            passages = self._lexical.passages()
            with indexing.reading_sandbox(self.workspace, self.settings) as sandbox:
                delta = Catalog(self.workspace).scan(progress=progress)
                self._skipped = delta.skipped
                is_much_gone = self._lexical.passages() < _MUCH_KEPT * passages
                clock.lap("scan")
                read = indexing.read_files(self.workspace, self.settings, sandbox, progress)
            clock.lap("read")
            report = IndexReport(delta, read.files, read.passages, 0, read.failed)
            if on_searchable is not None:
                on_searchable()
            encoder = self.encoder if embed else None
            if encoder is not None:
                report.passages_embedded = embedding.embed_passages(self.workspace, encoder, progress)
                clock.lap("embed")
            if is_much_gone:
                merge_words(self.workspace, progress)
        report.notices = list(self._notices.values())
        report.seconds = clock.seconds
        return report

    def survey(self, progress: Progress | None = None) -> int:
        """Profile new tables, find tables in tables, joins, near-copies and topics; returns how many things were new.

        Raises:
            WorkspaceLocked: Another process is indexing this folder.
            StorageError: The disk is full or failing; what was committed stays.
            Cancelled: Stopped through `progress`; what was committed stays.
        """
        with self.workspace.acquire():
            new = survey_all(self.workspace, progress)
        encoder = self.encoder
        self._topics = find_topics(self.workspace, encoder.fingerprint, progress) if encoder else None
        return new

    def search(self, query: str, k: int | None = None, *, mode: SearchMode = "hybrid") -> list[Hit]:
        """The `k` passages that fit the query best.

        Raises:
            UsageError: An empty or absurdly long query, `k` out of range, or an unknown mode.
        """
        k = self.settings.search.k if k is None else k
        _check_query(query, k)
        hits = self._retriever(mode).search([query], k, trace=True)
        return self._hits(hits)

    def ask(
        self,
        question: str,
        *,
        k: int | None = None,
        mode: str | None = None,
        on_token: Callable[[str], None] | None = None,
    ) -> Answer:
        """An answer in which every sentence carries a citation, or an honest "not found".

        Args:
            question: In plain words.
            k: How many passages to look at.
            mode: `extract` quotes the best sentences; `generate` lets the model write and checks every sentence;
                `auto` asks whole tables first, by SQL, when the question is clearly about one, and else quotes.
            on_token: Hears the text of a generated answer as it comes, before it is checked.

        Raises:
            UsageError: As `search`.
        """
        from windlass.retrieval.answer import Answerer
        from windlass.retrieval.table_questions import answer_from_tables
        from windlass.retrieval.table_sources import table_sources

        clock = _Stopwatch()
        hits = self.search(question, k)
        clock.lap("search")
        mode = mode or self.settings.answer.mode
        answer = answer_from_tables(question, table_sources(self.workspace)) if mode == "auto" else None
        if answer is not None:
            answer = dataclasses.replace(answer, hits=tuple(hits))
        else:
            with self.workspace.reading() as connection:
                answer = Answerer(self.settings).answer(
                    question,
                    hits,
                    encoder=self.encoder,
                    model=self.model if mode == "generate" else None,
                    mode=mode,
                    idf=self._lexical.idf,
                    document_text=lambda doc_id: document_text(connection, doc_id) or "",
                    on_token=on_token,
                )
        clock.lap("answer")
        notices = (*answer.notices, *self.notices)
        return dataclasses.replace(answer, notices=notices, timings={**answer.timings, **clock.seconds})

    def overview(self) -> Overview:
        """What the folder holds now."""
        encoder = self.encoder
        found = overview(self.workspace, encoder.fingerprint if encoder else None)
        return dataclasses.replace(
            found,
            skipped=self._skipped,
            topics=self._topics,
            encoder=self.settings.models.encoder if encoder else None,
            model=self.settings.models.decoder,
        )

    def files(self) -> list[FileInfo]:
        """Every file with its state."""
        return list_files(self.workspace)

    def passage(self, passage_id: int) -> Passage:
        """One passage by id.

        Raises:
            NotFound: It is not there (any more).
        """
        found = load_passages(self.workspace, [passage_id])
        if passage_id not in found:
            raise NotFound(f"no passage {passage_id}", hint="its file may have changed; search again")
        return found[passage_id]

    def document_text(self, doc_id: int) -> str:
        """The text that passages and citations of a document point into.

        Raises:
            NotFound: The document is not there (any more).
        """
        with self.workspace.reading() as connection:
            text = document_text(connection, doc_id)
        if text is None:
            raise NotFound(f"no document {doc_id}", hint="its file may have changed; search again")
        return text

    def context(self, doc_id: int, start: int, end: int, *, around: int = 1500) -> SourceView:
        """A span and up to `around` characters on both sides.

        Raises:
            NotFound: The document is gone.
            UsageError: The span is not inside it.
        """
        text = self.document_text(doc_id)
        if not 0 <= start <= end <= len(text):
            raise UsageError(f"span {start}-{end} is not inside document {doc_id} of {len(text)} characters")
        with self.workspace.reading() as connection:
            row = connection.execute(
                "SELECT path, documents.kind, faithful FROM documents JOIN files ON document_id = documents.id"
                " WHERE documents.id = ? ORDER BY length(path), path LIMIT 1",
                (doc_id,),
            ).fetchone()
            page = connection.execute(
                "SELECT page FROM chunks WHERE document_id = ? AND start <= ? ORDER BY start DESC LIMIT 1",
                (doc_id, start),
            ).fetchone()
        return SourceView(
            file=row[0] if row else "",
            kind=row[1] if row else "",
            faithful=bool(row[2]) if row else False,
            text_before=text[max(0, start - around) : start],
            quote=text[start:end],
            text_after=text[end : end + around],
            line=text.count("\n", 0, start) + 1,
            page=page[0] if page else None,
        )

    def generation(self) -> int:
        """A number that grows with every change of the index."""
        return self.workspace.generation()

    def close(self) -> None:
        """End the threads of a model that was loaded here, and close the workspace."""
        from windlass.serving.engine_chat import EngineChat

        if isinstance(self._own_model, EngineChat):
            self._own_model.close()
        self.workspace.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _retriever(self, mode: SearchMode) -> Retriever:
        if mode == "lexical":
            return self._lexical
        dense = self._dense_index()
        if mode == "hybrid":
            return HybridRetriever(self.workspace, self._lexical, dense)
        if mode not in ("dense", "hops"):
            raise UsageError(f"unknown search mode {mode!r}", hint="use hybrid, lexical, dense or hops")
        if dense is None:
            raise ModelError(f"{mode} search needs an encoder", hint="run `windlass models pull`")
        return dense if mode == "dense" else HopSearch(self.workspace, dense)

    def _dense_index(self) -> DenseIndex | None:
        if self._dense is None and self.encoder is not None:
            self._dense = DenseIndex(self.workspace, self.encoder)
        return self._dense

    def _hits(self, hits: Hits) -> list[Hit]:
        found = load_passages(self.workspace, [int(passage) for passage in hits.ids[0] if passage >= 0])
        ranks = hits.trace[0] if hits.trace else {}
        links = hits.links[0] if hits.links else {}
        return [
            Hit(found[int(passage)], float(score), ranks.get(int(passage), {}), links.get(int(passage)))
            for passage, score in zip(hits.ids[0], hits.scores[0], strict=True)
            if int(passage) in found
        ]

    def _load(self, what: str, load: Callable[[str], _T], name: str) -> _T | None:
        if not name or name == "none":
            return None
        try:
            loaded = load(name)
        except ModelError as error:
            consequence = "search goes by words alone" if what == "encoder" else "answers are extracted, not written"
            self._notices[what] = f"{error} ({consequence})"
            return None
        self._notices.pop(what, None)
        return loaded


class _Stopwatch:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now


def _load_encoder(name: str, precision: str) -> Encoder:
    from windlass.models.encoder import BertEncoder
    from windlass.models.store import locate

    return BertEncoder.load(locate(name), precision="float32" if precision == "float32" else "int8")


def _load_model(name: str, settings: ServerSettings, chunk_folder: Path) -> ChatModel:
    if name.startswith(("http://", "https://")):
        from windlass.models.remote import RemoteModel

        return RemoteModel(name)
    from windlass.models.cpu_engine import CpuEngine
    from windlass.models.generate import LocalModel
    from windlass.models.store import locate
    from windlass.serving.engine_chat import EngineChat

    model = LocalModel.load(locate(name))
    return EngineChat.start(model, settings, chunk_folder) if isinstance(model.decoder, CpuEngine) else model


def _check_query(query: str, k: int) -> None:
    if not query.strip():
        raise UsageError("the question is empty", hint="write what you want to know")
    if len(query) > _LONGEST_QUERY:
        raise UsageError(f"the question has {len(query):,} characters, at most {_LONGEST_QUERY:,} are taken")
    if not 1 <= k <= 1000:
        raise UsageError(f"k is {k}, it must be between 1 and 1000")
