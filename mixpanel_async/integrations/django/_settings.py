"""The setting `MIXPANEL`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final

from django.conf import settings
from django.utils.module_loading import import_string

from mixpanel_async import AsyncMixpanel, ConfigurationError, IdMerge

from .._visitors import CookiePolicy

_SETTING: Final = "MIXPANEL"
_CLIENT_OPTIONS: Final = tuple(
    name
    for name, parameter in inspect.signature(AsyncMixpanel).parameters.items()
    # Catch-alls reject arguments that other SDKs have.
    if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
)

# Options of all integrations that are no functions. Their constructor checks the values.
_COMMON_OPTIONS: Final = ("cookie", "trusted_proxies", "geolocate", "track_requests", "sign_in_timeout")
_KEYS: Final = tuple(
    sorted(
        name.upper()
        for name in ("client", "user_id", "consent", "sign_in_on_login", *_COMMON_OPTIONS, *_CLIENT_OPTIONS)
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DjangoOptions:
    """Values of the setting `MIXPANEL`.

    Args:
        make: function that creates the client.
        user_id: function from the signed-in user to the id; plain or `async`. None takes the primary key.
        consent: function from the request to whether its visitor may be tracked; plain or `async`.
        sign_in_on_login: whether Django's login and logout signals sign the visitor in and out.
        common: options that all integrations have, by name; those that are not set are missing.
    """

    make: Callable[[], AsyncMixpanel]
    user_id: Callable[[Any], Any] | None = None
    consent: Callable[[Any], Any] | None = None
    sign_in_on_login: bool = True
    common: Mapping[str, Any] = field(default_factory=dict)


def read_options() -> DjangoOptions:
    """Return the options of the setting `MIXPANEL`. It creates no client, and the integration checks common options.

    Raises:
        ConfigurationError: if the setting has an unknown key or an invalid value.
    """
    given = getattr(settings, _SETTING, {})
    if not isinstance(given, Mapping):
        raise ConfigurationError(f"the setting {_SETTING} must be a dict, not {type(given).__name__}")
    for key in given:
        if key not in _KEYS:
            near = get_close_matches(str(key).upper(), _KEYS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(_KEYS)}"
            raise ConfigurationError(f"the setting {_SETTING} has the unknown key {key!r}{hint}")
    for key in ("SIGN_IN_ON_LOGIN", "GEOLOCATE"):
        if not isinstance(given.get(key, True), bool):
            raise ConfigurationError(f"{_SETTING}[{key!r}] must be True or False, not {given[key]!r}")
    common = {name: given[name.upper()] for name in _COMMON_OPTIONS if name.upper() in given}
    if "cookie" in common:
        common["cookie"] = _cookie(common["cookie"])
    client = {name: given[name.upper()] for name in _CLIENT_OPTIONS if name.upper() in given}
    return DjangoOptions(
        make=_client_factory(given.get("CLIENT"), client),
        user_id=_optional_function("USER_ID", given.get("USER_ID")),
        consent=_optional_function("CONSENT", given.get("CONSENT")),
        sign_in_on_login=given.get("SIGN_IN_ON_LOGIN", True),
        common=common,
    )


def _client_factory(make: object, options: dict[str, Any]) -> Callable[[], AsyncMixpanel]:
    if make is not None:
        if options:
            keys = ", ".join(name.upper() for name in options)
            raise ConfigurationError(f"{_SETTING}['CLIENT'] creates the client, so remove {keys} from {_SETTING}")
        function: Callable[[], AsyncMixpanel] = _function("CLIENT", make)
        return function
    if isinstance(options.get("id_merge"), str):
        try:
            options["id_merge"] = IdMerge(options["id_merge"])
        except ValueError:
            raise ConfigurationError(
                f"{_SETTING}['ID_MERGE'] must be {', '.join(one.value for one in IdMerge)}, not {options['id_merge']!r}"
            ) from None
    return lambda: AsyncMixpanel.from_env(**options)


def _function(key: str, value: object) -> Callable[..., Any]:
    """Return a function that is given as such or as a dotted path."""
    if isinstance(value, str):
        try:
            value = import_string(value)
        except ImportError as error:
            raise ConfigurationError(f"{_SETTING}[{key!r}] cannot be imported: {error}") from None
    if not callable(value):
        raise ConfigurationError(f"{_SETTING}[{key!r}] must be a function or its dotted path, not {value!r}")
    return value


def _optional_function(key: str, value: object) -> Callable[..., Any] | None:
    return None if value is None else _function(key, value)


def _cookie(value: object) -> CookiePolicy:
    if isinstance(value, CookiePolicy):
        return value
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{_SETTING}['COOKIE'] must be a dict or a CookiePolicy, not {type(value).__name__}")
    try:
        return CookiePolicy(**{str(name).lower(): one for name, one in value.items()})
    except TypeError as error:
        raise ConfigurationError(f"{_SETTING}['COOKIE']: {error}") from None
