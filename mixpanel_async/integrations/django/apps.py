"""App configuration: Django imports it for `INSTALLED_APPS`."""

from __future__ import annotations

from django.apps import AppConfig
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.core.checks import register
from django.core.signals import request_finished, setting_changed

from ._checks import check_settings
from ._host import HOST
from ._middleware import sign_in, sign_out


class MixpanelConfig(AppConfig):
    """App `mixpanel_async`: system checks and receivers of signals."""

    name = "mixpanel_async.integrations.django"
    label = "mixpanel_async"
    verbose_name = "Mixpanel"

    def ready(self) -> None:
        """Register the system check and the receivers."""
        register(check_settings)
        user_logged_in.connect(sign_in, dispatch_uid=f"{self.label}.sign_in")
        user_logged_out.connect(sign_out, dispatch_uid=f"{self.label}.sign_out")
        request_finished.connect(_on_request_finished, dispatch_uid=f"{self.label}.request_finished")
        setting_changed.connect(_on_setting_changed, dispatch_uid=f"{self.label}.setting_changed")


def _on_request_finished(sender: object, **_: object) -> None:  # noqa: ARG001  of a signal
    HOST.on_request_finished()


def _on_setting_changed(sender: object, setting: str, **_: object) -> None:  # noqa: ARG001  of a signal
    """Let tests override the setting: the next use makes a client with the settings of that time."""
    if setting == "MIXPANEL":
        HOST.close()
