"""Recorded exchanges between clients and the emulator, and their comparison with Mixpanel's OpenAPI files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

import jsonschema
import yaml

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Fragments that distinguish operations on one path in the files. Requests have no fragments.
PROFILE_OPERATIONS: Final = {
    "$set": "/engage#profile-set",
    "$set_once": "/engage#profile-set-once",
    "$add": "/engage#profile-numerical-add",
    "$union": "/engage#profile-union",
    "$append": "/engage#profile-list-append",
    "$remove": "/engage#profile-list-remove",
    "$unset": "/engage#profile-unset",
    "$delete": "/engage#profile-delete",
}
GROUP_OPERATIONS: Final = {
    "$set": "/groups#group-set",
    "$set_once": "/groups#group-set-once",
    "$union": "/groups#group-union",
    "$remove": "/groups#group-remove-from-list",
    "$unset": "/groups#group-unset",
    "$delete": "/groups#group-delete",
}
IDENTITY_OPERATIONS: Final = {
    "$identify": "/track#create-identity",
    "$create_alias": "/track#identity-create-alias",
}

# Header that marks requests with an intentionally invalid body.
ON_PURPOSE: Final = "x-wrong-on-purpose"

# Response to the parameter `verbose`, which the files describe in text only.
VERBOSE: Final = {
    "type": "object",
    "required": ["status", "error"],
    "properties": {"status": {"enum": [0, 1]}, "error": {"type": ["string", "null"]}},
}


@dataclass(frozen=True)
class Exchange:
    """Recorded request and its response."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    status: int
    answer_type: str
    answer: bytes

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0]

    @property
    def form(self) -> dict[str, str]:
        is_form = self.content_type == "application/x-www-form-urlencoded"
        return dict(parse_qsl(self.body.decode())) if is_form else {}

    @property
    def content(self) -> Any:
        """Decode the records from any body format; None if they are unreadable."""
        body = gzip.decompress(self.body) if self.headers.get("content-encoding") == "gzip" else self.body
        try:
            return json.loads(self.form["data"] if self.form else body)
        except (KeyError, ValueError):
            return None

    @property
    def asks(self) -> set[str]:
        """Return the parameters of the URL and the form that are set and not 0."""
        return {name for name, value in {**self.form, **self.query}.items() if value != "0"}


class Recorder:
    """ASGI middleware that records exchanges."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.exchanges: list[Exchange] = []

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        body, sent = bytearray(), []

        async def receive_and_note() -> Message:
            message = await receive()
            body.extend(message.get("body", b""))
            return message

        async def note_and_send(message: Message) -> None:
            sent.append(message)
            await send(message)

        await self.app(scope, receive_and_note, note_and_send)
        answer_headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        self.exchanges.append(
            Exchange(
                method=scope["method"].lower(),
                path=scope["path"],
                query=dict(parse_qsl(scope["query_string"].decode(), keep_blank_values=True)),
                headers={name.decode(): value.decode() for name, value in scope["headers"]},
                body=bytes(body),
                status=sent[0]["status"],
                answer_type=answer_headers.get("content-type", "").partition(";")[0],
                answer=b"".join(message.get("body", b"") for message in sent),
            )
        )


class Spec:
    """Mixpanel's OpenAPI description of its ingestion and identity APIs."""

    def __init__(self, folder: Path) -> None:
        self._files = {name: _read(folder / f"{name}.openapi.yaml") for name in ("ingestion", "identity")}

    def documented_answers(self) -> set[tuple[str, str]]:
        """Return path, without its fragment, and status of every documented response."""
        return {
            (path.partition("#")[0], status)
            for file in self._files.values()
            for path, methods in file["paths"].items()
            for status in methods.get("post", {}).get("responses", ())
        }

    def complaints(self, exchange: Exchange) -> Iterator[str]:
        """Return every deviation of an exchange from the files, as `operation: problem`."""
        name, operation = self._operation(exchange)
        problems = [*_parameter_problems(operation, exchange), *_answer_problems(operation, exchange)]
        if ON_PURPOSE not in exchange.headers:
            problems += _body_problems(operation, exchange)
        yield from (f"{name}: {problem}" for problem in problems)

    def _operation(self, exchange: Exchange) -> tuple[str, dict[str, Any]]:
        file, path = _place(exchange)
        operation: dict[str, Any] = self._files[file]["paths"][path][exchange.method]
        return f"{file} {path}", operation


def _read(path: Path) -> dict[str, Any]:
    document = yaml.safe_load(path.read_text())
    resolved: dict[str, Any] = _resolved(document, document)
    return resolved


def _resolved(node: Any, document: Any) -> Any:
    """Resolve references, and translate `nullable` of OpenAPI 3.0 to JSON Schema."""
    if isinstance(node, list):
        return [_resolved(item, document) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = document
        for step in node["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        return _resolved(target, document)
    plain = {key: _resolved(value, document) for key, value in node.items()}
    if plain.pop("nullable", False):
        plain["type"] = [plain["type"], "null"]
    return plain


def _place(exchange: Exchange) -> tuple[str, str]:
    """Return the file and the path, with its fragment, that describe a request."""
    content = exchange.content
    records = [record for record in content if isinstance(record, dict)] if isinstance(content, list) else [content]
    first = records[0] if records and isinstance(records[0], dict) else {}
    if exchange.path == "/track":
        identity = IDENTITY_OPERATIONS.get(first.get("event", ""))
        return ("identity", identity) if identity else ("ingestion", "/track")
    if exchange.path.startswith("/lookup-tables"):
        return "ingestion", "/lookup-tables" if exchange.path == "/lookup-tables" else "/lookup-tables/{id}"
    if exchange.path == "/import":
        return ("identity" if first.get("event") == "$merge" else "ingestion"), "/import"
    batch, names = {
        "/engage": ("/engage#profile-batch-update", PROFILE_OPERATIONS),
        "/groups": ("/groups#group-batch-update", GROUP_OPERATIONS),
    }[exchange.path]
    kinds = {name for record in records if record for name in record if name in names}
    return "ingestion", names[kinds.pop()] if len(kinds) == 1 else batch


def _parameter_problems(operation: dict[str, Any], exchange: Exchange) -> Iterator[str]:
    known = {one["name"]: one for one in operation.get("parameters", ()) if one["in"] == "query"}
    for name, value in exchange.query.items():
        if name not in known:
            yield f"parameter {name} is not documented"
            continue
        schema = known[name]["schema"]
        is_number = schema["type"] == "integer" and value.isdecimal()
        yield from _schema_problems(f"parameter {name}", int(value) if is_number else value, schema)
    yield from (
        f"parameter {name} is missing"
        for name, one in known.items()
        if one.get("required") and name not in exchange.query
    )


def _body_problems(operation: dict[str, Any], exchange: Exchange) -> Iterator[str]:
    documented = operation["requestBody"]["content"]
    kind, content = exchange.content_type, exchange.form or exchange.content
    if kind not in documented:
        yield f"request as {kind or 'nothing'} is not documented"
        # The content should match the documented format: a list of records, or a single record, of which a form may
        # contain either.
        kind = next(iter(documented))
        records = exchange.content
        if kind == "application/json":
            content = [records] if isinstance(records, dict) else records
        else:
            content = {"data": json.dumps(records)}
    yield from _schema_problems("request", content, documented[kind]["schema"])


def _answer_problems(operation: dict[str, Any], exchange: Exchange) -> Iterator[str]:
    if exchange.status == 200 and exchange.path != "/import":
        if "callback" in exchange.asks or "img" in exchange.asks:
            expected = "text/javascript" if "callback" in exchange.asks else "image/gif"
            if exchange.answer_type != expected:
                yield f"answer is {exchange.answer_type}"
            return
        if exchange.asks & {"verbose", "strict"}:
            yield from _json_problems(exchange, VERBOSE)
            return
    documented = operation["responses"].get(str(exchange.status))
    if documented is None:
        yield f"answer {exchange.status} is not documented"
    elif exchange.answer_type not in documented["content"]:
        yield f"answer {exchange.status} as {exchange.answer_type} is not documented"
    else:
        yield from _json_problems(exchange, documented["content"][exchange.answer_type]["schema"])


def _json_problems(exchange: Exchange, schema: dict[str, Any]) -> Iterator[str]:
    try:
        content = json.loads(exchange.answer)
    except ValueError:
        yield f"answer {exchange.status} is no JSON"
        return
    yield from _schema_problems(f"answer {exchange.status}", content, schema)
    # The files require no fields in a response, so `{}` would be valid.
    for name in set(schema.get("properties", ())) - set(content if isinstance(content, dict) else ()):
        yield f"answer {exchange.status} has no {name}"


def _schema_problems(what: str, content: Any, schema: dict[str, Any]) -> Iterator[str]:
    for error in jsonschema.Draft202012Validator(schema).iter_errors(content):
        where = ".".join(str(step) for step in error.absolute_path if not isinstance(step, int))
        words = error.message if len(error.message) <= 300 else f"{error.message[:60]} ... {error.message[-60:]}"
        yield f"{what}{f' {where}' if where else ''}: {words}"
