"""Names and the synthetic addresses that stand for them inside one sandbox.

A name gets an address out of 198.18.0.0/15 (RFC 2544, benchmarking: routed nowhere) the first time it is asked for, and keeps it for the run. An address
says which name was meant, so any protocol is known by name, and no question ever leaves the machine. Two names are fixed; the others follow in order.
"""

import re
from collections.abc import Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address

from bailiwick.kernel import limits
from bailiwick.kernel.errors import CallerError, Conflict

NETWORK = IPv4Network("198.18.0.0/15")
PROXY_NAME = "proxy.bailiwick.internal"
MODELS_NAME = "models.bailiwick.internal"
FIXED = {PROXY_NAME: "198.18.0.1", MODELS_NAME: "198.18.0.2"}
FIRST = IPv4Address("198.18.1.0")

NAME_CHARACTERS_MAX = 253  # RFC 1035, section 2.3.4: 255 octets on the wire
_LABEL = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"  # RFC 1123, section 2.1, and the underscore that service names use (RFC 8552)
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NUMERIC_END = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")  # WHATWG URL, "ends in a number": a client reads such a host as an IPv4 address


class NamesExhausted(CallerError):
    """The run asked for more names than limits.NAMES_PER_RUN_MAX."""

    code = "names-exhausted"


class InvalidName(CallerError):
    """Not the name of a host."""

    code = "invalid-name"


def normalise(name: str) -> str:
    """Lower case, without the trailing dot. InvalidName for what is no host name: empty or long labels, white space, characters beyond ASCII (an
    internationalised name passes as its A-labels, RFC 5890), a last label that is a number (such a text is an address, RFC 1123, section 2.1)."""
    plain = name[:-1] if name.endswith(".") else name
    if not plain.isascii() or len(plain) > NAME_CHARACTERS_MAX:
        raise InvalidName(f"name {_short(name)} is not a host name; must be at most {NAME_CHARACTERS_MAX} ASCII characters (xn-- for others)")
    plain = plain.lower()
    if not _NAME.fullmatch(plain):
        raise InvalidName(f"name {_short(name)} is not a host name; each label must be 1 to 63 letters, digits, hyphens or underscores")
    if _NUMERIC_END.fullmatch(plain):
        raise InvalidName(f"name {_short(name)} ends in a number, so clients read it as an address; use a name")
    return plain


class NameTable:
    """The names of one run. Deterministic: the same names in the same order get the same addresses, so a restarted worker can be told them again."""

    def __init__(self) -> None:
        self._addresses: dict[str, str] = dict(FIXED)
        self._names: dict[int, str] = {int(IPv4Address(address)): name for name, address in FIXED.items()}
        self._next = int(FIRST)

    def __len__(self) -> int:
        return len(self._addresses)

    def __contains__(self, name: str) -> bool:
        """Whether the name has an address already; no name is given one by asking."""
        try:
            return normalise(name) in self._addresses
        except InvalidName:
            return False

    def address_of(self, name: str) -> str:
        """The name's address, given now if it has none; InvalidName, NamesExhausted."""
        known = self._addresses.get(name)
        if known is not None:
            return known
        plain = normalise(name)
        known = self._addresses.get(plain)
        if known is not None:
            return known
        if len(self._addresses) - len(FIXED) >= limits.NAMES_PER_RUN_MAX:
            raise NamesExhausted(f"the run asked for {limits.NAMES_PER_RUN_MAX} names already; {_short(plain)} is one more than it may")
        number, self._next = self._next, self._next + 1
        address = str(IPv4Address(number))
        self._addresses[plain] = address
        self._names[number] = plain
        return address

    def tell(self, names: Sequence[str]) -> None:
        """What another table of the run gave out, in the order of the addresses: this one stands for it. Raises Conflict, and takes nothing, where it has
        given an address out otherwise; InvalidName, NamesExhausted."""
        told = [plain for name in names if (plain := normalise(name)) not in FIXED]
        if len(set(told)) != len(told):
            raise Conflict("a name is told twice; each has one address in a run")
        if len(told) > limits.NAMES_PER_RUN_MAX:
            raise NamesExhausted(f"{len(told)} names are told; must be at most {limits.NAMES_PER_RUN_MAX}")
        for known, name in zip(self.names(), told, strict=False):
            if known != name:
                raise Conflict(f"the address of {_short(known)} is told as that of {_short(name)}; a name keeps its address for the run")
        for name in told:
            self.address_of(name)

    def take_back(self, name: str) -> None:
        """The newest name's address, which nobody was told. Nothing for any other name."""
        if name == next(reversed(self._addresses)) and name not in FIXED:
            self._next -= 1
            del self._addresses[name], self._names[self._next]

    def name_of(self, address: str) -> str | None:
        """The name an address stands for; IPv4, or IPv6 that maps it (RFC 4291, section 2.5.5.2). None for an address that stands for none."""
        number = _ipv4(address)
        return None if number is None else self._names.get(number)

    def names(self) -> tuple[str, ...]:
        """The names given so far, in the order of their addresses, without the fixed ones."""
        return tuple(self._addresses)[len(FIXED) :]


def _ipv4(address: str) -> int | None:
    try:
        if ":" not in address:
            return int(IPv4Address(address))
        mapped = IPv6Address(address).ipv4_mapped
    except AddressValueError:
        return None
    return None if mapped is None else int(mapped)


def _short(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:77]}...")
