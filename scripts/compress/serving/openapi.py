"""The service's OpenAPI document."""

from compress.serving.limits import MAX_BODY, MAX_TEXT, MAX_TEXTS

TEXT = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}
ERROR = {
    "type": "object",
    "required": ["error", "error_type"],
    "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}},
}
PREDICTION = {
    "type": "object",
    "required": ["label", "score"],
    "properties": {
        "label": {"type": "string"},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
        "milliseconds": {"type": "number", "description": "of the batch in the model"},
        "scores": {"type": "object", "additionalProperties": {"type": "number"}},
    },
}
BY_MODEL = {"type": "object", "description": "a key per model", "additionalProperties": PREDICTION}
STATUSES = {
    400: "not JSON, not a string, empty or blank",
    405: "not a POST",
    408: "the body did not arrive in time",
    413: f"a body over {MAX_BODY} bytes, a text over {MAX_TEXT} characters, or more than {MAX_TEXTS} texts",
    415: "not application/json, or compressed",
    429: "overloaded: try again after Retry-After seconds",
    431: "the head is too large",
    500: "a model failed on this text",
    503: "starting or draining, or too many connections are open",
    504: "no response within the deadline",
}


def _content(schema: dict) -> dict:
    return {"application/json": {"schema": schema}}


def _post(summary: str, body: dict, result: dict) -> dict:
    errors = {str(status): {"description": text, "content": _content(ERROR)} for status, text in STATUSES.items()}
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": _content(body)},
            "responses": {"200": {"description": "every model's prediction", "content": _content(result)}} | errors,
        }
    }


def _get(summary: str, *statuses: int) -> dict:
    return {"get": {"summary": summary, "responses": {str(s): {"description": summary} for s in (200, *statuses)}}}


DOCUMENT = {
    "openapi": "3.1.0",
    "info": {"title": "Compressed BERT classifiers", "version": "1"},
    "paths": {
        "/process": _post("One text: every model's label and score", TEXT, BY_MODEL),
        "/predict": _post(
            "One text or several; all scores on request",
            {
                "type": "object",
                "required": ["text"],
                "additionalProperties": False,
                "properties": {
                    "text": {"oneOf": [TEXT, {"type": "array", "items": TEXT, "minItems": 1, "maxItems": MAX_TEXTS}]},
                    "scores": {"type": "boolean", "default": False},
                },
            },
            {"type": "object", "properties": {"predictions": {"type": "array", "items": BY_MODEL}}},
        ),
        "/livez": _get("The process is alive", 503),
        "/readyz": _get("The models are loaded and requests are admitted", 503),
        "/healthcheck": _get("The same as /readyz", 503),
        "/info": _get("The models, how each is batched, and the service's limits"),
        "/metrics": _get("Prometheus metrics"),
        "/openapi.json": _get("This document"),
        "/": _get("A page to try the models"),
    },
}
