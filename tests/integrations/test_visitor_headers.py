"""Event properties and client address from request headers, including forged headers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpanel_async import ConfigurationError
from mixpanel_async.integrations._headers import referrer_properties, user_agent_properties
from mixpanel_async.integrations._proxies import Proxies, parse_address

# The sender controls its header values; each proxy appends the address of its peer.
SENDER = "198.51.100.7"
BALANCER = "10.0.0.1"
EDGE = "192.0.2.44"


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "found"),
    [
        (0, SENDER, "", SENDER),
        (0, SENDER, "203.0.113.99", SENDER),
        (1, BALANCER, SENDER, SENDER),
        (1, BALANCER, f"203.0.113.99, {SENDER}", SENDER),
        (1, BALANCER, f"203.0.113.99,{SENDER} ", SENDER),
        (2, BALANCER, f"203.0.113.99, {SENDER}, {EDGE}", SENDER),
        # The server already replaced the proxy's address with the sender's.
        (1, SENDER, f"203.0.113.99, {SENDER}", SENDER),
        # Fewer hops than configured: the request bypassed a proxy.
        (2, BALANCER, SENDER, SENDER),
        (1, BALANCER, "", BALANCER),
        (1, BALANCER, f"{SENDER}, unknown", None),
        (1, BALANCER, f"{SENDER}, ", None),
        (1, None, f"203.0.113.99, {SENDER}", SENDER),
        (0, None, SENDER, None),
        (0, "testclient", "", None),
        (["10.0.0.0/8"], BALANCER, f"203.0.113.99, {SENDER}", SENDER),
        (["10.0.0.0/8", "192.0.2.0/24"], BALANCER, f"203.0.113.99, {SENDER}, {EDGE}", SENDER),
        (["10.0.0.0/8"], BALANCER, f"203.0.113.99, {SENDER}, {EDGE}", EDGE),
        # The request bypassed all proxies.
        (["10.0.0.0/8"], SENDER, "203.0.113.99", SENDER),
        (["10.0.0.0/8"], BALANCER, "10.0.0.9, 10.0.0.8", "10.0.0.9"),
        (["10.0.0.0/8"], BALANCER, "", BALANCER),
        (["10.0.0.0/8"], BALANCER, f"{SENDER}, unknown", None),
        (["10.0.0.0/8"], None, SENDER, SENDER),
        (["10.0.0.0/8"], "::ffff:10.0.0.1", SENDER, SENDER),
        (["fd00::/8"], "fd00::1", "2001:db8::7", "2001:db8::7"),
        ([], BALANCER, SENDER, BALANCER),
    ],
)
def test_client_address_is_the_one_seen_by_a_trusted_proxy(
    trusted: Any, peer: str | None, forwarded: str, found: str | None
) -> None:
    assert Proxies(trusted).client_ip(peer, forwarded) == found


@settings(max_examples=50)
@given(forged=st.lists(st.text(alphabet=st.characters(codec="latin-1"), max_size=20), max_size=4))
@pytest.mark.parametrize("trusted", [1, ["10.0.0.0/8"]], ids=["count", "networks"])
def test_headers_forged_by_the_sender_do_not_change_the_address(trusted: Any, forged: list[str]) -> None:
    forwarded = ",".join([*forged, SENDER])
    assert Proxies(trusted).client_ip(BALANCER, forwarded) == SENDER


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("203.0.113.9:443", "203.0.113.9"),
        ("[2001:db8::7]:443", "2001:db8::7"),
        ('"[2001:db8::7]"', "2001:db8::7"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        (" 203.0.113.9 ", "203.0.113.9"),
        ("203.0.113", None),
        ("", None),
        ("_hidden", None),
    ],
)
def test_address_formats_written_by_proxies_are_parsed(text: str, address: str | None) -> None:
    found = parse_address(text)
    assert (None if found is None else str(found)) == address


@pytest.mark.parametrize("wrong", [-1, 101, True, "10.0.0.0/8", ["10.0.0.1/8"], ["nowhere"], 1.5, None])
def test_invalid_trusted_proxies_are_rejected(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="trusted_proxies"):
        Proxies(wrong)


MAC = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7)"
IPHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 17_2 like Mac OS X)"
IPAD = "Mozilla/5.0 (iPad; CPU OS 17_2 like Mac OS X)"
PHONE = "Mozilla/5.0 (Linux; Android 14; SM-S928W)"
KIT = "AppleWebKit/537.36 (KHTML, like Gecko)"
APPLE = "AppleWebKit/605.1.15 (KHTML, like Gecko)"
EXPLORER = "Internet Explorer"


@pytest.mark.parametrize(
    ("user_agent", "browser", "version", "system", "device"),
    [
        (f"{MAC} {KIT} Chrome/120.0.0.0 Safari/537.36", "Chrome", 120, "Mac OS X", None),
        (f"{MAC} {KIT} Chrome/120.0.0.0 Safari/537.36 Edg/120.0.2210.91", "Microsoft Edge", 120, "Mac OS X", None),
        (f"{MAC} {KIT} Chrome/120.0.0.0 Safari/537.36 OPR/106.0.0.0", "Opera", 106, "Mac OS X", None),
        (f"{MAC} {APPLE} Version/17.2 Safari/605.1.15", "Safari", 17.2, "Mac OS X", None),
        (f"{IPHONE} {APPLE} Version/17.2 Mobile/15E148 Safari/604.1", "Mobile Safari", 17.2, "iOS", "iPhone"),
        (f"{IPAD} {APPLE} CriOS/120.0.6099.119 Mobile/15E148 Safari/604.1", "Chrome iOS", 120, "iOS", "iPad"),
        (f"{PHONE} {KIT} SamsungBrowser/23.0 Chrome/115.0.0.0", "Samsung Internet", 23, "Android", "Android"),
        ("Mozilla/5.0 (X11; Linux x86_64; rv:121.0) Gecko/20100101 Firefox/121.0", "Firefox", 121, "Linux", None),
        ("Mozilla/5.0 (Windows NT 10.0; Trident/7.0; rv:11.0) like Gecko", EXPLORER, 11, "Windows", None),
        ("Mozilla/4.0 (compatible; MSIE 8.0; Windows NT 6.1)", EXPLORER, 8, "Windows", None),
        ("python-httpx/0.28.1", None, None, None, None),
        ("", None, None, None, None),
    ],
)
def test_browser_names_match_those_of_mixpanel(
    user_agent: str, browser: str | None, version: float | None, system: str | None, device: str | None
) -> None:
    expected = {"$browser": browser, "$browser_version": version, "$os": system, "$device": device}
    assert user_agent_properties(user_agent) == {name: value for name, value in expected.items() if value is not None}


@pytest.mark.parametrize(
    ("referrer", "url", "domain"),
    [
        ("https://shop.example/cart?token=secret#top", "https://shop.example/cart", "shop.example"),
        ("https://user:password@Shop.Example:8443/a", "https://shop.example:8443/a", "shop.example"),
        ("http://[2001:db8::7]/a", "http://[2001:db8::7]/a", "2001:db8::7"),
        ("https://shop.example/" + "x" * 999, ("https://shop.example/" + "x" * 999)[:255], "shop.example"),
    ],
)
def test_referrer_excludes_query_fragment_and_credentials(referrer: str, url: str, domain: str) -> None:
    assert referrer_properties(referrer) == {"$referrer": url, "$referring_domain": domain}


@pytest.mark.parametrize(
    "odd", ["", "about:client", "android-app://com.example", "https://", "http://[", "https://a:x/"]
)
def test_referrer_that_is_not_an_http_url_is_ignored(odd: str) -> None:
    assert referrer_properties(odd) == {}


TEXT = st.text(max_size=60)


@settings(max_examples=50)
@given(
    text=TEXT | TEXT.map(lambda path: f"https://shop.example/{path}") | TEXT.map(lambda rest: f"Version/{rest} Safari/")
)
def test_arbitrary_header_text_is_accepted(text: str) -> None:
    for found in (user_agent_properties(text), referrer_properties(text)):
        for value in found.values():
            str(value).encode()
    Proxies(1).client_ip(text, text)
    Proxies(["10.0.0.0/8"]).client_ip(text, text)


def test_undecodable_header_bytes_give_a_sendable_event() -> None:
    assert referrer_properties("https://shop.example/\udcff") == {
        "$referrer": "https://shop.example/?",
        "$referring_domain": "shop.example",
    }
