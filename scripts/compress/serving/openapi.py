"""The service's OpenAPI document."""

from compress.serving.app import MAX_BODY, MAX_TEXT, MAX_TEXTS

TEXT = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}
ERROR = {
    "type": "object",
    "required": ["error", "error_type"],
    "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}},
}
BRIEF = {
    "type": "object",
    "required": ["label", "score"],
    "properties": {
        "label": {"type": "string"},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
        "milliseconds": {"type": "number", "description": "of the batch in the model"},
        "scores": {"type": "object", "additionalProperties": {"type": "number"}},
    },
}
BY_MODEL = {"type": "object", "description": "a key per model", "additionalProperties": BRIEF}
WRONG = {
    400: "not JSON, not a string, empty or blank",
    405: "not a POST",
    408: "the body did not come in time",
    413: f"a body over {MAX_BODY} bytes, a text over {MAX_TEXT} characters, or more than {MAX_TEXTS} texts",
    415: "not application/json",
    429: "overloaded: try again after Retry-After seconds",
    431: "the head is too large",
    500: "a model failed on this text",
    501: "an upgrade of the protocol was asked for",
    503: "starting or draining",
    504: "no answer within the deadline",
}


def content(schema: dict) -> dict:
    return {"application/json": {"schema": schema}}


def post(summary: str, body: dict, answer: dict) -> dict:
    errors = {str(status): {"description": text, "content": content(ERROR)} for status, text in WRONG.items()}
    return {
        "post": {
            "summary": summary,
            "requestBody": {"required": True, "content": content(body)},
            "responses": {"200": {"description": "every model's answer", "content": content(answer)}} | errors,
        }
    }


def get(summary: str, *statuses: int) -> dict:
    return {"get": {"summary": summary, "responses": {str(s): {"description": summary} for s in statuses or (200,)}}}


DOCUMENT = {
    "openapi": "3.1.0",
    "info": {"title": "Compressed BERT classifiers", "version": "1"},
    "paths": {
        "/process": post("One text, every model's label and score", TEXT, BY_MODEL),
        "/predict": post(
            "One text or several, all scores on request",
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
        "/livez": get("The process answers"),
        "/readyz": get("The models are loaded and requests are admitted", 200, 503),
        "/healthcheck": get("The same as /readyz", 200, 503),
        "/info": get("The models, how each is batched, and the service's limits"),
        "/metrics": get("Prometheus metrics"),
        "/openapi.json": get("This document"),
        "/": get("A page to try the models"),
    },
}
