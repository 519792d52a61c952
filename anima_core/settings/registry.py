"""The one kind of registry: named things of a sort, looked up by a setting's value."""

from collections.abc import Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from ..errors import SettingError


class Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


class Registry(Generic[T]):
    """Entries by name, in order. Any spelling finds one: case and underscores do not count."""

    def __init__(self, setting: str, entries: Sequence[T]) -> None:
        self.setting = setting  # the `section.field` whose value is looked up here
        self._entries = {plain(entry.name): entry for entry in entries}

    def __iter__(self) -> Iterator[T]:
        return iter(self._entries.values())

    def __getitem__(self, name: str) -> T:
        """Raise SettingError, naming what there is, for a name that no entry has."""
        if plain(name) not in self._entries:
            raise SettingError(f"`{self.setting}`={name}: must be one of {', '.join(self.names)}")
        return self._entries[plain(name)]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(entry.name for entry in self)


def plain(name: str) -> str:
    return name.replace("_", "").lower()
