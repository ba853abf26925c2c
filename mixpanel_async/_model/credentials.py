"""Credentials that only the code that signs a request can read."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NoReturn
from urllib.parse import quote

from .errors import raise_configuration_error

# Tokens of Mixpanel have 32 digits. A shorter token than this may be an ordinary word, so messages do not mask it.
_MIN_TOKEN_LENGTH: Final = 8


class Secret:
    """Secret string that `repr`, copies and pickles do not reveal."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the secret, for the code that signs a request."""
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "Secret('***')"

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Mixpanel credential cannot be pickled")


class ServiceAccountCredentials:
    """A Mixpanel service account, the documented way to authenticate a server.

    Every argument is a string that is not blank; surrounding white space is removed, as in the official SDK.

    Args:
        username: name of the service account, without a colon, which HTTP Basic does not allow in a user name.
        secret: secret of the service account. No repr, copy or pickle of this object contains it.
        project_id: number of the project, sent as `project_id` in the query string.

    Raises:
        ConfigurationError: if an argument is not a string, is blank or contains a control character.
    """

    __slots__ = ("_secret", "project_id", "username")

    def __init__(self, username: str, secret: str, project_id: str) -> None:
        problem = _problem(username, secret, project_id)
        if problem is not None:
            # Error reporters show the local variables of every frame.
            del secret
            raise_configuration_error(problem)
        self.username = username.strip()
        self.project_id = project_id.strip()
        self._secret = Secret(secret.strip())

    @property
    def secret(self) -> str:
        """Secret of the service account."""
        return self._secret.reveal()

    def __repr__(self) -> str:
        # A traceback may show an object whose constructor failed.
        username, project_id = getattr(self, "username", None), getattr(self, "project_id", None)
        return f"ServiceAccountCredentials(username={username!r}, project_id={project_id!r}, secret='***')"

    def __copy__(self) -> ServiceAccountCredentials:
        return self

    def __deepcopy__(self, memo: object) -> ServiceAccountCredentials:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("Mixpanel credentials cannot be pickled")


def _problem(username: object, secret: object, project_id: object) -> str | None:
    """Return the reason why these arguments are invalid, or None."""
    for name, value in (("username", username), ("secret", secret), ("project_id", project_id)):
        if not isinstance(value, str):
            return f"service account {name} must be a string, not {type(value).__name__}"
        if not value.strip():
            return f"service account {name} cannot be blank"
        if not value.strip().isprintable():
            return f"service account {name} contains a control character"
    return "service account username cannot contain a colon" if ":" in str(username) else None


def as_token(value: object, *, is_required: bool = True) -> str:
    """Return a project's token without surrounding white space, which a file or a variable often adds.

    Args:
        value: the token.
        is_required: reject a blank one.

    Raises:
        ConfigurationError: if it is not a string of printable characters, or is blank.
    """
    token = value.strip() if isinstance(value, str) else None
    if token is None or not token.isprintable() or (is_required and not token):
        del value, token
        raise_configuration_error("token must be a string of printable characters that is not blank")
    return token


def as_secret(value: object) -> Secret | None:
    """Return the project secret of an argument, or None if the argument is None or empty.

    Raises:
        ConfigurationError: if it is not a string that HTTP Basic can carry.
    """
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not value.strip() or not value.strip().isprintable() or ":" in value:
        del value
        raise_configuration_error("api_secret must be a string without a colon or a control character")
    return Secret(value.strip())


def basic_auth(user: str, password: str) -> str:
    """Return the value of an `Authorization` header for HTTP Basic."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Auth:
    """Authentication of one request. Not a tuple, because error reporters show the items of tuples.

    Args:
        headers: the `Authorization` header, or nothing if the token in the body is enough.
        secrets: token and credentials in every form in which a server could repeat them, for masking.
    """

    headers: Mapping[str, str]
    secrets: tuple[str, ...]

    def __repr__(self) -> str:
        return "<Auth>"


def token_auth(token: str) -> Auth:
    """Return the authentication of a request that carries the project's token in its body."""
    return Auth({}, tuple({token, quote(token, safe="")}) if len(token) >= _MIN_TOKEN_LENGTH else ())


def signed_auth(token: str, credentials: ServiceAccountCredentials | None, secret: Secret | None = None) -> Auth:
    """Return HTTP Basic authentication with the best credentials there are.

    The order is that of Mixpanel's Go SDK: service account, project secret, token.
    """
    if credentials is not None:
        user, password = credentials.username, credentials.secret
    else:
        user, password = token if secret is None else secret.reveal(), ""
    header = basic_auth(user, password)
    # The user name of a service account is not secret; without a password the user name is the token or the secret.
    plain = password or user
    known = {*token_auth(token).secrets, plain, quote(plain, safe=""), header.removeprefix("Basic ")}
    return Auth({"Authorization": header}, tuple(known))
