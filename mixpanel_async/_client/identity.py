"""Methods that join ids.

By default they are awaited: merges are irreversible, and the caller needs the result. With `deferred=True` the identity
event goes into the queue of events, in order with the other records of the person.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .._encoding.validation import check_id, is_anonymous_id
from .._model.config import IdMerge, check_number
from .._model.credentials import Secret, as_secret
from .._model.errors import ClientClosedError, ConfigurationError, IdentityError, MixpanelException, without_traceback
from .._model.records import RecordKind
from .._runtime.ids import uuid4_text
from .base import NO_SECRETS_IN_OUTBOX, ClientBase, Meta
from .identity_events import NOT_AN_ANON_ID, no_effect


class IdentityMethods(ClientBase):
    """Methods of the client that join ids."""

    @property
    def id_merge(self) -> IdMerge | None:
        """The project's ID Merge system, as given to the client; None if it was not given."""
        return self._options.id_merge

    def new_device_id(self) -> str:
        """Return a random id for an anonymous visitor: a UUID v4, a form that `identify` accepts."""
        return uuid4_text(self._environment.new_id())

    async def alias(
        self,
        alias_id: str,
        original: str,
        meta: Meta = None,
        *,
        deferred: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Make `alias_id` another id of the user `original`.

        It applies to later events, and with Original ID Merge to earlier ones too. The call returns when Mixpanel has
        accepted the request.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN", id_merge="original") as mp:
                    visitor = mp.new_device_id()
                    await mp.track(visitor, "Page viewed")
                    await mp.alias("user-1", visitor)


            asyncio.run(main())
            ```

        Args:
            alias_id: the new id. Mixpanel accepts an id as an alias only once.
            original: an id that Mixpanel already knows.
            meta: merged into the message, next to `event`.
            deferred: put the event into the queue and return, so that an outage delays it. It is delivered after the
                events that were tracked before the call, and before the records that are tracked later. If Mixpanel
                refuses it, or a full queue drops it, `on_drop` receives it. Profile updates that were waiting before
                the call may arrive later. It shares a request with events in a client without a service account, else
                with identity events of the same endpoint. While that request is in flight, no other one for events is.
                With an outbox, it is handed over after the events that this client tracked before, and before those
                that it tracks later. Workers send the identity events of all hosts in that order, but events at the
                same time: see `docs/guides/outbox.md`.
            timeout: seconds for all attempts together, 0.001 to 86,400; by default the limit of `identity_retry`.

        Raises:
            IdentityError: if projects with the client's `id_merge` ignore aliases, or both ids are equal.
            ValidationError: if an id is blank or a placeholder that Mixpanel rejects.
            ConfigurationError: if `timeout` is out of bounds.
            ApiError: if Mixpanel responded and did not accept the request.
            TransportError: if no attempt got a response.
            QueueFullError: if the call is deferred and the queue has no room, whatever the `overflow` policy is.
            SpoolError: if the call is deferred, as in `track`.
            ClientClosedError: after `aclose()`.
        """
        if not self._options.enabled:
            return
        self._check_identity("alias", {"alias_id": alias_id, "original": original}, IdMerge.SIMPLIFIED)
        properties = {"distinct_id": original, "alias": alias_id}
        message = self._message("$create_alias", properties, meta)
        await self._send(RecordKind.IDENTITY, message, deferred=deferred, timeout=timeout)

    async def merge(
        self,
        api_key: str | None = None,  # noqa: ARG002  the official SDK's first argument
        distinct_id1: str | None = None,
        distinct_id2: str | None = None,
        meta: Meta = None,
        api_secret: str | None = None,
        *,
        deferred: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Merge two ids into one user. A merge cannot be undone.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN", id_merge="original") as mp:
                    await mp.track("maya@example.com", "Signed in")
                    await mp.track("maya@work.example", "Signed in")
                    await mp.merge(None, "maya@example.com", "maya@work.example")


            asyncio.run(main())
            ```

        Args:
            api_key: ignored. The official SDK has it.
            distinct_id1: first id.
            distinct_id2: second id.
            meta: merged into the message, next to `event`.
            api_secret: the project's secret, if the client has no service account. Without either, the token
                authenticates the request. Mixpanel documents the token for imports, but not for merges. A spool does
                not store it: after a restart, deferred merges use the last secret that was given, or the token.
            deferred: put the event into the queue and return, as in `alias`. A deferred merge is lost if Mixpanel
                refuses its credentials and events do not need them.
            timeout: seconds for all attempts together, 0.001 to 86,400; by default the limit of `identity_retry`.

        Raises:
            IdentityError: if projects with the client's `id_merge` ignore merges, or both ids are equal.
            ValidationError: if an id is blank or a placeholder that Mixpanel rejects.
            ConfigurationError: if `api_secret` cannot be sent, `timeout` is out of bounds, or the call is deferred with
                an `api_secret` in a client with an outbox.
            ApiError: if Mixpanel responded and did not accept the request.
            TransportError: if no attempt got a response.
            QueueFullError: if the call is deferred and the queue has no room, whatever the `overflow` policy is.
            SpoolError: if the call is deferred, as in `track`.
            ClientClosedError: after `aclose()`.
        """
        if not self._options.enabled:
            return
        try:
            secret = as_secret(api_secret)
        finally:
            # Error reporters may show the locals of this frame.
            del api_secret
        if deferred and secret is not None and self._options.has_outbox:
            raise ConfigurationError(f"api_secret {NO_SECRETS_IN_OUTBOX}")
        ids = {"distinct_id1": distinct_id1, "distinct_id2": distinct_id2}
        self._check_identity("merge", ids, IdMerge.SIMPLIFIED, IdMerge.LEGACY)
        properties = {"$distinct_ids": [distinct_id1, distinct_id2]}
        message = self._message("$merge", properties, meta)
        if deferred and secret is not None:
            self._events.use_merge_secret(secret)
        await self._send(RecordKind.IMPORTS, message, secret=secret, deferred=deferred, timeout=timeout)

    async def identify(
        self,
        identified_id: str,
        anon_id: str,
        meta: Meta = None,
        *,
        deferred: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Join the anonymous visitor `anon_id` to the user `identified_id`.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN", id_merge="original") as mp:
                    visitor = mp.new_device_id()
                    await mp.track(visitor, "Page viewed")
                    await mp.identify("user-1", visitor)


            asyncio.run(main())
            ```

        Args:
            identified_id: the user's id.
            anon_id: the `distinct_id` that the visitor's events have: a UUID, or the id of Mixpanel's browser or mobile
                SDK, with the prefix `$device:` if their events have it. Mixpanel takes five groups of hexadecimal
                digits joined by dashes, and silently ignores any other form.
            meta: merged into the message, next to `event`.
            deferred: put the event into the queue and return, as in `alias`.
            timeout: seconds for all attempts together, 0.001 to 86,400; by default the limit of `identity_retry`.

        Raises:
            IdentityError: if projects with the client's `id_merge` ignore the call, if Mixpanel would ignore `anon_id`,
                or if both ids are equal.
            ValidationError: if an id is blank or a placeholder that Mixpanel rejects.
            ConfigurationError: if `timeout` is out of bounds.
            ApiError: if Mixpanel responded and did not accept the request.
            TransportError: if no attempt got a response.
            QueueFullError: if the call is deferred and the queue has no room, whatever the `overflow` policy is.
            SpoolError: if the call is deferred, as in `track`.
            ClientClosedError: after `aclose()`.
        """
        if not self._options.enabled:
            return
        ids = {"identified_id": identified_id, "anon_id": anon_id}
        self._check_identity("identify", ids, IdMerge.SIMPLIFIED, IdMerge.LEGACY)
        if not is_anonymous_id(anon_id):
            raise IdentityError("anon_id", NOT_AN_ANON_ID)
        properties = {"$identified_id": identified_id, "$anon_id": anon_id}
        message = self._message("$identify", properties, meta)
        await self._send(RecordKind.IDENTITY, message, deferred=deferred, timeout=timeout)

    async def _send(
        self,
        kind: RecordKind,
        message: bytes,
        *,
        secret: Secret | None = None,
        deferred: bool,
        timeout: float | None,
    ) -> None:
        """Put an identity event into the queue of events, or send it and wait until Mixpanel has accepted it."""
        if timeout is not None:
            check_number("timeout", timeout, minimum=0.001, maximum=86_400.0)
        if deferred:
            # No later event would show that two ids were not joined, so a full queue must not drop it in silence.
            await self._sender.enqueue(self._events, message, self._options.batching.wait_timeout, must_fit=True)
            self._queue.count_identity("deferred")
            return
        try:
            await self._direct_sender.send(kind, message, secret=secret, timeout=timeout)
        except ClientClosedError:
            raise
        except MixpanelException:
            self._queue.count_identity("failed")
            raise
        self._queue.count_identity("succeeded")

    def _message(self, event_name: str, properties: dict[str, Any], meta: Meta) -> bytes:
        try:
            return self._encoder.encode_identity(event_name, properties, meta)
        except MixpanelException as error:
            raise without_traceback(error) from None

    def _check_identity(self, call: str, ids: Mapping[str, object], *unsupported: IdMerge) -> None:
        """Reject invalid or equal ids, and a call that the project's ID Merge system ignores."""
        for name, value in ids.items():
            check_id(value, name)
        id_merge = self._options.id_merge
        if id_merge is not None and id_merge in unsupported:
            raise IdentityError(call, no_effect(id_merge))
        (name, value), (other_name, other) = ids.items()
        if value == other:
            raise IdentityError(name, f"is equal to {other_name}; pass two different ids")
