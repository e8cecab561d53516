"""`GET /openapi.json`: the HTTP interface for machines (OpenAPI 3.1). docs/http.md is the one for people.

A test compares it with the routes, and another one with what a running cluster answers to generated requests.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from peer.config import DURABILITIES
from peer.http.files import FILES_LIMIT, FILES_LIMIT_MAX
from peer.http.nodes import QUEUE_LIMIT, QUEUE_LIMIT_MAX
from protocol.codec import FILENAME_CHARS_MAX, SIZE_MAX
from protocol.identity import BELIEFS, NODE_ID_PATTERN
from protocol.messages import ItemStatus
from protocol.ops import COPIES_MAX, FILE_KEY_PATTERN

Json = dict[str, Any]


async def openapi(request: Request) -> JSONResponse:
    """`GET /openapi.json`: this interface."""
    info = {"title": "Mini DFS", "version": request.app.state.version, "license": {"name": "MIT", "identifier": "MIT"}}
    return JSONResponse({"openapi": "3.1.0", "info": info, "paths": _paths(), "components": {"schemas": SCHEMAS}})


# --- types ---

TEXT: Json = {"type": "string"}
FLAG: Json = {"type": "boolean"}
NULL: Json = {"type": "null"}
TIME: Json = {"type": "string", "format": "date-time"}
SIZE: Json = {"type": "integer", "minimum": 0, "maximum": SIZE_MAX}
COUNT: Json = {"type": "integer", "minimum": 0}
FILE_ID: Json = {"type": "string", "pattern": f"^{FILE_KEY_PATTERN.pattern}$"}
NODE_ID: Json = {"type": "string", "pattern": f"^{NODE_ID_PATTERN.pattern}$"}
SHA256: Json = {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"}
BYTES: Json = {"type": "string", "format": "binary"}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, NULL]}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _object(optional: tuple[str, ...] = (), /, **properties: Json) -> Json:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def _one_of(*values: str) -> Json:
    return {"type": "string", "enum": list(values)}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


_FILE = {
    "file_key": FILE_ID,
    "original_filename": TEXT,
    "size_bytes": SIZE,
    "checksum_sha256": SHA256,
    "content_type": TEXT,
    "uploaded_at": TIME,
    "replicas": _list(NODE_ID),
}
_RECEIPT = {
    "success": FLAG,
    "file_id": FILE_ID,
    "file_key": FILE_ID,
    "stored_name": TEXT,
    "original_filename": TEXT,
    "content_type": TEXT,
    "size_bytes": SIZE,
    "checksum_sha256": SHA256,
    "uploaded_at": TIME,
    "node_id": NODE_ID,
    "node": NODE_ID,
    "replication": _object(
        total_nodes=COUNT,
        successful=COUNT,
        failed=COUNT,
        details=_list(_object(("error", "instead_of"), node=NODE_ID, success=FLAG, error=TEXT, instead_of=NODE_ID)),
    ),
    "durable_copies": _list(NODE_ID),
    "durability": _one_of(*DURABILITIES),
}
_COUNTS = {"total": COUNT, "success": COUNT, "failed": COUNT}

SCHEMAS: Json = {
    "Error": _object(error=TEXT, detail=TEXT, status={"type": "integer"}),
    "Health": _object(
        status=_one_of("UP"),
        service=_one_of("naming-service", "storage-node"),
        node_id=NODE_ID,
        node=NODE_ID,
        hostname=TEXT,
        version=TEXT,
        cluster_id=_or_null(TEXT),
    ),
    "Ready": _object(status=_one_of("READY"), node_id=NODE_ID, verified=FLAG, inventoried=FLAG),
    "File": _object(**_FILE),
    "Files": _object(files=_list(_ref("File")), count=COUNT, total=COUNT, next=_or_null(TEXT)),
    "Versions": _object(
        file_id=FILE_ID, file_key=FILE_ID, versions=_list(_object(**_FILE, dot=TEXT, shown=FLAG)), count=COUNT
    ),
    "Receipt": _object(**_RECEIPT),
    "RoutedReceipt": _object(
        **_RECEIPT, routed_via=_one_of("naming-service"), selected_node=NODE_ID, node_latency_ms=COUNT
    ),
    "Deletion": _object(
        success=FLAG,
        file_id=FILE_ID,
        file_key=FILE_ID,
        deleted_from=COUNT,
        failed=COUNT,
        total_nodes=COUNT,
        deleted_nodes=_list(NODE_ID),
        message=TEXT,
    ),
    "Registration": _object(
        ("failed_nodes", "content_type"),
        file_key=FILE_ID,
        original_filename={"type": "string", "maxLength": FILENAME_CHARS_MAX},
        size_bytes=SIZE,
        checksum_sha256=SHA256,
        node_id=NODE_ID,
        failed_nodes=_or_null(_list(NODE_ID)),
        content_type=_or_null(TEXT),
    ),
    "Registered": _object(success=FLAG, message=TEXT, verified=FLAG),
    "Location": _object(file_key=FILE_ID, node_id=NODE_ID),
    "Located": _object(success=FLAG, verified=FLAG),
    "Node": _object(
        id=NODE_ID,
        address=TEXT,
        status=_one_of("UP", "DOWN"),
        role=_one_of("PEER"),
        last_heartbeat=_or_null(TIME),
        latency_ms=COUNT,
        down_since=_or_null(TIME),
        zone=TEXT,
        state=_one_of(*(status.value for status in BELIEFS)),
        membership=_one_of("member", "draining", "out"),
    ),
    "OwnNode": _object(
        id=NODE_ID,
        version=TEXT,
        files=COUNT,
        copies=COUNT,
        missing=COUNT,
        disk_free_bytes=SIZE,
        disk_total_bytes=SIZE,
        warnings=_list(TEXT),
    ),
    "Events": _object(events=_list({"type": "object", "required": ["id", "at", "kind"]}), last=TEXT),
    "NodesChecked": _object(
        checked_at=TIME,
        nodes=_list(_object(id=NODE_ID, address=TEXT, status=_one_of("UP", "DOWN"), latency_ms=COUNT)),
    ),
    "QueueItem": _object(
        id=COUNT,
        file_key=FILE_ID,
        target_node_id=NODE_ID,
        source_node_id=NODE_ID,
        status=_one_of(*ItemStatus.__members__),
        retry_count=COUNT,
        last_attempt=_or_null(TIME),
        next_attempt=_or_null(TIME),
        created_at=TIME,
        error_message=_or_null(TEXT),
    ),
    "Queue": _object(
        items=_list(_ref("QueueItem")),
        count=COUNT,
        missing=COUNT,
        seconds_left=_or_null(COUNT),
        targets=_list(
            _object(
                node_id=NODE_ID,
                missing=COUNT,
                missing_bytes=SIZE,
                copies_per_s={"type": "number"},
                seconds_left=_or_null(COUNT),
            )
        ),
    ),
    "Leaving": _object(message=TEXT, node_id=NODE_ID),
    "Evicted": _object(message=TEXT, node_id=NODE_ID, given_up=COUNT),
    "Recovery": _object(
        ("count", "pending_items"), message=TEXT, count=COUNT, **_COUNTS, pending_items=_list(_ref("QueueItem"))
    ),
}


# --- parameters ---


def _query(name: str, description: str, schema: Json) -> Json:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _path(name: str, schema: Json) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _header(name: str, description: str) -> Json:
    return {"name": name, "in": "header", "description": description, "schema": TEXT}


def _number(default: int, maximum: int) -> Json:
    return {"type": "integer", "minimum": 1, "maximum": maximum, "default": default}


_COPIES = [
    _query("copies", "How many copies are wanted.", {"type": "integer", "minimum": 1, "maximum": COPIES_MAX}),
    _query("min_copies", "Fewer durable copies are a failure.", _number(1, COPIES_MAX)),
    _header("Repr-Digest", "Digest of the content (RFC 9530): sha-256, sha-512 or md5."),
    _header("Content-Digest", "The same."),
    _header("Content-MD5", "MD5 of the content in base64 (RFC 1864)."),
]
_CONDITIONS = [
    _query("version", "One version of the file, by its dot.", TEXT),
    _header("Range", "One range of bytes, or several (RFC 9110)."),
    _header("If-Range", "An entity tag: the range holds only for that content."),
    _header("If-Match", "Entity tags; 412 if the file has none of them."),
    _header("If-None-Match", "Entity tags; 304 if the file has one of them."),
    _header("If-Modified-Since", "A date; 304 if the file is no newer."),
    _header("If-Unmodified-Since", "A date; 412 if the file is newer."),
]
_FILE_ID = _path("file_id", FILE_ID)


# --- operations ---


def _operation(
    name: str,
    summary: str,
    answer: Json,
    errors: str = "",
    parameters: list[Json] | None = None,
    body: Json | None = None,
) -> Json:
    responses = {"200": answer, **{status: _error(status) for status in sorted({*errors.split(), *_ANYWHERE})}}
    operation: Json = {"operationId": name, "summary": summary, "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if body:
        operation["requestBody"] = {"required": True, "content": body}
    return operation


def _error(status: str) -> Json:
    return {"description": _REASONS[status], "content": {"application/json": {"schema": _ref("Error")}}}


_ANYWHERE = ("400", "403", "408", "421", "431", "503")
_REASONS = {
    "400": "Malformed.",
    "403": "A page of elsewhere asks.",
    "404": "Unknown.",
    "408": "Too slow.",
    "409": "The key has other content.",
    "412": "The file is another one.",
    "413": "Too large.",
    "415": "No form.",
    "416": "No such range.",
    "421": "This peer does not go by that name.",
    "431": "The head is too large.",
    "503": "Not now; `Retry-After` says when to try again.",
    "507": "The disk is full.",
}


def _json(schema: Json, description: str = "Done.") -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _paths() -> Json:
    content = {"description": "The content.", "content": {"*/*": {}}}
    form = {"multipart/form-data": {"schema": _object(file=BYTES)}}
    upload: Json = {"errors": "400 413 415 503 507", "body": form}
    upload["parameters"] = [_query("file_id", "Yours instead of a drawn one.", FILE_ID), *_COPIES]
    page = {"description": "The page.", "content": {"text/html": {"schema": TEXT}}}
    part = {"description": "A part of it.", "content": {"*/*": {}}}
    happened = _json(_ref("Events"))
    happened["content"]["text/event-stream"] = {"schema": TEXT}
    return {
        "/": {
            "get": _operation("page", "The web page.", page, "400 503", [_query("name", "A prefix of names.", TEXT)]),
        },
        "/page/{name}": {
            "get": _operation("pagePart", "A part of the web page.", part, "404", [_path("name", TEXT)]),
        },
        "/events": {
            "get": _operation(
                "events",
                "What happened here: a list, or server-sent events for who accepts them.",
                happened,
                "503",
                [_query("after", "Only what happened behind this one.", TEXT)],
            ),
        },
        "/node": {"get": _operation("ownNode", "What this peer knows of itself.", _json(_ref("OwnNode")), "503")},
        "/health": {"get": _operation("health", "Whether this peer serves.", _json(_ref("Health")))},
        "/health/ready": {
            "get": _operation("ready", "Whether to send requests here.", _json(_ref("Ready")), "503"),
        },
        "/metrics": {
            "get": _operation(
                "metrics",
                "What this peer counts, for Prometheus.",
                {"description": "Metrics.", "content": {"text/plain": {"schema": TEXT}}},
                "503",
            ),
        },
        "/openapi.json": {"get": _operation("openapi", "This document.", _json({"type": "object"}))},
        "/files": {
            "get": _operation(
                "listFiles",
                "The files, newest first.",
                _json(_ref("Files")),
                "400 503",
                [
                    _query("limit", "Files in an answer.", _number(FILES_LIMIT, FILES_LIMIT_MAX)),
                    _query("after", "The `next` of the page before.", TEXT),
                    _query("name", "What the original names begin with.", TEXT),
                ],
            ),
            "post": _operation("upload", "Store a file.", _json(_ref("Receipt")), **upload),
        },
        "/upload": {"post": _operation("uploadRouted", "Store a file.", _json(_ref("RoutedReceipt")), **upload)},
        "/files/{file_id}": {
            **_reading("download", content),
            "put": _operation(
                "uploadRaw",
                "Store the body as a file.",
                _json(_ref("Receipt")),
                "400 413 503 507",
                [_FILE_ID, _query("filename", "Its name; else its id.", TEXT), *_COPIES],
                {"*/*": {"schema": BYTES}},
            ),
            "delete": _operation("delete", "Remove a file for ever.", _json(_ref("Deletion")), "404 503", [_FILE_ID]),
        },
        "/download/{file_id}": _reading("downloadRouted", content),
        "/files/{file_id}/versions": {
            "get": _operation("versions", "The versions of a file.", _json(_ref("Versions")), "404 503", [_FILE_ID])
        },
        "/files/register": {
            "post": _operation(
                "register",
                "Make a file known that a peer has.",
                _json(_ref("Registered")),
                "400 409 413 503 507",
                body={"application/json": {"schema": _ref("Registration")}},
            )
        },
        "/files/register-location": {
            "post": _operation(
                "registerLocation",
                "Say that a node has a known file.",
                _json(_ref("Located")),
                "400 404 413 503",
                body={"application/json": {"schema": _ref("Location")}},
            )
        },
        "/nodes": {"get": _operation("nodes", "Every member.", _json(_list(_ref("Node"))), "503")},
        "/nodes/check": {
            "get": _operation("checkNodes", "Ask every member now.", _json(_ref("NodesChecked")), "503"),
        },
        "/nodes/{node_id}/recover": {
            "post": _operation(
                "recover",
                "Make a node fetch what it lacks.",
                _json(_ref("Recovery")),
                "404 503",
                [_path("node_id", NODE_ID)],
            )
        },
        "/nodes/{node_id}/leave": {
            "post": _operation(
                "leave",
                "Let a node leave once others hold what it holds.",
                _json(_ref("Leaving")),
                "400 404 409 503",
                [
                    _path("node_id", NODE_ID),
                    _query("undo", "Let it stay after all.", _one_of("true", "false")),
                ],
            )
        },
        "/nodes/{node_id}/evict": {
            "post": _operation(
                "evict",
                "Remove a node for good.",
                _json(_ref("Evicted")),
                "400 404 409 503",
                [
                    _path("node_id", NODE_ID),
                    _query("force", "Also when files are on it alone.", _one_of("true", "false")),
                ],
            )
        },
        "/replication-queue": {
            "get": _operation(
                "queue",
                "Copies that are missing, or came back.",
                _json(_ref("Queue")),
                "400 503",
                [
                    _query("node_id", "Of this target only.", TEXT),
                    _query("status", "Of this status only.", _one_of(*ItemStatus.__members__)),
                    _query("limit", "Items in an answer.", _number(QUEUE_LIMIT, QUEUE_LIMIT_MAX)),
                ],
            )
        },
    }


def _reading(name: str, content: Json) -> Json:
    get = _operation(name, "Read a file.", content, "400 404 412 416 503", [_FILE_ID, *_CONDITIONS])
    get["responses"] |= {"206": content | {"description": "Some of it."}, "304": {"description": "Unchanged."}}
    head = {**get, "operationId": f"{name}Head", "summary": "What reading a file would begin with."}
    head["responses"] = {status: {"description": answer["description"]} for status, answer in get["responses"].items()}
    return {"get": get, "head": head}
