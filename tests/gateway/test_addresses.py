import pytest

from bailiwick.gateway.addresses import special_purpose


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.255.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1",
        "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255", "198.51.100.7", "203.0.113.9", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "168.63.129.16", "100.100.100.200", "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1", "2002:7f00:1::", "2002:808:808::", "2001::1", "2001:db8::1", "3fff::1", "5f00::1",
        "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0",
        "fec0::1", "ff02::1", "100::1", "4000::1", "2130706433", "0x7f000001", "", "localhost",
    ],
)  # fmt: skip
def test_special_purpose_addresses_are_refused_however_they_are_written(address: str) -> None:
    """Loopback, private, link-local, metadata, reserved, documentation, multicast; IPv4 inside IPv6; what is no address at all."""
    assert special_purpose(address) is not None


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "172.32.0.1", "100.128.0.1", "198.20.0.1", "2606:4700::1111", "64:ff9b::808:808", "2a00:1450::1"]
)
def test_ordinary_addresses_of_the_public_internet_pass(address: str) -> None:
    """What the registries do not call special may be connected to."""
    assert special_purpose(address) is None
