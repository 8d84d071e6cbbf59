from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bailiwick.gateway import names
from bailiwick.gateway.names import InvalidName, NamesExhausted, NameTable, normalise
from bailiwick.kernel import limits
from bailiwick.kernel.errors import CallerError

LABELS = st.from_regex(r"[a-z][a-z0-9_-]{0,10}[a-z0-9]", fullmatch=True)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)


def test_fixed_names_have_fixed_addresses() -> None:
    """The proxy and the model endpoints are where every sandbox expects them."""
    table = NameTable()
    assert table.address_of("proxy.bailiwick.internal") == "198.18.0.1"
    assert table.address_of("MODELS.bailiwick.internal.") == "198.18.0.2"
    assert table.name_of("198.18.0.2") == "models.bailiwick.internal"


@given(st.lists(NAMES, max_size=30))
def test_an_address_is_its_name(asked: list[str]) -> None:
    """Each name has one address of the synthetic network, each address one name, the same for the same order of asking."""
    first, second = NameTable(), NameTable()
    given_first = [first.address_of(name) for name in asked]
    assert given_first == [second.address_of(name.upper() + ".") for name in asked]
    for name, address in zip(asked, given_first, strict=True):
        assert first.name_of(address) == name
        assert first.name_of(f"::ffff:{address}") == name
        assert IPv4Address(address) in names.NETWORK
    assert len(set(given_first)) == len(set(asked))
    assert first.names() == tuple(dict.fromkeys(asked))


@given(st.lists(NAMES, unique=True, max_size=20), st.lists(NAMES, unique=True, max_size=5), st.integers(0, 20))
def test_a_table_that_is_told_is_the_same_table(asked: list[str], later: list[str], known: int) -> None:
    """Names told in the order of their addresses have those addresses, whether or not the table had given some of them out, and others come after."""
    first, second = NameTable(), NameTable()
    for name in asked:
        first.address_of(name)
    for name in asked[:known]:
        second.address_of(name)
    second.tell(first.names())
    second.tell(first.names()[:known])
    for name in (*asked, *later):
        assert second.address_of(name) == first.address_of(name)


def test_what_is_told_may_not_move_a_name() -> None:
    """An address that was given out is told otherwise, a name twice, or what is no name: refused, and nothing is taken."""
    table = NameTable()
    table.address_of("a.example")
    for told in (["b.example"], ["a.example", "b.example", "B.example"], ["a.example", "no name"]):
        with pytest.raises(CallerError):
            table.tell(told)
        assert table.names() == ("a.example",)
    with pytest.raises(NamesExhausted):
        table.tell([f"h{number}.example" for number in range(limits.NAMES_PER_RUN_MAX + 1)])
    table.tell(["a.example", names.PROXY_NAME, "b.example"])
    assert table.names() == ("a.example", "b.example")


def test_only_the_newest_name_is_taken_back() -> None:
    """What nobody was told goes without a gap; a name that has its address keeps it."""
    table = NameTable()
    for name in ("a.example", "b.example"):
        table.address_of(name)
    table.take_back("a.example")
    table.take_back("b.example")
    assert (table.names(), table.name_of("198.18.1.1")) == (("a.example",), None)
    assert table.address_of("c.example") == "198.18.1.1"
    table.take_back(names.MODELS_NAME)
    NameTable().take_back(names.MODELS_NAME)
    assert names.MODELS_NAME in NameTable()


def test_names_begin_after_the_fixed_addresses() -> None:
    """The first name gets 198.18.1.0, and the next one the next address."""
    table = NameTable()
    assert [table.address_of(name) for name in ("b.example", "a.example", "b.example")] == ["198.18.1.0", "198.18.1.1", "198.18.1.0"]


@pytest.mark.parametrize(
    "address", ["198.18.1.0", "198.18.0.0", "8.8.8.8", "::1", "::ffff:8.8.8.8", "2001:db8::1", "", "nonsense", "198.18.1", "1::2::3", "198.018.1.0"]
)
def test_an_unknown_address_has_no_name(address: str) -> None:
    """An address that was never given out, or is none, stands for nothing."""
    assert NameTable().name_of(address) is None


@given(st.text(max_size=60))
def test_name_of_takes_any_text(address: str) -> None:
    """Whatever is no address of the table is None, never an exception."""
    assert NameTable().name_of(address) in (None, *names.FIXED)


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "a..b", ".a", "a b", "a\tb", "a\0b", "-a", "a-", "ex-.com", "b\u00fccher.example", "a" * 64, ".".join(["a" * 60] * 5)),
        *("a/b", "a@b", "a:80", "[::1]", "*.example", "1.2.3.4", "1.2.3.4.", "127.1", "example.1", "0x7f.1", "a.0x7f", "a.0x", "2130706433"),
    ],
)
def test_what_is_no_host_name_is_refused(name: str) -> None:
    """A text that a client would read as an address, or as no host, gets no address of ours, and is not counted."""
    table = NameTable()
    with pytest.raises(InvalidName):
        table.address_of(name)
    assert name not in table
    assert len(table) == 2


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("Example.COM.", "example.com"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("_dmarc.a", "_dmarc.a"),
        ("my_host", "my_host"),
        ("3com.com", "3com.com"),
        ("a.b4", "a.b4"),
    ],
)
def test_names_are_normalised(name: str, plain: str) -> None:
    """Case and the trailing dot do not make another name; A-labels, underscores and digits pass."""
    assert normalise(name) == plain
    assert normalise(normalise(name)) == plain


def test_asking_has_an_end() -> None:
    """One name more than the limit is refused, and those known stay known."""
    table = NameTable()
    for number in range(limits.NAMES_PER_RUN_MAX):
        table.address_of(f"h{number}.example")
    with pytest.raises(NamesExhausted):
        table.address_of("one-more.example")
    assert table.address_of("h0.example") == "198.18.1.0"
    last = table.address_of(f"h{limits.NAMES_PER_RUN_MAX - 1}.example")
    assert IPv4Address(last) in names.NETWORK
