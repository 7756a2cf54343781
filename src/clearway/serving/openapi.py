"""What a server can be asked, as OpenAPI 3.1: made from the versions that are live."""

from collections.abc import Iterable, Mapping
from typing import Any

from clearway import __version__
from clearway.encoding import Feature, NumericFeature, as_encoded
from clearway.params import ServingParams
from clearway.serving.bodies import CSV, JSON, MAX_REQUEST_ID
from clearway.serving.invocations import FORMATS
from clearway.serving.open_inference import DATATYPES, datatype_of
from clearway.serving.requests import FLOAT32_MAX, MAX_NAME
from clearway.serving.state import MIN_PREFIX, Active
from clearway.target import BINARY, Target

Schema = dict[str, Any]
MAX_EXAMPLES = 3
_DOCUMENT: Schema = {"openapi": "3.1.0", "jsonSchemaDialect": "https://spec.openapis.org/oas/3.1/dialect/base"}
_INPUT_KINDS: Mapping[str, list[str]] = {
    "key": ["string", "null"],
    "str": ["string", "null"],
    "float": ["number", "null"],
    "int": ["integer", "null"],
    "bool": ["boolean", "null"],
}
_DATE, _CLOCK = (
    r"(1[7-9]|20|21)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])",
    "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]",
)
_TIME = f"^{_DATE}T{_CLOCK}(Z|[+-](0[0-9]|1[0-3]):[0-5][0-9])$"
"""Of the forms that are read, those that one expression can say."""
_ENVELOPE: Mapping[str, Schema] = {
    "id": {"type": ["string", "null"], "minLength": 1, "maxLength": MAX_NAME, "description": "what the row is called"},
    "entity": {
        "type": ["string", "null"],
        "minLength": 1,
        "maxLength": MAX_NAME,
        "description": "what the row is about: an entity sees one version through a rollout",
    },
    "asked_at": {
        "type": ["string", "null"],
        "pattern": _TIME,
        "description": "when it is asked, ISO 8601 with its zone; now where it is left out",
    },
}


def describe_api(active: Active | None, name: str, settings: ServingParams) -> Schema:
    """The OpenAPI document of a server.

    Parameters
    ----------
    active
        What is served; None before the first deployment, and then rows are objects of no known fields.
    name
        Of the model.
    settings
        The limits that rows and bodies have.
    """
    digests = list(active.versions) if active else []
    return {
        **_DOCUMENT,
        "info": {
            "title": name,
            "version": active.table.stable[:MIN_PREFIX] if active else "none",
            "description": _about(active, settings),
        },
        "paths": _paths(name, digests),
        "components": {
            "schemas": _schemas(active, settings),
            "responses": _responses(),
            "parameters": _parameters(digests),
        },
    }


def _about(active: Active | None, settings: ServingParams) -> str:
    served = "Nothing is deployed yet."
    if active is not None:
        served = f"Version {active.table.stable} answers"
        if active.table.canary is not None:
            served += f", and {active.table.canary} {active.table.canary_weight}% of the entities"
        served += "."
    return (
        f"{served} At most {settings.max_rows:,} rows and {settings.max_body_bytes:,} bytes a request. Every answer "
        "names the version that gave it in the header x-clearway-version, and the request in x-request-id. "
        f"Clearway {__version__}."
    )


def feature_schema(feature: Feature) -> Schema:
    """What one value of a feature may be: a JSON Schema that admits what a server admits.

    A category that training never saw is admitted and counted, so the categories of training are only examples. What
    the schema of the data merely warns of is admitted and counted too.
    """
    declared = None if feature.declared is None else as_encoded(feature.declared)
    strict = declared is not None and declared.severity != "warn"
    nullable = feature.nullable and (declared is None or declared.nullable)
    made: Schema = {}
    examples: list[Any]
    if isinstance(feature, NumericFeature):
        whole = declared is not None and declared.kind == "int"
        kind, low, high = ("integer", -(2.0**62), 2.0**62) if whole else ("number", -FLOAT32_MAX, FLOAT32_MAX)
        if declared is not None and strict:
            # as declared: rounding to float32 keeps order, so that what is within is admitted
            low, high = max(low, _end(feature.declared, "min", low)), min(high, _end(feature.declared, "max", high))
        made |= {"minimum": _plain(low), "maximum": _plain(high)}
        seen = [one for one in (feature.minimum, feature.maximum) if one is not None]
        examples = [int(one) if whole else one for one in dict.fromkeys(seen)]
    elif feature.declared is not None and feature.declared.kind == "bool":
        kind, examples = "boolean", [True, False]
    else:
        kind, examples = "string", [*feature.categories[:MAX_EXAMPLES]]
        if declared is not None and strict:
            limits = {"pattern": declared.pattern, "minLength": declared.min_length, "maxLength": declared.max_length}
            made |= {key: value for key, value in limits.items() if value is not None}
            if declared.pattern is not None:
                made["pattern"] = f"^(?:{declared.pattern})$"
    said = feature.declared
    if said is not None and said.values is not None and strict and said.min_known is None:
        made["enum"] = [*said.values, *([None] if nullable else [])]
    made["type"] = [kind, "null"] if nullable else kind
    if examples:
        made["examples"] = examples
    if feature.declared is not None and feature.declared.severity == "warn":
        made["description"] = "values outside of what is usual are accepted and counted"
    return made


def _end(declared: Any, end: str, otherwise: float) -> float:
    bound = getattr(declared, end)
    return otherwise if bound is None else float(bound)


def _plain(bound: float) -> float | int:
    return int(bound) if bound.is_integer() and abs(bound) < 2**53 else bound


def _schemas(active: Active | None, settings: ServingParams) -> dict[str, Schema]:
    rows = _row_schemas(active)
    row: Schema = rows[0] if len(rows) == 1 else {"anyOf": rows}
    target = active.stable.version.model.target if active else BINARY
    schemas = {
        "Row": row,
        "Rows": {
            "type": "object",
            "properties": {"rows": _many(_ref("Row"), settings.max_rows)},
            "required": ["rows"],
            "additionalProperties": False,
        },
        "Answer": _answer(target),
        "Answers": _object({"predictions": {"type": "array", "items": _ref("Answer")}}, ["predictions"]),
        "Error": _object({"error": {"type": "string"}, "version": {"type": "string"}}, ["error"]),
        **_tensor_schemas(active, settings),
        **_table_schemas(target, active, settings),
        "Ready": _object({"ready": {"type": "boolean"}}, ["ready"]),
        "Live": _object({"live": {"type": "boolean"}}, ["live"]),
        "State": {"type": "object", "description": "what is served, and why a newer routing table is not"},
    }
    if example := _example(active):
        schemas["Row"]["examples"] = [example]
        schemas["Rows"]["examples"] = [{"rows": [example]}]
        schemas["InferRequest"]["examples"] = [{"inputs": _tensors(active, example)}]
        schemas["Invocation"]["examples"] = [{"dataframe_records": [example]}]
    return schemas


def _row_schemas(active: Active | None) -> list[Schema]:
    """Rows with all features, and rows by key: each live version must be able to take either."""
    if active is None:
        return [{"type": "object"}]
    versions = active.loaded
    features = {feature.name: feature for loaded in versions for feature in loaded.version.model.schema.features}
    # of two versions that know a feature, the stable one says what it may be
    features |= {feature.name: feature for feature in active.stable.version.model.schema.features}
    properties = {name: feature_schema(feature) for name, feature in features.items()}
    made = [_closed({**properties, **_ENVELOPE}, list(features), "a row with all features")]
    if (keyed := active.stable.keyed) is not None and all(loaded.keyed is not None for loaded in versions):
        kinds = {name: {"type": _INPUT_KINDS[kind]} for name, kind in keyed.fields.items()}
        for name in (name for name, kind in keyed.fields.items() if kind == "key"):
            kinds[name]["maxLength"] = MAX_NAME  # type: ignore[assignment]
        made.append(_closed({**kinds, **_ENVELOPE}, list(kinds), "a row by key: its features are looked up"))
    return made


def _closed(properties: Mapping[str, Schema], required: list[str], description: str) -> Schema:
    return {
        "type": "object",
        "description": description,
        "properties": dict(properties),
        "required": required,
        "additionalProperties": False,
    }


def _object(properties: Mapping[str, Schema], required: Iterable[str]) -> Schema:
    return {"type": "object", "properties": dict(properties), "required": list(required)}


def _many(items: Schema, most: int) -> Schema:
    return {"type": "array", "items": items, "minItems": 1, "maxItems": most}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _answer(target: Target) -> Schema:
    label: Schema = {"type": {"binary": "integer", "multiclass": "string", "regression": "number"}[target.kind]}
    if target.binary:
        label["enum"] = [0, 1]
    properties: dict[str, Schema] = {
        "id": {"type": "string"},
        "version": {"type": "string", "description": "digest of the version that answered"},
        "role": {"enum": ["stable", "canary"]},
        "score": {"type": "number"},
        "label": label,
        "features": {"type": "object", "description": "of a row by key: what became of each view without a value"},
    }
    if target.classes:
        properties["probabilities"] = {"type": "object", "additionalProperties": {"type": "number"}}
    return _object(properties, ["id", "version", "role", "score", "label"])


def _tensor_schemas(active: Active | None, settings: ServingParams) -> dict[str, Schema]:
    parameters: Schema = {"type": ["object", "null"]}
    value: Schema = {"type": ["number", "string", "boolean", "null"]}
    shape: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 2}
    tensor = _closed(
        {
            "name": {"type": "string"},
            "shape": shape | {"description": "[rows] or [rows, 1]"},
            "datatype": {"enum": list(DATATYPES)},
            "parameters": parameters,
            "data": {"type": "array", "items": {"anyOf": [value, {"type": "array", "items": value}]}, "minItems": 1},
        },
        ["name", "shape", "datatype", "data"],
        "one feature of all rows; null is a value that is not known",
    )
    output = _closed({"name": {"type": "string"}, "parameters": parameters}, ["name"], "an output that is wanted")
    identity: Schema = {"type": ["string", "null"], "minLength": 1, "maxLength": MAX_NAME // 2}
    metadata = _object(
        {
            "name": {"type": "string"},
            "datatype": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer"}},
        },
        ["name", "datatype", "shape"],
    )
    names = {"type": "array", "items": {"type": "string"}}
    return {
        "InferRequest": _closed(
            {
                "id": identity,
                "model_name": {"type": ["string", "null"]},
                "parameters": parameters,
                "inputs": {"type": "array", "items": _ref("Tensor"), "minItems": 1},
                "outputs": {"type": ["array", "null"], "items": output},
            },
            ["inputs"],
            f"columns of at most {settings.max_rows} rows, one input for each feature",
        ),
        "Tensor": tensor,
        "InferResponse": _object(
            {
                "model_name": {"type": "string"},
                "model_version": {"type": "string"},
                "id": {"type": "string"},
                "outputs": {"type": "array", "items": _ref("Tensor")},
            },
            ["model_name", "model_version", "id", "outputs"],
        ),
        "Metadata": metadata,
        "ModelMetadata": _object(
            {
                "name": {"type": "string"},
                "versions": names,
                "platform": {"type": "string"},
                "inputs": {"type": "array", "items": _ref("Metadata")},
                "outputs": {"type": "array", "items": _ref("Metadata")},
            },
            ["name", "platform", "inputs", "outputs"],
        ),
        "ServerMetadata": _object(
            {"name": {"type": "string"}, "version": {"type": "string"}, "extensions": names},
            ["name", "version", "extensions"],
        ),
        "ModelReady": _object({"name": {"type": "string"}, "ready": {"type": "boolean"}}, ["name", "ready"]),
    }


def _table_schemas(target: Target, active: Active | None, settings: ServingParams) -> dict[str, Schema]:
    rows = _many(_ref("Row"), settings.max_rows)
    forms: dict[str, Schema] = {
        "dataframe_split": _closed(
            {
                "columns": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
                "data": _many({"type": "array"}, settings.max_rows),
                "index": {"type": "array"},
            },
            ["columns", "data"],
            "a table: names of features, and rows of values",
        ),
        "dataframe_records": rows,
        "instances": rows,
        "inputs": {"anyOf": [rows, {"type": "object", "description": "features by name: an array each"}]},
    }
    answer = {"binary": "boolean", "multiclass": "string", "regression": "number"}[target.kind]
    properties: dict[str, Schema] = {"score": {"type": "number"}, "answer": {"type": answer}}
    properties |= {f"probability_{name}": {"type": "number"} for name in target.classes}
    return {
        "Invocation": {
            "type": "object",
            "oneOf": [_closed({form: forms[form]}, [form], "as MLflow's clients send it") for form in FORMATS],
        },
        "Predictions": _object(
            {"predictions": {"type": "array", "items": _object(properties, properties)}}, ["predictions"]
        ),
        "Refusal": _object(
            {"error_code": {"type": "string"}, "message": {"type": "string"}}, ["error_code", "message"]
        ),
    }


def _example(active: Active | None) -> dict[str, Any]:
    """A row that is answered, as far as the schema tells."""
    if active is None:
        return {}
    row = {}
    for loaded in active.loaded:
        for feature in loaded.version.model.schema.features:
            described = feature_schema(feature)
            choices = [*described.get("enum", ()), *described.get("examples", ())]
            inside = [one for one in choices if _admits(described, one)]
            row[feature.name] = inside[0] if inside else described.get("minimum")
    return row


def _admits(described: Schema, value: Any) -> bool:
    if type(value) in (int, float):
        return bool(described["minimum"] <= value <= described["maximum"])
    return value is not None


def _tensors(active: Active | None, row: Mapping[str, Any]) -> list[Schema]:
    versions = active.loaded if active is not None else ()
    features = {feature.name: feature for loaded in versions for feature in loaded.version.model.schema.features}
    return [
        {"name": name, "shape": [1], "datatype": datatype_of(features[name]), "data": [value]}
        for name, value in row.items()
    ]


def _parameters(digests: list[str]) -> dict[str, Schema]:
    return {
        "RequestId": {
            "name": "x-request-id",
            "in": "header",
            "description": "given back, and the name of a row that has no id; made where it is empty",
            "schema": {"type": "string", "pattern": f"^[!-~]{{0,{MAX_REQUEST_ID}}}$"},
        },
        "Version": {
            "name": "x-clearway-version",
            "in": "header",
            "description": "digest of the live version that must answer: for testers, whose requests are no sample",
            "schema": {"type": "string", "enum": digests} if digests else {"type": "string"},
        },
    }


def _responses() -> dict[str, Schema]:
    def refusal(description: str, schema: str = "Error") -> Schema:
        return {"description": description, "content": {JSON: {"schema": _ref(schema)}}}

    made: dict[str, Schema] = {}
    for suffix, schema in (("", "Error"), ("Invocation", "Refusal")):
        made |= {
            f"Malformed{suffix}": refusal("no valid JSON, CSV or header", schema),
            f"Unknown{suffix}": refusal("no such model or version is live here", schema),
            f"TooLarge{suffix}": refusal("more rows or bytes than the limits", schema),
            f"MediaType{suffix}": refusal("another content type, character set or encoding", schema),
            f"Refused{suffix}": refusal("a field is refused, and named", schema),
            f"Unavailable{suffix}": refusal("nothing is deployed yet, or the feature store does not answer", schema),
        }
    return made


def _paths(name: str, digests: list[str]) -> dict[str, Schema]:
    """Each path with its operations, those that a newcomer asks first standing first."""
    asking = [{"$ref": "#/components/parameters/RequestId"}, {"$ref": "#/components/parameters/Version"}]
    model: Schema = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "enum": [name]}}
    version: Schema = {
        "name": "version",
        "in": "path",
        "required": True,
        "description": f"digest of a live version, or its first {MIN_PREFIX} characters or more",
        "schema": {"type": "string", "enum": digests} if digests else {"type": "string"},
    }
    rows = {"anyOf": [_ref("Row"), _ref("Rows")]}
    answers = {"anyOf": [_ref("Answer"), _ref("Answers")]}
    invocation = {JSON: {"schema": _ref("Invocation")}, CSV: {"schema": {"type": "string"}}}
    paths: dict[str, Schema] = {
        "/predict": _post("predict", "Predict one row, or many", {JSON: {"schema": rows}}, answers, asking),
        "/invocations": _post(
            "invoke", "Predict a table, as MLflow's clients ask", invocation, _ref("Predictions"), asking, "Invocation"
        ),
        "/v2": _get("server", "What this server is", "ServerMetadata"),
        "/v2/health/live": _get("live", "Whether the process answers", "Live"),
        "/v2/health/ready": _get("ready", "Whether predictions are answered", "Ready", unavailable="Ready"),
    }
    for path, given, of in (
        ("/v2/models/{name}", [model], ""),
        ("/v2/models/{name}/versions/{version}", [model, version], "_version"),
    ):
        which = " of one version" if of else ""
        body = {JSON: {"schema": _ref("InferRequest")}}
        paths[path] = _get(f"model{of}", f"Inputs and outputs{which}", "ModelMetadata", given, unavailable="Error")
        paths[f"{path}/ready"] = _get(
            f"model_ready{of}", f"Whether it answers{which}", "ModelReady", given, unavailable="Error"
        )
        paths[f"{path}/infer"] = _post(
            f"infer{of}", f"Predict tensors{which}", body, _ref("InferResponse"), [*given, *asking[: 1 if of else 2]]
        )
    paths |= {
        "/ping": _get(
            "ping", "Whether predictions are answered, for MLflow's clients", None, kind="text/plain", unavailable=""
        ),
        "/health": _get("health", "The same", None, kind="text/plain", unavailable=""),
        "/version": _get("mlflow_version", "The version of MLflow whose protocol is spoken", None, kind="text/plain"),
        "/": _get("state", "What is served", "State"),
        "/metrics": _get("metrics", "Counts, in the text format of Prometheus", None, kind="text/plain"),
        "/openapi.json": _get("openapi", "This document", "State"),
        "/docs": _get("docs", "This document for people", None, kind="text/html"),
    }
    return paths


def _post(
    operation: str, summary: str, body: Schema, answer: Schema, parameters: list[Schema], refusal: str = ""
) -> Schema:
    errors = {400: "Malformed", 404: "Unknown", 413: "TooLarge", 415: "MediaType", 422: "Refused", 503: "Unavailable"}
    return {
        "post": {
            "operationId": operation,
            "summary": summary,
            "parameters": parameters,
            "requestBody": {"required": True, "content": body},
            "responses": {
                "200": {"description": "the predictions", "content": {JSON: {"schema": answer}}},
                **{str(status): {"$ref": f"#/components/responses/{name}{refusal}"} for status, name in errors.items()},
            },
        }
    }


def _get(
    operation: str,
    summary: str,
    schema: str | None,
    parameters: list[Schema] | None = None,
    *,
    unavailable: str | None = None,
    kind: str = JSON,
) -> Schema:
    content = {kind: {"schema": _ref(schema) if schema else {}}}
    responses: Schema = {"200": {"description": "the answer", "content": content}}
    if parameters:
        responses["404"] = {"$ref": "#/components/responses/Unknown"}
    if unavailable is not None:
        failed = {kind: {"schema": _ref(unavailable) if unavailable else {}}}
        responses["503"] = {"description": "not now", "content": failed}
    described: Schema = {"operationId": operation, "summary": summary, "responses": responses}
    return {"get": {**described, **({"parameters": parameters} if parameters else {})}}
