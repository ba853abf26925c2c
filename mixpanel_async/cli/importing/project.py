"""Project that a command sends to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from .checkpoint import PROJECT_ID, fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectOptions:
    """Destination and credentials, as `AsyncMixpanel.from_env` reads it.

    Args:
        environ: the `MIXPANEL_*` variables.
        allow_http: as in `AsyncMixpanel`.
    """

    environ: Mapping[str, str]
    allow_http: bool

    def with_secret(self, api_secret: str | None) -> Mapping[str, str]:
        """Return the variables, with the secret of the project if it is given."""
        return self.environ if api_secret is None else {**self.environ, "MIXPANEL_API_SECRET": api_secret}

    def fingerprint(self) -> str:
        """Return a fingerprint of the token and the host."""
        return fingerprint(*map(self.variable, ("TOKEN", "REGION", "API_HOST")))

    def account_fingerprints(self) -> dict[str, str]:
        """Return a fingerprint of the service account's project id, or an empty dict without one.

        With a service account, Mixpanel goes by this id. Whether it is the project of the token cannot be checked here.
        """
        project_id = self.variable("PROJECT_ID")
        return {PROJECT_ID: fingerprint(project_id)} if project_id else {}

    def variable(self, name: str) -> str:
        """Return the variable `MIXPANEL_` + name, or an empty string."""
        return self.environ.get(f"MIXPANEL_{name}", "").strip()


def project_options(
    *,
    token: str | None,
    service_account: str | None,
    service_account_secret: str | None,
    project_id: str | None,
    region: str | None,
    api_host: str | None,
    allow_http: bool,
) -> ProjectOptions:
    """Return the destination and credentials. Options of a command win over the `MIXPANEL_*` variables."""
    variables = {
        "TOKEN": token,
        "SERVICE_ACCOUNT_USERNAME": service_account,
        "SERVICE_ACCOUNT_SECRET": service_account_secret,
        "PROJECT_ID": project_id,
        "REGION": region,
        "API_HOST": api_host,
    }
    given = {f"MIXPANEL_{name}": value for name, value in variables.items() if value is not None}
    return ProjectOptions(environ={**os.environ, **given}, allow_http=allow_http)
