"""Who may see which rows.

A *tenant* is a named set of rows; a row may belong to many. A *principal* (a person, an API key) has tenants directly
or through *groups*, which may hold groups. `Directory` keeps principals and groups and resolves an `Access` to the
tenants it stands for; which rows a tenant has is known where the rows are. A name that nobody knows stands for nothing,
and nothing is never taken for everything.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from windlass.core.errors import UsageError, WindlassError

MAX_NAME_BYTES = 1024


class AccessRequired(UsageError):
    """A collection with tenants was asked without saying for whom."""

    http_status = 401


class AccessDenied(WindlassError):
    """Whoever asks may not do this. The message tells nothing about what is there."""

    exit_code = 4
    http_status = 403


@dataclass(frozen=True, slots=True)
class Access:
    """For whom a question is asked: a principal, or a set of tenants.

    Example:
        >>> Access(tenants={"a", "b"}) == Access(tenants=["b", "a"])
        True
    """

    principal: str | None = None
    tenants: Collection[str] | None = None

    def __post_init__(self) -> None:
        if (self.principal is None) == (self.tenants is None):
            raise UsageError("an Access names a principal or tenants, one of the two")
        if isinstance(self.tenants, str):
            raise UsageError(f"tenants is the text {self.tenants!r}", hint=f"write tenants={{{self.tenants!r}}}")
        if self.tenants is not None:
            object.__setattr__(self, "tenants", frozenset(checked_name(name) for name in self.tenants))


@dataclass(frozen=True, slots=True)
class Members:
    """What a group or a principal has: tenants, and groups of them."""

    tenants: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Directory:
    """Principals and groups; immutable, a change makes a new one.

    Example:
        >>> directory = Directory().with_group("staff", tenants={"a", "b"}).with_principal("eve", groups={"staff"})
        >>> sorted(directory.resolve(Access("eve")))
        ['a', 'b']
    """

    groups: Mapping[str, Members] = field(default_factory=dict)
    principals: Mapping[str, Members] = field(default_factory=dict)

    def with_group(self, name: str, *, tenants: Collection[str] = (), groups: Collection[str] = ()) -> Directory:
        """Make or change a group.

        Raises:
            UsageError: A name is not valid, a group inside is unknown, or the group would hold itself; the message
                names the cycle.
        """
        members = self._members(tenants, groups, itself=checked_name(name))
        changed = {**self.groups, name: members}
        cycle = _cycle(changed, name)
        if cycle:
            raise UsageError(f"group {name!r} would hold itself: {' > '.join(cycle)}", hint="leave one of them out")
        return Directory(changed, self.principals)

    def without_group(self, name: str) -> Directory:
        """Remove a group, also from whatever held it. Unknown names are ignored."""

        def stripped(known: Mapping[str, Members]) -> dict[str, Members]:
            return {key: Members(value.tenants, value.groups - {name}) for key, value in known.items() if key != name}

        people = {key: Members(value.tenants, value.groups - {name}) for key, value in self.principals.items()}
        return Directory(stripped(self.groups), people)

    def with_principal(self, name: str, *, tenants: Collection[str] = (), groups: Collection[str] = ()) -> Directory:
        """Say what a principal has; with nothing it is forgotten.

        Raises:
            UsageError: A name is not valid, or a group is unknown.
        """
        members = self._members(tenants, groups)
        others = {key: value for key, value in self.principals.items() if key != checked_name(name)}
        return Directory(self.groups, {**others, name: members} if tenants or groups else others)

    def resolve(self, access: Access) -> frozenset[str]:
        """The tenants that `access` stands for; of an unknown principal: none."""
        if access.principal is None:
            return frozenset(access.tenants or ())
        start = self.principals.get(access.principal)
        if start is None:
            return frozenset()
        tenants, waiting, seen = set(start.tenants), list(start.groups), set(start.groups)
        while waiting:
            group = self.groups[waiting.pop()]
            tenants |= group.tenants
            waiting += group.groups - seen
            seen |= group.groups
        return frozenset(tenants)

    def to_json(self) -> dict[str, Any]:
        return {
            kind: {name: [sorted(value.tenants), sorted(value.groups)] for name, value in sorted(known.items())}
            for kind, known in (("groups", self.groups), ("principals", self.principals))
        }

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Directory:
        """The directory that `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: It is none.
        """

        def members(known: Mapping[str, Any]) -> dict[str, Members]:
            return {name: Members(frozenset(tenants), frozenset(groups)) for name, (tenants, groups) in known.items()}

        return Directory(members(content["groups"]), members(content["principals"]))

    def _members(self, tenants: Collection[str], groups: Collection[str], itself: str = "") -> Members:
        for group in groups:
            if group not in self.groups and group != itself:
                raise UsageError(f"no group {group!r}", hint="make it first")
        return Members(frozenset(checked_name(name) for name in tenants), frozenset(groups))


def checked_name(name: str) -> str:
    """`name`, if a tenant, group or principal may be called so: any text of 1 to 1,024 bytes in UTF-8.

    Raises:
        UsageError: It may not.
    """
    if not isinstance(name, str):
        raise UsageError(f"a name is a text, not {name!r}")
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise UsageError(f"the name {name!r} holds half of a character", hint="use whole characters") from error
    if not 1 <= size <= MAX_NAME_BYTES:
        raise UsageError(f"a name of {size} bytes", hint=f"use 1 to {MAX_NAME_BYTES} bytes")
    return name


def _cycle(groups: Mapping[str, Members], start: str) -> list[str]:
    """A way from `start` back to itself, or nothing."""
    waiting, seen = [[start]], set()
    while waiting:
        way = waiting.pop()
        for inner in sorted(groups[way[-1]].groups):
            if inner == start:
                return [*way, start]
            if inner not in seen:
                seen.add(inner)
                waiting.append([*way, inner])
    return []
