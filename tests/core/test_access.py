"""Principals, groups and tenants against sets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core.access import Access, Directory
from windlass.core.errors import UsageError

names = st.sampled_from(["g0", "g1", "g2", "g3", "g4"])


@given(
    changes=st.lists(st.tuples(names, st.sets(st.sampled_from("abcdef")), st.sets(names, max_size=3)), max_size=12),
    removed=st.sets(names, max_size=2),
)
def test_groups_hold_what_their_groups_hold(changes, removed):
    directory, model = Directory(), {}

    def reach(name, seen):
        if name in seen:
            return set()
        tenants, groups = model[name]
        return set(tenants).union(*(reach(group, seen | {name}) for group in groups))

    def holds(start, name):
        return start == name or any(holds(group, name) for group in model.get(start, ((), ()))[1])

    for name, tenants, groups in changes:
        if any(group not in model and group != name for group in groups):
            with pytest.raises(UsageError, match="no group"):
                directory.with_group(name, tenants=tenants, groups=groups)
        elif any(holds(group, name) for group in groups):
            with pytest.raises(UsageError, match=f"group '{name}' would hold itself: {name} > .*{name}"):
                directory.with_group(name, tenants=tenants, groups=groups)
        else:
            directory = directory.with_group(name, tenants=tenants, groups=groups)
            model[name] = (tenants, groups)
    for name in removed:
        directory = directory.without_group(name)
        model.pop(name, None)
        model = {key: (tenants, groups - {name}) for key, (tenants, groups) in model.items()}
    for name in model:
        seen = directory.with_principal("eve", tenants={"own"}, groups={name}).resolve(Access("eve"))
        assert seen == {"own"} | reach(name, frozenset())
    assert Directory.from_json(directory.to_json()) == directory


def test_nobody_and_nothing_is_never_everything():
    directory = Directory().with_principal("eve", tenants={"a"})
    assert directory.resolve(Access("mallory")) == frozenset()
    assert directory.resolve(Access(tenants=set())) == frozenset()
    assert directory.with_principal("eve").resolve(Access("eve")) == frozenset()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Access(), "names a principal or tenants"),
        (lambda: Access("eve", {"a"}), "names a principal or tenants"),
        (lambda: Access(tenants="ab"), "tenants is the text 'ab'"),
        (lambda: Access(tenants={""}), "a name of 0 bytes"),
        (lambda: Access(tenants={"é" * 600}), "a name of 1200 bytes"),
        (lambda: Access(tenants={"\ud800"}), "half of a character"),
        (lambda: Access(tenants=[3]), "a name is a text, not 3"),
    ],
)
def test_what_is_no_access_is_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def test_any_text_is_a_name():
    for name in ("../../etc", "a/b", "名前", " ", "a\nb", "x" * 1024):
        assert Directory().with_principal("p", tenants={name}).resolve(Access("p")) == {name}
