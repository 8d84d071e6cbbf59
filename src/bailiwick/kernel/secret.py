"""A value that has no text. `git grep 'reveal('` is the audit of every place where one becomes bytes."""

import hmac
from typing import NoReturn


class Secret:
    """Not a dataclass: `asdict`, msgspec and pydantic write out the fields of whatever is one."""

    __slots__ = ("__value",)

    __value: bytes

    def __init__(self, value: bytes) -> None:
        object.__setattr__(self, "_Secret__value", value)

    def reveal(self) -> bytes:
        return self.__value

    def __repr__(self) -> str:
        return "(secret)"

    def __format__(self, spec: str) -> str:
        return "(secret)"

    def __eq__(self, other: object) -> bool:
        return hmac.compare_digest(self.__value, other.__value) if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash((Secret, self.__value))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a secret does not change; make another")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret is not pickled or copied; pass it over a channel that names it")
