"""Page of the environment variables. The texts are here; a test compares the names with those that the code reads."""

from __future__ import annotations

from typing import Final, NamedTuple

from .commands import arguments_of, commands, options_of
from .markdown import code, page, section, table


class Variable(NamedTuple):
    """Environment variable.

    Args:
        name: its name.
        values: what it can be.
        meaning: its effect.
        option: argument of `AsyncMixpanel` that it sets.
    """

    name: str
    values: str
    meaning: str
    option: str = ""


VARIABLES: Final = (
    Variable(
        "MIXPANEL_TOKEN",
        "token of a project",
        "The project. `from_env` raises `ConfigurationError` if it is not set, unless the client is disabled.",
        "token",
    ),
    Variable(
        "MIXPANEL_SERVICE_ACCOUNT_USERNAME",
        "user name",
        "Service account. It needs the secret and the project id as well.",
        "credentials",
    ),
    Variable("MIXPANEL_SERVICE_ACCOUNT_SECRET", "secret", "Secret of the service account.", "credentials"),
    Variable("MIXPANEL_PROJECT_ID", "project id", "Project of the service account.", "credentials"),
    Variable("MIXPANEL_REGION", "`us`, `eu` or `in`", "Where Mixpanel stores the project's data.", "region"),
    Variable("MIXPANEL_API_HOST", "host or origin", "Replaces the host of the region.", "api_host"),
    Variable(
        "MIXPANEL_ALLOW_HTTP",
        "switch",
        "Allow an `http://` origin that is not on this machine.",
        "allow_http",
    ),
    Variable(
        "MIXPANEL_ID_MERGE",
        "`simplified`, `original` or `legacy`",
        "ID merge system of the project. The integrations need it, or the option.",
        "id_merge",
    ),
    Variable(
        "MIXPANEL_OUTBOX",
        "`redis://`, `rediss://` or `unix://` URL",
        "Hand records over to this queue, as `RedisOutbox(url)`. The commands `queue` and `worker` read it, too.",
        "outbox",
    ),
    Variable(
        "MIXPANEL_DISABLED",
        "switch",
        "Turn the client off. No other variable but `MIXPANEL_TOKEN` and `MIXPANEL_ID_MERGE` is read then.",
        "enabled",
    ),
    Variable(
        "MIXPANEL_API_SECRET",
        "secret of the project",
        "Only the commands below `identity`: read the project without a service account.",
    ),
)
"""Variables of the client and of the commands."""

NETWORK: Final = (
    Variable(
        "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY",
        "URL of a proxy",
        'Proxy of the requests. The name can be in lower case, which wins. SOCKS needs `pip install "httpx[socks]"`.',
    ),
    Variable("NO_PROXY", "hosts, separated by commas", "Hosts that are reached without a proxy; `*` for all."),
    Variable("SSL_CERT_FILE", "PEM file", "Certificates that replace the default ones."),
    Variable(
        "SSL_CERT_DIR",
        "directories, separated by `:` (on Windows `;`)",
        "Directories with files named by `openssl rehash`. `/etc/ssl/certs` selects the certificates of most Linux "
        "systems.",
    ),
    Variable("REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE", "file or directory", "As for the official SDK."),
    Variable("SSLKEYLOGFILE", "file", "Keys of TLS connections are written to it; ignored if that is not possible."),
)
"""Variables of the network."""


def environment_page() -> str:
    """Return the page of the environment variables."""
    commands_of: dict[str, list[str]] = {}
    for command in commands():
        for parameter in (*options_of(command), *arguments_of(command)):
            if parameter.envvar:
                commands_of.setdefault(str(parameter.envvar), []).append(
                    f"[`{command.path.removeprefix('mixpanel-async ')}`](commands.md#{command.path.replace(' ', '-')})"
                )
    return page(
        "Environment variables",
        section(
            "Client and commands",
            "[`AsyncMixpanel.from_env`](client.md#mixpanel_async.AsyncMixpanel.from_env) and "
            "[`Worker.from_env`](worker.md#mixpanel_async.worker.Worker.from_env) read these variables, and so do the "
            "commands `import`, `worker` and `identity`. An argument of the call, or an option of the command, wins "
            "over its variable. A blank variable counts as not set. `AsyncMixpanel(...)` reads none of them.",
            "A switch is on with `1`, `true`, `yes` and `on`, and off with `0`, `false`, `no`, `off` and blank, in any "
            "case. Any other value raises `ConfigurationError`.",
            table(
                ("Variable", "Value", "Sets", "Meaning"),
                ((code(one.name), one.values, one.option and code(one.option), one.meaning) for one in VARIABLES),
            ),
            "Arguments and options that show their variable in `--help`:",
            table(("Variable", "Commands"), ((code(name), ", ".join(found)) for name, found in commands_of.items())),
        ),
        section(
            "Proxies and certificates",
            "Every client reads these variables at its first request, unless it has `http_client=`: then the "
            "`httpx.AsyncClient` has read them. Of the certificate variables, only the first in this table that is set "
            "counts. Without one, the certificates of the package `certifi` are used.",
            table(
                ("Variable", "Value", "Meaning"),
                ((", ".join(map(code, one.name.split(", "))), one.values, one.meaning) for one in NETWORK),
            ),
            "A variable that cannot be used is never ignored in favor of a direct connection or of the default "
            "certificates. Awaited calls raise a `TransportError` that names the variable, and queued records wait; "
            "see [Configure a client for production](../guides/configuration.md). The log event is "
            "`environment_ignored`.",
        ),
    )
