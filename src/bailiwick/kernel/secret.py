"""A value that has no text. `git grep 'reveal('` is the audit of every place where one becomes bytes."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Secret:
    _value: bytes = field(repr=False)

    def __str__(self) -> str:
        return "(secret)"

    def __format__(self, spec: str) -> str:
        return "(secret)"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled; pass it over a channel that names it")

    def reveal(self) -> bytes:
        return self._value
