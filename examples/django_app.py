"""Django project in one file, with accounts. Mixpanel sees each visitor as the same person before and after sign-in.

    pip install ".[django]" uvicorn gunicorn     # in a clone of the repository
    export MIXPANEL_TOKEN=... MIXPANEL_ID_MERGE=simplified
    python examples/django_app.py migrate
    python examples/django_app.py runserver                     # development
    uvicorn --app-dir examples django_app:asgi                  # ASGI
    gunicorn --chdir examples --threads 4 django_app:wsgi       # WSGI
    python examples/django_app.py report                        # a management command that tracks
    curl -c jar -b jar localhost:8000/                          # an anonymous page view
    curl -c jar -b jar localhost:8000/signup -d email=maya@example.com -d password=secret     # or /login
    curl -c jar -b jar -X POST localhost:8000/logout

Tracking is queued: it costs the view microseconds and cannot fail the request. Django's login and logout sign the
visitor in and out.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import django
from django.conf import settings
from django.contrib import auth
from django.core.management import execute_from_command_line
from django.core.management.base import BaseCommand
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

settings.configure(
    SECRET_KEY="for development only",  # noqa: S106  an example
    DEBUG=True,
    ALLOWED_HOSTS=["127.0.0.1", "localhost", "testserver"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "mixpanel_async.integrations.django",
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "mixpanel_async.integrations.django.MixpanelMiddleware",
    ],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ.get("DATABASE", "django.db")}},
    SESSION_ENGINE="django.contrib.sessions.backends.db",
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    USE_TZ=True,
    # The token comes from the environment. The user's name is the id; without USER_ID it would be the primary key.
    MIXPANEL={
        "ID_MERGE": os.environ.get("MIXPANEL_ID_MERGE", "simplified"),
        "USER_ID": lambda user: user.get_username(),
    },
)
django.setup()

# Import after the settings.
from django.contrib.auth.models import User  # noqa: E402

from mixpanel_async.integrations.django import get_asgi_application, mixpanel  # noqa: E402


def home(request: Any) -> HttpResponse:
    request.mixpanel.track("Page viewed", {"page": "/"})
    return JsonResponse({"hello": request.mixpanel.user_id or "visitor"})


async def async_home(request: Any) -> HttpResponse:
    mp = await request.mixpanel
    await mp.track("Page viewed", {"page": "/async"})
    return JsonResponse({"hello": mp.user_id or "visitor"})


def sign_up(request: Any) -> HttpResponse:
    email = request.POST["email"]
    if User.objects.filter(username=email).exists():
        return JsonResponse({"error": "this account already exists"}, status=409)
    user = User.objects.create_user(email, email, request.POST["password"])
    # Only the app knows that the account is new. Django's login finds the visitor signed in.
    request.mixpanel.sign_in(email, "Signed up", {"plan": "free"}, is_new=True)
    request.mixpanel.people_set({"$email": email})
    auth.login(request, user)
    return JsonResponse({"account": email}, status=201)


def log_in(request: HttpRequest) -> HttpResponse:
    user = auth.authenticate(request, username=request.POST["email"], password=request.POST["password"])
    if user is None:
        return JsonResponse({"error": "unknown account"}, status=403)
    auth.login(request, user)
    return JsonResponse({"account": user.get_username()})


def log_out(request: Any) -> HttpResponse:
    request.mixpanel.track("Signed out")
    auth.logout(request)
    return HttpResponse(status=204)


urlpatterns = [
    path("", home),
    path("async", async_home),
    path("signup", sign_up),
    path("login", log_in),
    path("logout", log_out),
]
asgi = get_asgi_application()
wsgi = get_wsgi_application()


class Report(BaseCommand):
    """In a project, this is `management/commands/report.py`."""

    def handle(self, *_arguments: Any, **_options: Any) -> None:
        for number in range(24):
            mixpanel.track(f"user-{number}", "Report sent")


if __name__ == "__main__":
    if sys.argv[1:] == ["report"]:
        Report().run_from_argv(sys.argv)
    else:
        execute_from_command_line(sys.argv)
