"""Identity call and link of a device whose visitor signs in."""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, Protocol

from .._encoding.validation import is_anonymous_id
from .._model.config import IdMerge
from .._model.errors import ConfigurationError

if TYPE_CHECKING:
    from .client import AsyncMixpanel

_DEVICE_PREFIX: Final = "$device:"
_LINK_BYTES: Final = 12


class IdentityCall(Protocol):
    """Call of `alias` or `identify` with the ids bound."""

    def __call__(self, *, deferred: bool = False, timeout: float | None = None) -> Awaitable[None]: ...


def identity_call(client: AsyncMixpanel, user_id: str, device_id: str, *, is_new: bool) -> IdentityCall | None:
    """Return the identity call of `sign_in` for the project's ID Merge system; None if it needs none.

    Args:
        client: the client.
        user_id: id of the user.
        device_id: anonymous id of the device.
        is_new: whether the user has just signed up.

    Raises:
        ConfigurationError: if the client does not know the ID Merge system.
    """
    system = client.id_merge
    if not client.enabled:
        return None
    if system is None:
        raise ConfigurationError("sign_in needs the project's ID Merge system; create the client with id_merge=")
    if system is IdMerge.SIMPLIFIED:
        return None
    if system is IdMerge.ORIGINAL and is_anonymous_id(device_id):
        return partial(client.identify, user_id, device_id)
    if system is IdMerge.LEGACY and is_new:
        # The new id points to the device's id, so its events become the user's. Possible once per user id.
        return partial(client.alias, user_id, device_id)
    # For an existing user the device's id becomes the alias: data under the user's id must stay the user's.
    return partial(client.alias, device_id, user_id)


def link_to(system: IdMerge | None, device_id: str, user_id: str) -> str:
    """Return the link of a device and a user, which reveals neither.

    Args:
        system: the project's ID Merge system. Only in Simplified are both forms of a device's id the same id.
        device_id: anonymous id of the device.
        user_id: id of the user.
    """
    device = device_id.removeprefix(_DEVICE_PREFIX) if system is IdMerge.SIMPLIFIED else device_id
    # The device is the key, so the links of one user differ between browsers.
    key = blake2b(device.encode()).digest()
    return blake2b(user_id.encode(), key=key, digest_size=_LINK_BYTES).hexdigest()


def without_prefix(device_id: str | None) -> str | None:
    """Return the value of `$device_id`, in which Mixpanel wants no prefix. A value of another type is refused later."""
    return device_id.removeprefix(_DEVICE_PREFIX) if isinstance(device_id, str) else device_id
