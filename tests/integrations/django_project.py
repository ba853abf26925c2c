"""Django project of the tests. Importing it configures Django for the process."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import django
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib import auth
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import include, path

from mixpanel_async.integrations.django import current_mixpanel

FOLDER = tempfile.TemporaryDirectory(prefix="mixpanel-django-")

settings.configure(
    SECRET_KEY="secret",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "mixpanel_async.integrations.django",
    ],
    MIDDLEWARE=[
        "mixpanel_async.integrations.django.MixpanelMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": Path(FOLDER.name) / "db"}},
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    USE_TZ=True,
)
django.setup()

from django.contrib.auth.models import User  # noqa: E402

# Django 4.2 has only the sync functions.
alogin: Any = getattr(auth, "alogin", None) or sync_to_async(auth.login)
alogout: Any = getattr(auth, "alogout", None) or sync_to_async(auth.logout)


def create_user(name: str) -> User:
    user: User = User.objects.create_user(name)
    return user


def get_user(name: str) -> User:
    user: User = User.objects.get(username=name)
    return user


def username(user: Any) -> str:
    return str(user.get_username())


def unusable_id(user: Any) -> Any:
    return [user]


def consents(request: HttpRequest) -> bool:
    # A query: Django refuses it in the event loop.
    User.objects.count()
    return request.headers.get("X-Consent", "yes") == "yes"


async def consents_async(request: HttpRequest) -> bool:
    await User.objects.acount()
    return request.headers.get("X-Consent", "yes") == "yes"


def page(request: Any, item: int = 0) -> HttpResponse:
    request.mixpanel.track("Page viewed", {"item": item})
    assert current_mixpanel() is request.mixpanel
    return JsonResponse({"user": request.mixpanel.user_id, "device": request.mixpanel.device_id})


async def async_page(request: Any, item: int = 0) -> HttpResponse:
    await request.mixpanel.track("Page viewed", {"item": item})
    assert current_mixpanel() is request.mixpanel
    mp = await request.mixpanel
    return JsonResponse({"user": mp.user_id, "device": mp.device_id})


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("untouched")


async def async_plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("untouched")


def login(request: Any, name: str) -> HttpResponse:
    auth.login(request, User.objects.get(username=name))
    return JsonResponse({"device": request.mixpanel.device_id})


async def async_login(request: Any, name: str) -> HttpResponse:
    await alogin(request, await User.objects.aget(username=name))
    return JsonResponse({"device": (await request.mixpanel).device_id})


def sign_up(request: Any, name: str) -> HttpResponse:
    request.mixpanel.sign_in(name, "Signed up", is_new=True)
    request.mixpanel.people_set({"plan": "free"})
    auth.login(request, User.objects.get(username=name))
    return HttpResponse()


async def async_sign_up(request: Any, name: str) -> HttpResponse:
    await request.mixpanel.sign_in(name, "Signed up", is_new=True)
    await request.mixpanel.people_set({"plan": "free"})
    await alogin(request, await User.objects.aget(username=name))
    return HttpResponse()


def logout(request: Any) -> HttpResponse:
    request.mixpanel.track("Leaving")
    auth.logout(request)
    return JsonResponse({"device": request.mixpanel.device_id})


async def async_logout(request: Any) -> HttpResponse:
    await request.mixpanel.track("Leaving")
    await alogout(request)
    return JsonResponse({"device": (await request.mixpanel).device_id})


def breaks(request: Any) -> HttpResponse:
    request.mixpanel.track("About to break")
    raise RuntimeError("broken")


async def async_breaks(request: Any) -> HttpResponse:
    await request.mixpanel.track("About to break")
    raise RuntimeError("broken")


def stream(request: Any) -> StreamingHttpResponse:
    request.mixpanel.track("Stream begun")
    return StreamingHttpResponse(iter([b"one,", b"two"]))


async def async_stream(request: Any) -> StreamingHttpResponse:
    async def parts() -> Any:
        yield b"one,"
        yield b"two"

    await request.mixpanel.track("Stream begun")
    return StreamingHttpResponse(parts())


async def by_token(request: Any) -> HttpResponse:
    request.user = await User.objects.aget(username=request.headers["X-Token"])
    await request.mixpanel.track("Page viewed")
    return HttpResponse()


def cached(request: Any) -> HttpResponse:
    request.mixpanel.track("Page viewed")
    return HttpResponse(headers={"Cache-Control": request.GET["cache"]})


async def async_cached(request: Any) -> HttpResponse:
    await request.mixpanel.track("Page viewed")
    return HttpResponse(headers={"Cache-Control": request.GET["cache"]})


async def unawaited(request: Any) -> HttpResponse:
    request.mixpanel.track("Invalid", {"property": object()})
    request.mixpanel.track("Not awaited")
    return HttpResponse()


async def too_early(request: Any) -> HttpResponse:
    return HttpResponse(request.mixpanel.user_id)


views = [
    path("", page),
    path("items/<int:item>/", page),
    path("plain", plain),
    path("login/<name>", login),
    path("signup/<name>", sign_up),
    path("logout", logout),
    path("breaks", breaks),
    path("stream", stream),
    path("cached", cached),
]
async_views = [
    path("", async_page),
    path("items/<int:item>/", async_page),
    path("plain", async_plain),
    path("login/<name>", async_login),
    path("signup/<name>", async_sign_up),
    path("logout", async_logout),
    path("breaks", async_breaks),
    path("stream", async_stream),
    path("cached", async_cached),
    path("unawaited", unawaited),
    path("early", too_early),
    path("token", by_token),
]
urlpatterns = [path("sync/", include(views)), path("async/", include(async_views))]
