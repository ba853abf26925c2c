"""Row G2: a request of which no byte has left counts as not applied, whatever ended it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import re
import resource
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from misbehaving import (
    AUTHORITY,
    OTHER_AUTHORITY,
    Peer,
    answer,
    answer_and_hang,
    close,
    cut,
    hang,
    in_tunnel,
    reset,
    reset_now,
    serving,
    socks_cut,
    socks_hang,
    socks_refuse,
    socks_wants_credentials,
    wrong_certificate,
)

from mixpanel_async import (
    AsyncMixpanel,
    BatchPolicy,
    ClientClosedError,
    MixpanelException,
    RetryPolicy,
    TransportError,
)

pytestmark = pytest.mark.sample(every=7)

ATTEMPT = 0.4
CANARY = "canary-of-a-secret"
BAD_TLS = b"HTTP/1.1 400 Bad Request\r\n\r\n"


async def reset_at_once(stream: Any) -> None:
    reset_now(stream)


@dataclass(frozen=True)
class Phase:
    """Phase of a request, and how it fails.

    Args:
        name: name of the test.
        misbehave: what the first two connections get.
        proxy: kind of the proxy; empty for a direct connection.
        is_tls: whether the server speaks TLS.
        is_blocked: whether no connection is accepted: `refused`, `full` (no answer), `unresolved`, `unanswered` (name).
    """

    name: str
    misbehave: Callable[[Any], Awaitable[None]] | None = None
    proxy: str = ""
    is_tls: bool = True
    is_blocked: str = ""

    @property
    def hangs(self) -> bool:
        return "hang" in self.name


SOCKS_ANSWERS = {"cut": socks_cut, "hang": socks_hang, "refuse": socks_refuse, "credentials": socks_wants_credentials}
HANDSHAKES: dict[str, Callable[[Any], Awaitable[None]]] = {
    "hang": hang,
    "cut": cut,
    "reset": reset,
    "close": close,
    "plain HTTP": answer(BAD_TLS),
    "half": answer_and_hang(b"\x16\x03\x03\x00\x7a\x02\x00"),
    "untrusted": wrong_certificate("localhost", "mixpanel.test", authority=OTHER_AUTHORITY),
    "wrong host": wrong_certificate("other.test", authority=AUTHORITY),
}
CONNECTS: dict[str, Callable[[Any], Awaitable[None]]] = {
    "hang": hang,
    "half hang": answer_and_hang(b"HTTP/1.1 200 Conn"),
    "cut": cut,
    "close": close,
    "reset": reset,
    "reset at once": reset_at_once,
    "not HTTP": answer(b"SSH-2.0-OpenSSH\r\n\r\n"),
    **{
        str(status): answer(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status)
        for status in (301, 400, 403, 404, 407, 429, 500, 502, 503, 504)
    },
}
PHASES = [
    *(Phase(f"name {kind}", is_blocked=kind) for kind in ("unresolved", "hang")),
    *(Phase(f"connect {kind}", is_blocked=kind) for kind in ("refused", "full hang")),
    *(Phase(f"proxy connect {kind}", proxy="http", is_blocked=kind) for kind in ("refused", "full hang")),
    *(Phase(f"handshake {name}", one) for name, one in HANDSHAKES.items()),
    *(Phase(f"CONNECT {name}", one, proxy="http") for name, one in CONNECTS.items()),
    *(Phase(f"proxy handshake {name}", one, proxy="https") for name, one in HANDSHAKES.items()),
    *(Phase(f"tunnel handshake {name}", in_tunnel("http", one), proxy="http") for name, one in HANDSHAKES.items()),
    *(Phase(f"SOCKS {name}", one, proxy="socks") for name, one in SOCKS_ANSWERS.items()),
    *(Phase(f"plain SOCKS {name}", one, proxy="socks", is_tls=False) for name, one in SOCKS_ANSWERS.items()),
    Phase("SOCKS handshake hang", in_tunnel("socks", hang), proxy="socks"),
    Phase("SOCKS handshake cut", in_tunnel("socks", cut), proxy="socks"),
]
HANGING = [phase for phase in PHASES if phase.hangs]


@dataclass
class Setting:
    """A phase that is set up.

    Args:
        origin: `api_host`.
        peer: counts what arrives.
        make_client: makes the client.
        heal: ends the misbehaviour of a phase that blocks.
    """

    peer: Peer
    make_client: Callable[..., AsyncMixpanel]
    heal: Callable[[], Awaitable[None]]
    lost: list[str] = field(default_factory=list)


@contextlib.contextmanager
def _blocked(kind: str, port: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Block names or a port. Yield a function that ends this."""
    with contextlib.ExitStack() as stack:
        if kind in {"unresolved", "hang"}:
            is_open = threading.Event()
            stack.callback(is_open.set)
            real = socket.getaddrinfo

            def getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
                if host not in {"mixpanel.test", b"mixpanel.test"}:
                    return real(host, *args, **options)
                if kind == "hang":
                    is_open.wait(20)
                elif not is_open.is_set():
                    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
                return real("127.0.0.1", *args, **options)

            monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
            yield is_open.set
            return
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        if kind == "full hang":
            listener.listen(0)
            for _ in range(3):
                one = stack.enter_context(socket.socket())
                one.setblocking(False)
                assert one.connect_ex(("127.0.0.1", listener.getsockname()[1])) in {0, errno.EINPROGRESS}
        yield stack.close


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@asynccontextmanager
async def setting(
    phase: Phase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, is_own: bool = True, limit: int = 2
) -> AsyncIterator[Setting]:
    bundle = tmp_path / "authority.pem"
    AUTHORITY.cert_pem.write_to_path(bundle)
    peer = Peer(phase.misbehave, limit=limit, is_tls=phase.is_tls, proxy=phase.proxy)
    async with contextlib.AsyncExitStack() as stack:
        unblock: Callable[[], None] = lambda: None  # noqa: E731
        if phase.is_blocked:
            peer.port = _free_port()
            unblock = stack.enter_context(_blocked(phase.is_blocked, peer.port, monkeypatch))
        is_listening = phase.is_blocked in {"", "unresolved", "hang"}
        if is_listening:
            await stack.enter_async_context(serving(peer))

        async def heal() -> None:
            unblock()
            if not is_listening:
                await stack.enter_async_context(serving(peer))

        scheme = "https" if phase.is_tls else "http"
        host = "mixpanel.test" if phase.proxy or phase.is_blocked in {"unresolved", "hang"} else "localhost"
        origin = f"{scheme}://{host}" + ("" if phase.proxy else f":{peer.port}")
        proxy = None
        if phase.proxy:
            prefix = "socks5" if phase.proxy == "socks" else phase.proxy
            login = "" if phase.proxy == "socks" else f"user:{CANARY}@"
            proxy = f"{prefix}://{login}localhost:{peer.port}"
        http_client = None
        if is_own:
            monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
            if proxy:
                monkeypatch.setenv("ALL_PROXY", proxy)
        else:
            trusted = ssl.create_default_context(cafile=bundle)
            used = None
            if proxy:
                used = httpx.Proxy(proxy, ssl_context=trusted if phase.proxy == "https" else None)
            http_client = await stack.enter_async_context(httpx.AsyncClient(verify=trusted, proxy=used))

        def make_client(**options: Any) -> AsyncMixpanel:
            return AsyncMixpanel(
                "token",
                api_host=origin,
                allow_http=True,
                http_client=http_client,
                **{
                    "batching": BatchPolicy(linger=0.0),
                    "retry": RetryPolicy(initial=0.01, maximum=0.02),
                    "identity_retry": RetryPolicy(attempts=1),
                    "timeout": ATTEMPT if phase.hangs or "half" in phase.name else 5.0,
                    **options,
                },
            )

        yield Setting(peer, make_client, heal)


async def _call(mp: AsyncMixpanel, call: str) -> None:
    if call == "alias":
        await mp.alias("new", "old")
    else:
        await mp.track_immediate("user", "Event")


@pytest.mark.anyio
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
async def test_g2_request_that_fails_before_its_first_byte_is_not_applied(
    phase: Phase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await _fail_and_succeed(phase, monkeypatch, tmp_path, is_own=True)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_g2_request_of_a_users_client_that_fails_before_its_first_byte_is_not_applied(
    phase: Phase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await _fail_and_succeed(phase, monkeypatch, tmp_path, is_own=False)
    # httpcore forgets a socket if it is cancelled while it opens a tunnel.
    gc.collect()


async def _fail_and_succeed(phase: Phase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, is_own: bool) -> None:
    """A queued `$add`, `alias` and `track_immediate` fail twice, are known not to be applied, and then succeed once."""
    async with setting(phase, monkeypatch, tmp_path, is_own=is_own) as it:
        async with it.make_client() as mp:
            await mp.people_increment("user", {"visits": 1})
            with anyio.fail_after(15):
                while mp.stats().requests < 2:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
            await it.heal()
            await mp.flush(timeout=10)
            assert (mp.stats().delivered, mp.stats().losses) == (1, {})
        assert len(it.peer.bodies) == 1
    for call in ("alias", "track_immediate"):
        async with setting(phase, monkeypatch, tmp_path, is_own=is_own) as it:
            errors = []
            async with it.make_client() as mp:
                for _ in range(2 if phase.misbehave else 1):
                    with pytest.raises(TransportError) as caught:
                        await _call(mp, call)
                    errors.append(caught.value)
            await it.heal()
            async with it.make_client(timeout=10.0) as mp:
                await _call(mp, call)
            assert len(it.peer.bodies) == 1
        for error in errors:
            assert not error.uncertain
            assert "it was not applied" in str(error)
            assert CANARY not in str(error)
            assert ("ALL_PROXY" in str(error)) == bool(is_own and phase.proxy)


@pytest.mark.anyio
@pytest.mark.parametrize("phase", HANGING, ids=lambda phase: phase.name)
async def test_g2_client_that_is_closed_while_it_connects_has_sent_nothing(
    phase: Phase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with setting(phase, monkeypatch, tmp_path, limit=1_000) as it:
        mp = it.make_client(timeout=20.0, shutdown_timeout=0.1)
        await mp.start()
        errors: list[MixpanelException] = []

        async def call(name: str) -> None:
            with pytest.raises(ClientClosedError) as caught:
                await _call(mp, name)
            errors.append(caught.value)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, "alias")
            tasks.start_soon(call, "track_immediate")
            await mp.people_increment("user", {"visits": 1})
            while mp.stats().requests < 3:  # noqa: ASYNC110
                await anyio.sleep(0.01)
            await anyio.sleep(0.05)
            await mp.aclose()
        with anyio.fail_after(5):
            # The event of `track_immediate` may return to the queue at the last moment.
            while mp.stats().losses != {"closed": 2}:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        assert [str(error) for error in errors] == ["the client was closed during the call; it was not applied"] * 2
        assert not any(error.uncertain for error in errors if isinstance(error, ClientClosedError))
        assert it.peer.bodies == []
        await it.heal()


# anyio does not close the coroutine of a task that asyncio cancels before its first step.
@pytest.mark.filterwarnings("ignore:coroutine .connect_tcp.* was never awaited:RuntimeWarning")
@pytest.mark.parametrize("phase", HANGING, ids=lambda phase: phase.name)
def test_g2_event_loop_that_ends_while_it_connects_has_sent_nothing(
    phase: Phase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clients: list[AsyncMixpanel] = []

    async def first() -> None:
        async with setting(phase, monkeypatch, tmp_path, limit=1_000) as it:
            mp = it.make_client(timeout=20.0, loop_end_timeout=0.1, shutdown_timeout=0.1)
            clients.append(mp)
            await mp.people_increment("user", {"visits": 1})
            while mp.stats().requests < 1:  # noqa: ASYNC110
                await anyio.sleep(0.01)
            await anyio.sleep(0.05)
            for task in asyncio.all_tasks():
                if task.get_name().startswith("mixpanel request"):
                    task.cancel()

    asyncio.run(first())
    (mp,) = clients
    assert (mp.stats().pending, mp.stats().losses) == (1, {})
    asyncio.run(mp.aclose())
    assert mp.stats().losses == {"closed": 1}


@pytest.mark.anyio
async def test_g2_request_that_waits_for_a_connection_has_sent_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    phase = Phase("busy", hang, is_tls=False)
    async with setting(phase, monkeypatch, tmp_path, limit=1_000) as it, it.make_client(timeout=0.5) as mp:
        errors: list[TransportError] = []

        async def call(number: int) -> None:
            with pytest.raises(TransportError) as caught:
                await mp.alias(f"new{number}", "old", timeout=0.5)
            errors.append(caught.value)

        # More calls than connections.
        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(call, number)
    unsent = [error for error in errors if "was free within 0.5 s" in str(error)]
    assert unsent
    assert not any(error.uncertain for error in unsent)
    assert all("it was not applied" in str(error) for error in unsent)
    assert sum(error.uncertain for error in errors) <= it.peer.seen < len(errors)


@pytest.mark.anyio
@pytest.mark.parametrize("is_open", [True, False], ids=["pool_open", "pool_not_open"])
async def test_g2_request_without_a_file_descriptor_has_sent_nothing(
    is_open: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    phase = Phase("no descriptor")
    async with setting(phase, monkeypatch, tmp_path) as it, it.make_client() as mp:
        if is_open:
            await mp.alias("newest", "old")
            await mp.start()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as probe:
            free = probe.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        try:
            async with anyio.create_task_group() as tasks:
                # More calls than open connections.
                errors: list[TransportError] = []

                async def call(number: int) -> None:
                    try:
                        await mp.alias(f"new{number}", "old")
                    except TransportError as error:
                        errors.append(error)

                for number in range(3):
                    tasks.start_soon(call, number)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert errors
    for error in errors:
        assert not error.uncertain
        # The resolver of glibc may report EBUSY if it cannot open its files.
        assert re.search("Too many open files|Device or resource busy", str(error))
