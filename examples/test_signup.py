"""The sign-up of the FastAPI app, tested against a Mixpanel of the test's own: no account, no network, no socket.

    pip install "mixpanel-async[emulator,fastapi]" pytest pytest-asyncio
    pytest examples/test_signup.py

The fixtures come with the package. `mixpanel_emulator` is an empty project that joins ids as Mixpanel does, and
`mixpanel_client` an ordinary client that talks to it; the app takes it in place of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fastapi_app
import httpx
import pytest

from mixpanel_async import AsyncMixpanel, IdMerge
from mixpanel_async.emulator import Emulator
from mixpanel_async.testing import assert_not_tracked, assert_profile, assert_same_person, assert_tracked

# As the app's project has it.
pytestmark = [pytest.mark.asyncio, pytest.mark.mixpanel(id_merge="original")]


@pytest.fixture
def mixpanel_client_options() -> dict[str, Any]:
    return {"id_merge": IdMerge.ORIGINAL}


@pytest.fixture
def browser(mixpanel_client: AsyncMixpanel) -> Iterator[httpx.AsyncClient]:
    fastapi_app.accounts.clear()
    with fastapi_app.mixpanel.using(mixpanel_client):
        yield httpx.AsyncClient(transport=httpx.ASGITransport(fastapi_app.app), base_url="http://shop.example")


async def test_a_visitor_becomes_a_user(
    browser: httpx.AsyncClient, mixpanel_client: AsyncMixpanel, mixpanel_emulator: Emulator
) -> None:
    await browser.get("/")
    await browser.post("/signup", json={"email": "maya@example.com"})
    await mixpanel_client.flush()

    assert_tracked(mixpanel_emulator, "Signed up", distinct_id="maya@example.com", properties={"plan": "free"})
    assert_profile(mixpanel_emulator, "maya@example.com", {"$email": "maya@example.com"})
    # What the visitor did before belongs to the user now.
    assert_same_person(mixpanel_emulator, "maya@example.com", browser.cookies["mp_visitor"])
    assert_tracked(mixpanel_emulator, "Page viewed", distinct_id="maya@example.com")


async def test_a_visitor_who_comes_back_is_the_same(
    browser: httpx.AsyncClient, mixpanel_client: AsyncMixpanel, mixpanel_emulator: Emulator
) -> None:
    for _ in range(2):
        await browser.get("/")
    await mixpanel_client.flush()
    assert_tracked(mixpanel_emulator, "Page viewed", distinct_id=browser.cookies["mp_visitor"], times=2)


async def test_without_mixpanel_there_is_no_sign_up(
    browser: httpx.AsyncClient, mixpanel_client: AsyncMixpanel, mixpanel_emulator: Emulator
) -> None:
    await browser.get("/")
    mixpanel_emulator.fail_next(status=503, times=3)
    response = await browser.post("/signup", json={"email": "maya@example.com"})
    await mixpanel_client.flush()

    assert response.status_code == 503
    assert_not_tracked(mixpanel_emulator, "Signed up")
