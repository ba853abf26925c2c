"""Tests of the FastAPI app's sign-up against an in-process emulator: no account, no network, no socket.

    pip install -e ".[emulator,fastapi]" pytest pytest-asyncio     # in a clone of the repository
    pytest examples/test_signup.py

The package provides the fixtures. `mixpanel_emulator` is an empty project that joins ids like Mixpanel.
`mixpanel_client` is a normal client that talks to it and replaces the client of the app.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fastapi_app
import httpx
import pytest

from mixpanel_async import AsyncMixpanel, IdMerge
from mixpanel_async.emulator import Emulator
from mixpanel_async.testing import assert_profile, assert_same_person, assert_tracked

# The ID merge system of the app's project.
pytestmark = [pytest.mark.asyncio, pytest.mark.mixpanel(id_merge="original")]


@pytest.fixture
def mixpanel_client_options() -> dict[str, Any]:
    return {"id_merge": IdMerge.ORIGINAL}


@pytest.fixture
def browser(mixpanel_client: AsyncMixpanel) -> Iterator[httpx.AsyncClient]:
    fastapi_app.accounts.clear()
    with fastapi_app.mixpanel.using(mixpanel_client):
        yield httpx.AsyncClient(transport=httpx.ASGITransport(fastapi_app.app), base_url="http://shop.example")


async def test_sign_up_joins_the_visitor_to_the_user(
    browser: httpx.AsyncClient, mixpanel_client: AsyncMixpanel, mixpanel_emulator: Emulator
) -> None:
    await browser.get("/")
    await browser.post("/signup", json={"email": "maya@example.com"})
    await mixpanel_client.flush()

    assert_tracked(mixpanel_emulator, "Signed up", distinct_id="user-1", properties={"plan": "free"})
    assert_profile(mixpanel_emulator, "user-1", {"$email": "maya@example.com"})
    # Events before the sign-up belong to the user now.
    assert_same_person(mixpanel_emulator, "user-1", browser.cookies["mp_visitor"])
    assert_tracked(mixpanel_emulator, "Page viewed", distinct_id="user-1")


async def test_returning_visitor_keeps_the_same_id(
    browser: httpx.AsyncClient, mixpanel_client: AsyncMixpanel, mixpanel_emulator: Emulator
) -> None:
    for _ in range(2):
        await browser.get("/")
    await mixpanel_client.flush()
    assert_tracked(mixpanel_emulator, "Page viewed", distinct_id=browser.cookies["mp_visitor"], times=2)


async def test_sign_up_succeeds_while_mixpanel_is_down(
    browser: httpx.AsyncClient, mixpanel_client: AsyncMixpanel, mixpanel_emulator: Emulator
) -> None:
    await browser.get("/")
    # The app's `sign_in` makes three attempts. Then its event waits in the queue.
    mixpanel_emulator.fail_next(status=503, times=3)
    response = await browser.post("/signup", json={"email": "maya@example.com"})
    await mixpanel_client.flush()

    assert response.status_code == 201
    assert_same_person(mixpanel_emulator, "user-1", browser.cookies["mp_visitor"])
    assert_tracked(mixpanel_emulator, "Signed up")
