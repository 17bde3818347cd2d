"""Text to tokens and back: from GGUF metadata or `tokenizer.json`, with the model's own chat template.

The `tokenizers` library does the merging. What is ours: building it from GGUF, a detokenizer that never
shows half a character, and messages in which a document cannot forge the model's control tokens.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE

from windlass.core.errors import ModelError, UsageError, WindlassError
from windlass.models.chat_template import ChatTemplate
from windlass.models.gguf import GGUFSource
from windlass.models.saved_model import SavedSource
from windlass.models.weights import WeightSource, read_json

_Made = TypeVar("_Made")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "</s>",
)
"""Control tokens that end an answer in the families we run, whatever the metadata names as end of
sequence.
"""


def _byte_alphabet() -> dict[str, int]:
    """The printable stand-in of every byte in byte-level BPE vocabularies."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    stand_ins = {chr(byte): byte for byte in kept}
    moved = (byte for byte in range(256) if byte not in kept)
    return stand_ins | {chr(256 + index): byte for index, byte in enumerate(moved)}


BYTE_OF_CHARACTER = _byte_alphabet()


class Pieces(Sequence[str]):
    """Strings in one stretch of memory: a list of fifty thousand takes eight times as much."""

    def __init__(self, pieces: Iterable[str]) -> None:
        encoded = [piece.encode("utf-8", "surrogatepass") for piece in pieces]
        self._text = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        return self._text[self._ends[at] : self._ends[at + 1]].decode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Vocabulary:
    """Token pieces by id, and which of them are control tokens. `byte_level` tells how pieces spell bytes."""

    pieces: Pieces
    control: frozenset[int]
    literal: frozenset[int]
    byte_level: bool

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes a token stands for; control tokens stand for none."""
        if token in self.control or not 0 <= token < len(self.pieces):
            return b""
        piece = self.pieces[token]
        if token in self.literal:
            return piece.encode()
        if self.byte_level:
            known = [BYTE_OF_CHARACTER.get(character) for character in piece]
            return piece.encode() if None in known else bytes(byte for byte in known if byte is not None)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            try:
                return bytes([int(piece[3:5], 16)])
            except ValueError:
                return piece.encode()
        return piece.replace("\u2581", " ").encode()


class Detokenizer:
    """Text of a growing token sequence: each `add` returns what became readable, never half a character."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        return self._decoder.decode(self._vocabulary.bytes_of(token))

    def finish(self) -> str:
        """What is left at the end; an unfinished character comes out as U+FFFD."""
        return self._decoder.decode(b"", final=True)


class Tokenizer:
    """Encodes, decodes and renders chats for one model.

    Args:
        build: Makes the fast tokenizer; called with False for one that treats control tokens as plain text.
        vocabulary: Pieces by id.
        bos_id: Put in front when `add_bos`, or by the chat template itself.
        end_ids: Tokens that end an answer.
        chat_template: Jinja source, or None when the model has none.
    """

    def __init__(
        self,
        build: Callable[[bool], FastTokenizer],
        vocabulary: Vocabulary,
        *,
        bos_id: int | None,
        add_bos: bool,
        eos_id: int | None,
        end_ids: tuple[int, ...],
        chat_template: str | None,
        strip_first_space: bool = False,
    ) -> None:
        self._build = build
        self._fast = build(True)
        self._plain: FastTokenizer | None = None
        self.vocabulary = vocabulary
        self.bos_id = bos_id
        self.add_bos = add_bos and bos_id is not None
        self.end_ids = end_ids
        self._strip_first_space = strip_first_space
        self._controls = {vocabulary.pieces[token]: token for token in vocabulary.control if vocabulary.pieces[token]}
        self.template = None if chat_template is None else ChatTemplate(chat_template)
        self._names = {
            "bos_token": "" if bos_id is None else self._piece(bos_id),
            "eos_token": "" if eos_id is None else self._piece(eos_id),
        }

    @property
    def size(self) -> int:
        return len(self.vocabulary.pieces)

    def _piece(self, token: int) -> str:
        return self.vocabulary.pieces[token] if 0 <= token < self.size else ""

    def encode(self, text: str, *, control: bool = False) -> list[int]:
        """Token ids of `text`. With `control`, spelled-out control tokens become themselves; else plain
        text. Half of a surrogate pair, which has no UTF-8 form, counts as a question mark.
        """
        text = text.encode("utf-8", "replace").decode("utf-8")
        if control:
            return list(self._fast.encode(text, add_special_tokens=False).ids)
        if self._plain is None:
            self._plain = self._build(False)
        return list(self._plain.encode(text, add_special_tokens=False).ids)

    def prompt(self, text: str) -> list[int]:
        """Token ids of a raw prompt: `encode` with the beginning-of-sequence token where the model wants
        one.
        """
        head = [self.bos_id] if self.add_bos and self.bos_id is not None else []
        return head + self.encode(text)

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of the tokens, control tokens left out, broken UTF-8 as U+FFFD."""
        text = b"".join(self.vocabulary.bytes_of(int(token)) for token in tokens).decode("utf-8", "replace")
        return text[1:] if self._strip_first_space and text.startswith(" ") else text

    def detokenizer(self) -> Detokenizer:
        return Detokenizer(self.vocabulary)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation, ready for the model's answer.

        Control tokens spelled in a message stay plain text: a document cannot end its turn or speak as the
        system.

        Args:
            messages: Mappings with `role` and `content`.

        Raises:
            UsageError: a message lacks a role or content, or the template refuses the conversation.
            ModelError: the template is broken or takes too long.
        """
        return [token for tokens, _ in self.chat_pieces(messages) for token in tokens]

    def chat_pieces(
        self, messages: Sequence[Mapping[str, str]], texts: Sequence[str] = ()
    ) -> list[tuple[list[int], int | None]]:
        """As `chat`, cut where `texts` stand: token ids of each piece, and which of the texts it is.

        Each piece is tokenized by itself, so a text has the same tokens wherever it stands. A text that the messages do
        not hold, or that the template changed, is not found.

        Raises:
            UsageError, ModelError: as `chat`.
        """
        for index, message in enumerate(messages):
            if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
                raise UsageError(f"message {index} needs a role and a content, both text")
        if not messages:
            raise UsageError("a chat needs at least one message")
        marks = _Marks(self._controls, texts)
        hidden = [
            {**message, "role": marks.hide(message["role"], texts=False), "content": marks.hide(message["content"])}
            for message in messages
        ]
        if self.template is None:
            turns = "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in hidden)
            rendered = f"{turns}\n\nAssistant:"
        else:
            rendered = self.template.render(hidden, self._names)
        pieces: list[tuple[list[int], int | None]] = []
        for text, is_literal, number in marks.parts(rendered):
            tokens = self.encode(text, control=self.template is not None and not is_literal)
            if number is None and pieces and pieces[-1][1] is None:
                pieces[-1][0].extend(tokens)
            else:
                pieces.append((tokens, number))
        return self._begun(pieces)

    def _begun(self, pieces: list[tuple[list[int], int | None]]) -> list[tuple[list[int], int | None]]:
        """`pieces` behind the token that begins a sequence, where the model wants one."""
        if not self.add_bos or self.bos_id is None or (pieces and pieces[0][0][:1] == [self.bos_id]):
            return pieces
        return [([self.bos_id], None), *pieces]


class _Marks:
    """Stand-ins for control tokens spelled in messages, so that the template's own can be told apart, and for texts
    that are to be tokenized by themselves.
    """

    OPEN, CLOSE = "\U000f1e00", "\U000f1e01"

    def __init__(self, controls: Iterable[str], texts: Sequence[str] = ()) -> None:
        self._literals = [self.OPEN, self.CLOSE, *sorted(controls, key=len, reverse=True)]
        self._first_text = len(self._literals)
        self._literals += texts
        self._numbers = {text: number for number, text in reversed(list(enumerate(self._literals)))}
        # Of texts inside texts the longer one is found, and whatever a text spells is part of it.
        spelled = "|".join(map(re.escape, self._literals[: self._first_text]))
        self._spelled = re.compile(spelled)
        longest_first = sorted(filter(None, texts), key=len, reverse=True)
        self._find = re.compile("|".join([*map(re.escape, longest_first), spelled]))
        self._mark = re.compile(f"{self.OPEN}([0-9]+){self.CLOSE}")

    def hide(self, text: str, *, texts: bool = True) -> str:
        find = self._find if texts else self._spelled
        return find.sub(lambda hit: f"{self.OPEN}{self._numbers[hit[0]]}{self.CLOSE}", text)

    def parts(self, rendered: str) -> list[tuple[str, bool, int | None]]:
        """The rendered text cut at the stand-ins, in order, empty pieces left out: the text, whether it came from a
        message, and which of the texts it is.
        """
        pieces = self._mark.split(rendered)
        named: list[tuple[str, bool, int | None]] = []
        for place, piece in enumerate(pieces):
            if place % 2 == 0:
                named.append((piece, False, None))
            else:
                number = int(piece) - self._first_text
                named.append((self._literals[int(piece)], True, number if number >= 0 else None))
        return [part for part in named if part[0]]


def tokenizer_of(source: WeightSource) -> Tokenizer:
    """The tokenizer that comes with a model's weights.

    Raises:
        NotFound: the folder has none.
        ModelError: it is damaged or of a kind that is not supported.
    """
    where = str(source.path)
    if isinstance(source, GGUFSource):
        return tokenizer_from_gguf(source.metadata, where)
    kept = source.tokenizer_metadata() if isinstance(source, SavedSource) else None
    return tokenizer_from_folder(source.path) if kept is None else tokenizer_from_gguf(kept, where)


def tokenizer_from_gguf(metadata: Mapping[str, Any], where: str) -> Tokenizer:
    """Build the tokenizer a GGUF file describes: byte-level BPE (`gpt2`) or SentencePiece BPE (`llama`).

    Raises:
        ModelError: the metadata is incomplete or names a tokenizer we do not know.
    """
    kind = metadata.get("tokenizer.ggml.model")
    pieces = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(pieces, list) or not all(isinstance(piece, str) for piece in pieces):
        raise ModelError(f"{where}: tokenizer.ggml.tokens is missing or not a list of strings")
    types = np.asarray(metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(pieces))).tolist()
    if len(types) != len(pieces):
        raise ModelError(f"{where}: {len(pieces)} tokens but {len(types)} token types")
    makers = {"gpt2": _byte_level_builder, "llama": _sentencepiece_builder}
    if kind not in makers:
        raise ModelError(f"{where}: tokenizer model {kind!r} is not supported, only gpt2 and llama")
    build = _guarded(makers[kind], where)(metadata, pieces, types, where)
    control = frozenset(token for token, type_ in enumerate(types) if type_ in (CONTROL, UNKNOWN))
    literal = frozenset(token for token, type_ in enumerate(types) if type_ == USER_DEFINED)
    bos, eos = (_token_id(metadata, f"tokenizer.ggml.{name}_token_id", len(pieces)) for name in ("bos", "eos"))
    template = metadata.get("tokenizer.chat_template")
    return Tokenizer(
        _guarded(build, where),
        Vocabulary(Pieces(pieces), control, literal, byte_level=kind == "gpt2"),
        bos_id=bos,
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", kind == "llama")),
        eos_id=eos,
        end_ids=_end_ids(pieces, control, [eos, _token_id(metadata, "tokenizer.ggml.eot_token_id", len(pieces))]),
        chat_template=template if isinstance(template, str) else None,
        strip_first_space=kind == "llama" and bool(metadata.get("tokenizer.ggml.add_space_prefix", True)),
    )


def _token_id(metadata: Mapping[str, Any], key: str, size: int) -> int | None:
    token = metadata.get(key)
    return token if isinstance(token, int) and 0 <= token < size else None


def _end_ids(pieces: list[str], control: frozenset[int], named: list[int | None]) -> tuple[int, ...]:
    known = [token for token in sorted(control) if pieces[token] in END_OF_TURN]
    return tuple(dict.fromkeys([token for token in named if token is not None] + known))


def _guarded(build: Callable[..., _Made], where: str) -> Callable[..., _Made]:
    """`build` with the library's untyped failures turned into ours."""

    def guarded(*arguments: Any) -> _Made:
        try:
            return build(*arguments)
        except WindlassError:
            raise
        except Exception as error:
            raise ModelError(f"{where}: the tokenizer cannot be built: {error}") from error

    return guarded


def _merges(metadata: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
    lines = metadata.get("tokenizer.ggml.merges")
    if not isinstance(lines, list):
        raise ModelError(f"{where}: tokenizer.ggml.merges is missing")
    pairs = [line.split(" ") if isinstance(line, str) else [] for line in lines]
    for index, pair in enumerate(pairs):
        if len(pair) != 2:
            raise ModelError(f"{where}: merge {index} is {lines[index]!r}, expected two pieces with a space between")
    return [(pair[0], pair[1]) for pair in pairs]


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _pre_tokenizer(name: str, where: str) -> pre_tokenizers.PreTokenizer:
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in ("default", "gpt-2", "gpt2"):
        return gpt2
    if name in ("smollm", "codeshell", "refact", "starcoder", "command-r"):
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    if name in ("llama-bpe", "llama3", "llama-v3", "tekken-bpe"):
        return _split(LLAMA3_SPLIT)
    if name in ("qwen2", "deepseek-r1-qwen"):
        return _split(QWEN2_SPLIT)
    raise ModelError(f"{where}: pre-tokenizer {name!r} is not supported", hint="known: gpt-2, smollm, llama-bpe, qwen2")


def _byte_level_builder(
    metadata: Mapping[str, Any], pieces: list[str], types: list[int], where: str
) -> Callable[[bool], FastTokenizer]:
    name = str(metadata.get("tokenizer.ggml.pre", "default"))
    pre_tokenizer = _pre_tokenizer(name, where)
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    model = BPE(
        vocab=vocabulary,
        merges=_merges(metadata, where),
        ignore_merges=name in ("llama-bpe", "llama3", "llama-v3"),
    )
    added = _added_tokens(pieces, types)

    def build(control: bool) -> FastTokenizer:
        fast = FastTokenizer(model)
        fast.pre_tokenizer = pre_tokenizer
        fast.decoder = decoders.ByteLevel()
        if name.endswith("qwen2"):
            fast.normalizer = normalizers.NFC()
        if added[control]:
            fast.add_tokens(added[control])
        return fast

    return build


def _sentencepiece_builder(
    metadata: Mapping[str, Any], pieces: list[str], types: list[int], where: str
) -> Callable[[bool], FastTokenizer]:
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(pieces):
        raise ModelError(f"{where}: tokenizer.ggml.scores is missing or not as long as the vocabulary")
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    ranked: list[tuple[float, int, tuple[str, str]]] = []
    for token, piece in enumerate(pieces):
        if types[token] == NORMAL:
            cuts = ((piece[:at], piece[at:]) for at in range(1, min(len(piece), 64)))
            ranked += [
                (-float(scores[token]), token, cut) for cut in cuts if cut[0] in vocabulary and cut[1] in vocabulary
            ]
    ranked.sort(key=lambda entry: (entry[0], vocabulary[entry[2][0]], vocabulary[entry[2][1]]))
    unknown = next((piece for token, piece in enumerate(pieces) if types[token] == UNKNOWN), None)
    model = BPE(
        vocab=vocabulary,
        merges=[cut for _, _, cut in ranked],
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    added = _added_tokens(pieces, types)

    def build(control: bool) -> FastTokenizer:
        fast = FastTokenizer(model)
        steps = [normalizers.Prepend("\u2581")] if prefix else []
        fast.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
        if added[control]:
            fast.add_tokens(added[control])
        return fast

    return build


_AddedTokens = dict[bool, list[AddedToken]]


def _added_tokens(pieces: list[str], types: list[int]) -> _AddedTokens:
    """What is matched before anything else, with and without control tokens."""

    def added(kept: tuple[int, ...]) -> list[AddedToken]:
        return [
            AddedToken(piece, special=types[token] != USER_DEFINED, normalized=False)
            for token, piece in enumerate(pieces)
            if types[token] in kept and piece
        ]

    return {True: added((USER_DEFINED, CONTROL, UNKNOWN)), False: added((USER_DEFINED,))}


def tokenizer_from_folder(folder: Path) -> Tokenizer:
    """Build the tokenizer of a Hugging Face folder from `tokenizer.json` and its neighbours.

    Raises:
        NotFound: there is no `tokenizer.json`.
        ModelError: a file is damaged.
    """
    path = folder / "tokenizer.json"
    described = read_json(path)
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    source = json.dumps(described)

    def build(control: bool) -> FastTokenizer:
        fast = FastTokenizer.from_str(source)
        fast.encode_special_tokens = not control
        return fast

    guarded = _guarded(build, str(path))
    fast = guarded(True)
    size = max(fast.get_vocab().values(), default=-1) + 1
    pieces = [""] * size
    for piece, token in fast.get_vocab().items():
        pieces[token] = piece
    added = fast.get_added_tokens_decoder()
    control = frozenset(token for token, entry in added.items() if entry.special)
    ids = {name: fast.token_to_id(_token_text(settings.get(f"{name}_token"))) for name in ("bos", "eos")}
    steps = json.dumps(described.get("post_processor")) + json.dumps(described.get("decoder"))
    first = fast.encode("x", add_special_tokens=True).ids[:1]
    return Tokenizer(
        guarded,
        Vocabulary(Pieces(pieces), control, frozenset(added) - control, byte_level='"ByteLevel"' in steps),
        bos_id=ids["bos"],
        add_bos=bool(settings.get("add_bos_token", first == [ids["bos"]])),
        eos_id=ids["eos"],
        end_ids=_end_ids(pieces, control, [ids["eos"]]),
        chat_template=_folder_template(folder, settings),
        strip_first_space='"Strip"' in steps,
    )


def _token_text(entry: Any) -> str:
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else ""


def _folder_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        try:
            return path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"cannot read {path}: {error}") from error
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
