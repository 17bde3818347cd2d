"""The compiled look into a folder against Python's, and both against `lstat`."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.children import quick_folder
from windlass.kernels import folder_listing
from windlass.lake.look import Look, _Compiled, _packed, look_into

pytestmark = pytest.mark.skipif(not folder_listing.available(), reason="the system lacks the calls")

LETTERS = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l"}
NAME = st.binary(min_size=1, max_size=40).filter(lambda name: b"/" not in name and b"\0" not in name)


def by_lstat(folder: bytes, look: Look) -> None:
    """Every name is there once, with what `lstat` says of it."""
    records = look.records
    seen = []
    for tagged in look.names:
        name = os.fsencode(tagged[1:])
        record = os.lstat(folder + b"/" + name)
        assert tagged[0] == LETTERS.get(stat.S_IFMT(record.st_mode), "s")
        if tagged[0] == "f":
            assert next(records) == (record.st_size, record.st_mtime_ns, record.st_ctime_ns, record.st_ino)
        seen.append(name)
    assert next(records, None) is None
    assert sorted(seen) == sorted(os.listdir(folder))


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(NAME, st.tuples(st.sampled_from("fffdlp"), st.integers(-(10**9), 2 * 10**18)), max_size=12))
def test_both_ways_say_what_is_there(entries: dict[bytes, tuple[str, int]]) -> None:
    with quick_folder() as root:
        folder = os.fsencode(root)
        for name, (kind, moment) in entries.items():
            path = folder + b"/" + name
            if name in (b".", b".."):
                continue
            if kind == "f":
                with open(path, "wb") as file:
                    file.write(name * 3)
                os.utime(path, ns=(0, moment))
            elif kind == "d":
                os.mkdir(path)
            elif kind == "l":
                os.symlink(b"nowhere", path)
            else:
                os.mkfifo(path)
        plain, quick = look_into(folder, is_root=True), _Compiled().look_into(folder, is_root=True)
        assert plain == quick and plain.failed == []
        assert plain.digest(b"x") == quick.digest(b"x") != plain.digest(b"y")
        by_lstat(folder, quick)


def test_more_files_than_there_is_room_for(tmp_path: Path) -> None:
    for number in range(700):
        (tmp_path / f"{number:0200}").write_bytes(b"x" * (number % 7))
    quick = _Compiled()
    quick._make_room(16)
    assert quick.look_into(os.fsencode(tmp_path), is_root=True) == look_into(os.fsencode(tmp_path), is_root=True)
    assert quick.look_into(os.fsencode(tmp_path), is_root=False).text.count(b"\0") == 699


def test_a_digest_tells_every_change_apart(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    (tmp_path / "a").write_text("one")
    seen = {look_into(folder, is_root=True).digest(b"")}
    for change in (
        lambda: (tmp_path / "a").write_text("three"),
        lambda: os.utime(tmp_path / "a", ns=(0, 5)),
        lambda: (tmp_path / "a").rename(tmp_path / "b"),
        lambda: (tmp_path / "c").mkdir(),
        lambda: (tmp_path / "c").rmdir() or (tmp_path / "c").symlink_to("b"),  # type: ignore[func-returns-value]
        lambda: (tmp_path / "b").unlink(),
    ):
        change()
        seen.add(look_into(folder, is_root=True).digest(b""))
    assert len(seen) == 7


def test_inodes_of_all_64_bits_fit() -> None:
    look = Look(b"fa", _packed([5, -7, 8, (1 << 64) - 3]), [])
    assert list(look.records) == [(5, -7, 8, -3)]


def test_a_folder_that_became_a_link_or_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "file").write_text("x")
    for look in (look_into, _Compiled().look_into):
        for name in ("link", "file", "gone"):
            with pytest.raises(OSError):
                look(os.fsencode(tmp_path / name), is_root=False)
        assert look(os.fsencode(tmp_path / "link"), is_root=True).text == b""
