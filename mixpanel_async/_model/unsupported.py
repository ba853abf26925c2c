"""Arguments that other Mixpanel clients and similar SDKs have and this one has not, and what to use instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

_API_HOST: Final = "pass region= or api_host="
_BATCHING: Final = "pass batching=BatchPolicy(max_events=...)"
_LINGER: Final = "pass batching=BatchPolicy(linger=...)"
_QUEUE: Final = "pass batching=BatchPolicy(max_pending_events=...)"
_RETRY: Final = "pass retry=RetryPolicy(...) for queued records and identity_retry=RetryPolicy(...) for awaited calls"
_CREDENTIALS: Final = "pass credentials=ServiceAccountCredentials(username, secret, project_id)"
_TLS: Final = "certificates are always checked; name your own in SSL_CERT_FILE, or pass http_client="
_IMPORT_SECRET: Final = f"{_CREDENTIALS}, or api_secret= to import_data()"
_PROXY: Final = "set HTTPS_PROXY, or pass http_client="

# Without the names that the constructor has in common with other SDKs.
_INSTEAD: Final[Mapping[str, str]] = {
    # mixpanel 5.4.1: Mixpanel, Consumer, BufferedConsumer
    "consumer": "the client has its own queue; pass batching=BatchPolicy(...), retry= and api_host=",
    "local_flags_config": "pass local_flags=LocalFlags(...)",
    "remote_flags_config": "pass remote_flags=RemoteFlags(...)",
    "events_url": _API_HOST,
    "people_url": _API_HOST,
    "import_url": _API_HOST,
    "groups_url": _API_HOST,
    "request_timeout": "pass timeout=, in seconds",
    "retry_limit": _RETRY,
    "retry_backoff_factor": _RETRY,
    "verify_cert": _TLS,
    "max_size": _BATCHING,
    "api_key": f"Mixpanel no longer uses it; {_CREDENTIALS}",
    "api_secret": _IMPORT_SECRET,
    # Other SDKs of Mixpanel, and of similar services
    "secret": _IMPORT_SECRET,
    "service_account": _CREDENTIALS,
    "username": _CREDENTIALS,
    "project_id": _CREDENTIALS,
    "project_token": "pass the token as the first argument",
    "write_key": "pass the token as the first argument",
    "project_api_key": "pass the token as the first argument",
    "host": _API_HOST,
    "endpoint": _API_HOST,
    "base_url": _API_HOST,
    "api_url": _API_HOST,
    "server_url": _API_HOST,
    "residency": "pass region=",
    "protocol": "pass api_host= with https:// or http://",
    "port": "pass api_host= with the port",
    "path": "pass api_host= with the path",
    "debug": "set the level of logging.getLogger('mixpanel_async')",
    "verbose": "set the level of logging.getLogger('mixpanel_async')",
    "logger": "configure logging.getLogger('mixpanel_async')",
    "on_error": "pass on_drop=",
    "flush_at": _BATCHING,
    "batch_size": _BATCHING,
    "upload_size": _BATCHING,
    "flush_interval": _LINGER,
    "upload_interval": _LINGER,
    "max_queue_size": _QUEUE,
    "max_retries": _RETRY,
    "retries": _RETRY,
    "gzip": "bodies are always compressed where Mixpanel accepts it",
    "proxy": _PROXY,
    "proxies": _PROXY,
    "verify": _TLS,
    "ssl_context": _TLS,
    "disable_geoip": "Mixpanel locates a user only if a call has ip=",
    "geolocate": "pass ip= to a call",
    "thread": "the client runs in an event loop",
    "sync_mode": "await track_immediate() to send one event at once",
}
_MAX_SHOWN: Final = 60


def unsupported_arguments(names: Iterable[str], supported: Iterable[str]) -> str:
    """Return the text of a `TypeError` for arguments that the constructor does not have.

    Args:
        names: the names of these arguments. Their values may be secret.
        supported: the names that the constructor has.
    """
    # Rarely needed, so it does not slow down the import of the package.
    from difflib import get_close_matches  # noqa: PLC0415

    known = [name for name in supported if not name.startswith("_")]
    problems = []
    for name in names:
        text = f"AsyncMixpanel() got an unexpected keyword argument {name[:_MAX_SHOWN]!r}"
        if name in _INSTEAD:
            text += f": {_INSTEAD[name]}"
        elif matches := get_close_matches(name[:_MAX_SHOWN].lower(), known, 1):
            text += f". Did you mean {matches[0]!r}?"
        problems.append(text)
    return "; ".join(problems)
