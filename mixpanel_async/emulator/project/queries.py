"""Requests to read data, and their parameters.

Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

import orjson

from .access import Access
from .responses import EmulatorResponse, error_response
from .where import Where, WhereError, parse_where

_MAX_FIELDS: Final = 100


class InvalidQueryError(Exception):
    """The query cannot be answered. The message states the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRequest:
    """Request to read data.

    Args:
        path: path of the endpoint.
        authorization: value of the header; may be empty.
        parameters: parameters of the URL and of the body.
    """

    path: str
    authorization: str
    parameters: Mapping[str, str]

    def authorization_error(self, access: Access) -> EmulatorResponse | None:
        """Return the response to a request with wrong credentials; None if they are right."""
        reason = self.refusal(access)
        return error_response(self.path, 401, reason=reason) if reason else None

    def refusal(self, access: Access) -> str:
        """Return why the credentials are wrong; empty if they are right."""
        project_id = self.parameters.get("project_id")
        if access.may_read(self.authorization, project_id):
            return ""
        return f"refused: {access.read_refusal(self.authorization, project_id)}"


def body_fields(body: bytes) -> dict[str, str]:
    """Return the parameters in the body of a query, which is a form or a JSON object.

    Args:
        body: the body; may be empty.

    Raises:
        InvalidQueryError: if the body has too many fields or is neither.
    """
    if not body.lstrip().startswith(b"{"):
        try:
            return dict(parse_qsl(body.decode("utf-8", "replace"), max_num_fields=_MAX_FIELDS))
        except ValueError:
            raise InvalidQueryError("form has too many fields") from None
    try:
        fields = orjson.loads(body)
        if len(fields) > _MAX_FIELDS:
            raise InvalidQueryError("body has too many fields")
        return {
            name: value if isinstance(value, str) else orjson.dumps(value).decode()
            for name, value in fields.items()
            if value is not None
        }
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        # orjson reads deeper values than it writes.
        raise InvalidQueryError("body is not valid JSON, or too deep") from None


def where_parameter(parameters: Mapping[str, str], *names: str) -> Where | None:
    """Return the expression that selects records, from the first of these parameters that is given.

    Raises:
        InvalidQueryError: if the expression is malformed or not supported.
    """
    text = next((parameters[name] for name in names if parameters.get(name)), None)
    if text is None:
        return None
    try:
        return parse_where(text)
    except WhereError as error:
        raise InvalidQueryError(str(error)) from None


def string_list(name: str, text: str) -> list[str]:
    """Return the value of a parameter that is a JSON list of strings.

    Raises:
        InvalidQueryError: if it is not.
    """
    try:
        items = orjson.loads(text)
    except orjson.JSONDecodeError:
        items = None
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise InvalidQueryError(f"{name} must be a JSON list of strings")
    return items


def integer(parameters: Mapping[str, str], name: str, default: int | None, minimum: int, maximum: int) -> int | None:
    """Return the value of a parameter that is a whole number, or the default if it is absent or empty.

    Raises:
        InvalidQueryError: if it is not a number or out of bounds.
    """
    text = parameters.get(name)
    if text is None or text == "":
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and minimum <= int(text) <= maximum):
        raise InvalidQueryError(f"{name} must be a whole number from {minimum} to {maximum}")
    return int(text)


def reject_unsupported(parameters: Mapping[str, str], *names: str) -> None:
    """Refuse parameters that would change the result.

    Raises:
        InvalidQueryError: if one of them is given.
    """
    for name in names:
        if parameters.get(name):
            raise InvalidQueryError(f"{name} is not supported by the emulator")
