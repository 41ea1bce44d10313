"""The OpenAPI 3.1 document, derived from the classes."""

from __future__ import annotations

from html import escape
from typing import Any

import msgspec

from omnistate.app import App
from omnistate.gateway._operations import HandOff, Messages, OfQueue, Say, Start

PROBLEM = {
    "description": "what is wrong, as a problem document (RFC 9457)",
    "content": {"application/problem+json": {}},
}


def openapi(app: App) -> dict[str, Any]:
    """The document for an app."""
    requests = [Start, Say, Messages, HandOff, OfQueue]
    kinds = [*app.states.values(), *(one.arguments for one in app.actions.values()), *requests]
    schemas, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    by_kind = dict(zip(kinds, schemas, strict=True))
    paths: dict[str, Any] = {}
    for name, kind in app.states.items():
        paths[f"/v1/customers/{{customer}}/states/{name}"] = {"get": _read(name, by_kind[kind])}
    for name, action in app.actions.items():
        paths[f"/v1/customers/{{customer}}/actions/{name}"] = {
            "post": _act(name, action.doc, by_kind[action.arguments])
        }
    for method, request, text in (
        ("conversation.start", Start, "Begin a conversation."),
        ("conversation.say", Say, "Add a message to a conversation."),
        ("conversation.messages", Messages, "Read messages, the oldest first."),
        ("conversation.hand_off", HandOff, "Give a conversation to a queue. For agents."),
        ("queue.waiting", OfQueue, "Who waits in a queue. For agents."),
        ("queue.claim", OfQueue, "Own the conversation that waits longest. For agents."),
    ):
        paths[f"/v1/call/{method}"] = {"post": _post(method, text, by_kind[request])}
    return {
        "openapi": "3.1.0",
        "info": {"title": app.title, "version": "1"},
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": components | {"omnistate.Position": _POSITION},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


_POSITION = {
    "type": "object",
    "required": ["epoch", "offset"],
    "properties": {"epoch": {"type": "string"}, "offset": {"type": "integer"}},
}
_CUSTOMER = {
    "name": "customer",
    "in": "path",
    "required": True,
    "description": "the customer that the token names, or `me`",
    "schema": {"type": "string"},
}


def _answers(schema: dict[str, Any]) -> dict[str, Any]:
    answer = {"description": "done", "content": {"application/json": {"schema": schema}}}
    return {"200": answer} | {str(status): PROBLEM for status in (400, 401, 403, 404, 409, 410, 413, 500, 503, 504)}


def _read(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    position = {"$ref": "#/components/schemas/omnistate.Position"}
    properties = {"value": schema, "version": {"type": "integer"}, "position": position}
    return {
        "operationId": f"read_{name}",
        "summary": f"Read {name} with the position from which to follow its changes.",
        "parameters": [_CUSTOMER],
        "responses": _answers({"type": "object", "properties": properties}),
    }


def _act(name: str, doc: str, schema: dict[str, Any]) -> dict[str, Any]:
    key = {"name": "Idempotency-Key", "in": "header", "required": False, "schema": {"type": "string"}}
    said = _post(name, doc.partition("\n")[0] or f"Call {name}.", schema)
    position = {"$ref": "#/components/schemas/omnistate.Position"}
    properties = {"result": {}, "version": {"type": "integer"}, "position": position, "repeated": {"type": "boolean"}}
    said["parameters"] = [_CUSTOMER, key]
    said["responses"] = _answers({"type": "object", "properties": properties})
    return said


def _post(name: str, summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "operationId": name.replace(".", "_"),
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": _answers({"type": "object"}),
    }


def page(document: dict[str, Any]) -> str:
    """The document as a page for people: no script, nothing from elsewhere."""
    rows = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            arguments = _arguments(document, body)
            rows.append(
                f"<section><h2><b>{method.upper()}</b> {escape(path)}</h2>"
                f"<p>{escape(operation['summary'])}</p>{arguments}</section>"
            )
    return _PAGE.format(title=escape(document["info"]["title"]), rows="\n".join(rows))


def _arguments(document: dict[str, Any], schema: dict[str, Any]) -> str:
    name = schema.get("$ref", "").rpartition("/")[2]
    found = document["components"]["schemas"].get(name, schema)
    cells = [
        f"<tr><td><code>{escape(field)}</code></td><td>{escape(_type(spec))}</td>"
        f"<td>{'needed' if field in found.get('required', ()) else ''}</td></tr>"
        for field, spec in found.get("properties", {}).items()
    ]
    return f"<table>{''.join(cells)}</table>" if cells else ""


def _type(spec: dict[str, Any]) -> str:
    if "anyOf" in spec:
        return " or ".join(_type(one) for one in spec["anyOf"])
    return str(spec.get("type") or spec.get("$ref", "anything").rpartition("/")[2])


_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}: HTTP API</title><style>
body{{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#16202c}}
h2{{font:600 1rem ui-monospace,monospace;margin:0}} b{{color:#0b6e4f}} section{{border-top:1px solid #d9e0e6;padding:1rem 0}}
p{{margin:.25rem 0}} table{{border-collapse:collapse}} td{{padding:.1rem 1rem .1rem 0;color:#41505e}}
</style><h1>{title}: HTTP API</h1>
<p>Give your token as <code>Authorization: Bearer …</code>. The document: <a href="/openapi.json">openapi.json</a></p>
{rows}</html>"""
