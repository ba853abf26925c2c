"""Access rules of a project: who may write, import and read data.

Pure. Sources: https://docs.mixpanel.com/reference/authentication and /reference/service-accounts (read 2026-08-21).

Decisions where Mixpanel's documents are silent
    - With no token, secret or service account configured, `/import` accepts any HTTP Basic credentials, but requires
      some. With neither a secret nor a service account, the endpoints that read data do the same.
    - An OAuth bearer token is not accepted.
    - `/import` without `Authorization` accepts an `api_key`, as the Ruby and Node SDKs send it. In Mixpanel, the key
      is a credential beside token and secret. Here, the token and the secret are accepted as keys.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Credentials of a project. None means not configured.

    Args:
        token: project token.
        secret: project secret.
        service_account: user name, secret and project id.
    """

    token: str | None
    secret: str | None
    service_account: tuple[str, str, str] | None

    def may_import(self, authorization: str, project_id: str | None) -> bool:
        """Return whether an `Authorization` header is accepted by `/import` and the flag endpoints."""
        user, password = _basic_credentials(authorization)
        if not user:
            return False
        if self.service_account is not None and (user, password, project_id) == self.service_account:
            return True
        return self._is_open or (not password and user in {self.token, self.secret})

    def is_import_key(self, api_key: str) -> bool:
        """Return whether an `api_key` is accepted by `/import` in place of an `Authorization` header."""
        return bool(api_key) and (self._is_open or api_key in {self.token, self.secret})

    @property
    def _is_open(self) -> bool:
        """Whether the project has no credentials, so that any are accepted."""
        return self.token is None and self.secret is None and self.service_account is None

    def may_read(self, authorization: str, project_id: str | None) -> bool:
        """Return whether an `Authorization` header may read data. The token may not: it is no secret."""
        user, password = _basic_credentials(authorization)
        if not user:
            return False
        if self.secret is None and self.service_account is None:
            return True
        if self.service_account is not None and (user, password, project_id) == self.service_account:
            return True
        return not password and user == self.secret

    def import_refusal(self, authorization: str, project_id: str | None) -> str:
        """Return why `may_import` refuses a request. It contains no credentials."""
        return self._refusal(authorization, project_id) or "invalid credentials"

    def read_refusal(self, authorization: str, project_id: str | None) -> str:
        """Return why `may_read` refuses a request. It contains no credentials."""
        reason = self._refusal(authorization, project_id)
        if not reason and self.token is not None and _basic_credentials(authorization) == (self.token, ""):
            reason = "the project token cannot read data; use the secret or a service account"
        return reason or "invalid credentials"

    def _refusal(self, authorization: str, project_id: str | None) -> str:
        credentials = _basic_credentials(authorization)
        if not credentials[0]:
            return "no credentials in the header Authorization (HTTP Basic)"
        if self.service_account is not None and credentials == self.service_account[:2]:
            return (
                "the service account needs project_id in the URL" if not project_id else "project_id is another project"
            )
        return ""

    def is_foreign(self, token: object) -> bool:
        """Return whether the token of a record belongs to another project."""
        return self.token is not None and token != self.token


def _basic_credentials(authorization: str) -> tuple[str, str]:
    """Return user and password of HTTP Basic. Mixpanel accepts them in base64 and in plain text."""
    scheme, _, credentials = authorization.partition(" ")
    credentials = credentials.strip()
    if scheme.lower() != "basic" or not credentials:
        return "", ""
    if ":" not in credentials:
        try:
            credentials = base64.b64decode(credentials, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError, ValueError):
            return "", ""
    user, _, password = credentials.partition(":")
    return user, password
