"""The verbs that join ids: awaited, because merges are irreversible and the caller acts on the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .._encoding.validation import check_id, is_uuid4
from .._model.config import IdMerge
from .._model.credentials import as_secret
from .._model.errors import IdentityError, MixpanelException, without_traceback
from .._model.records import RecordKind
from .._runtime.ids import uuid4_text
from .base import ClientBase, Meta

_NOT_AN_ANON_ID: Final = (
    "must be a UUID of version 4 with dashes, such as str(uuid.uuid4()); Mixpanel silently ignores others. "
    "To join an id of another form, use alias or merge"
)


class IdentityMethods(ClientBase):
    """Mixed into the client."""

    @property
    def id_merge(self) -> IdMerge | None:
        """How the project joins ids, as the client was told; None if it was not."""
        return self._options.id_merge

    def new_device_id(self) -> str:
        """A fresh id for an anonymous visitor: a UUID of version 4, the only form that `identify` takes."""
        return uuid4_text(self._environment.new_id())

    async def alias(self, alias_id: str, original: str, meta: Meta = None) -> None:
        """Let `alias_id` mean the person known as `original`, from now on and (Original ID Merge) for the past.

        Args:
            alias_id: the new id. It can be an alias once only.
            original: the id that Mixpanel knows already.
            meta: merged beside `event`.

        Raises:
            IdentityError: the project's `id_merge` ignores aliases, or both ids are the same.
            ValidationError: an id is blank or a placeholder that Mixpanel refuses.
            ApiError, TransportError: it did not succeed; `attempts`, `status` and `endpoint` tell how.
            ClientClosedError: after `aclose()`.
        """
        self._check_identity("alias", {"alias_id": alias_id, "original": original}, IdMerge.SIMPLIFIED)
        properties = {"distinct_id": original, "alias": alias_id}
        await self._direct_sender.send(RecordKind.IDENTITY, self._message("$create_alias", properties, meta))

    async def merge(
        self,
        api_key: str | None = None,  # noqa: ARG002  the official SDK's first argument
        distinct_id1: str | None = None,
        distinct_id2: str | None = None,
        meta: Meta = None,
        api_secret: str | None = None,
    ) -> None:
        """Make one person of two ids. It cannot be undone.

        Args:
            api_key: taken for the official SDK's sake and not sent.
            distinct_id1: one id.
            distinct_id2: the other.
            meta: merged beside `event`.
            api_secret: the project's secret, if the client has no service account. Without either, the token signs
                the request, which Mixpanel documents for imports and not for merges.

        Raises:
            ConfigurationError: `api_secret` cannot be sent.
            IdentityError, ValidationError, ApiError, TransportError, ClientClosedError: as `alias` does.
        """
        try:
            secret = as_secret(api_secret)
        finally:
            # What reports errors may show the locals of this frame.
            del api_secret
        ids = {"distinct_id1": distinct_id1, "distinct_id2": distinct_id2}
        self._check_identity("merge", ids, IdMerge.SIMPLIFIED, IdMerge.LEGACY)
        properties = {"$distinct_ids": [distinct_id1, distinct_id2]}
        await self._direct_sender.send(RecordKind.IMPORTS, self._message("$merge", properties, meta), secret=secret)

    async def identify(self, identified_id: str, anon_id: str, meta: Meta = None) -> None:
        """Join the anonymous visitor `anon_id` to the person `identified_id`.

        Args:
            identified_id: the user's id.
            anon_id: a UUID of version 4 with dashes. Mixpanel takes any other form and silently ignores it.
            meta: merged beside `event`.

        Raises:
            IdentityError: the project's `id_merge` ignores it, or `anon_id` is one that Mixpanel would ignore.
            ValidationError, ApiError, TransportError, ClientClosedError: as `alias` does.
        """
        ids = {"identified_id": identified_id, "anon_id": anon_id}
        self._check_identity("identify", ids, IdMerge.SIMPLIFIED, IdMerge.LEGACY)
        if not is_uuid4(anon_id):
            raise IdentityError("anon_id", _NOT_AN_ANON_ID)
        properties = {"$identified_id": identified_id, "$anon_id": anon_id}
        await self._direct_sender.send(RecordKind.IDENTITY, self._message("$identify", properties, meta))

    def _message(self, event_name: str, properties: dict[str, Any], meta: Meta) -> bytes:
        try:
            return self._encoder.encode_identity(event_name, properties, meta)
        except MixpanelException as error:
            raise without_traceback(error) from None

    def _check_identity(self, call: str, ids: Mapping[str, object], *without: IdMerge) -> None:
        for name, value in ids.items():
            check_id(value, name)
        if self._options.id_merge in without:
            advice = (
                "; track an event with user_id and device_id instead"
                if self._options.id_merge is IdMerge.SIMPLIFIED
                else "; use alias instead"
            )
            raise IdentityError(call, f"does nothing in a project with {self._options.id_merge.value} ID merge{advice}")
        (first, value), (second, other) = ids.items()
        if value == other:
            raise IdentityError(first, f"is the same id as {second}; there is nothing to join")
