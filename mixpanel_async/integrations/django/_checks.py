"""System checks of the setting `MIXPANEL` and of the middleware."""

from __future__ import annotations

from typing import Final

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004  Django's name
from django.http import HttpRequest

from mixpanel_async import ConfigurationError

from .._base import BaseIntegration
from ._settings import read_options

_MIDDLEWARE: Final = "mixpanel_async.integrations.django.MixpanelMiddleware"


def check_settings(app_configs: object = None, **_options: object) -> list[CheckMessage]:  # noqa: ARG001  of a check
    """Return what is wrong with the settings."""
    messages: list[CheckMessage] = []
    try:
        options = read_options()
        # The constructor checks the values.
        BaseIntegration[HttpRequest](options.make, **options.common)
        client = options.make()
        if client.id_merge is None and client.enabled:
            hint = "Set MIXPANEL['ID_MERGE'] as shown in the settings of the Mixpanel project."
            messages.append(Error("The Mixpanel client needs the project's ID Merge system.", hint, id=_id("E002")))
    except ConfigurationError as error:
        if str(error).startswith("MIXPANEL_TOKEN"):
            # Not an error: a developer's machine and a build without a token must still run commands.
            hint = "Set MIXPANEL['TOKEN'] or the environment variable MIXPANEL_TOKEN."
            messages.append(Warning("Nothing is tracked, because there is no Mixpanel token.", hint, id=_id("W001")))
        else:
            messages.append(Error(str(error), "Correct the setting MIXPANEL.", id=_id("E001")))
    if _MIDDLEWARE not in settings.MIDDLEWARE:
        hint = f"Add {_MIDDLEWARE!r} to MIDDLEWARE."
        messages.append(Warning("Requests have no `mixpanel`: the middleware is missing.", hint, id=_id("W002")))
    return messages


def _id(number: str) -> str:
    return f"mixpanel_async.{number}"
