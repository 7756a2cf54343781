"""``GET /docs``: the OpenAPI document for people, one page of HTML without scripts that loads nothing else."""

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import jinja2

_TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}: what it can be asked</title>
<style>
:root { color-scheme: light dark; --ink: #1c2330; --dim: #5b6475; --line: #dde2ea; --back: #fff; --code: #f4f6f9;
        --get: #0b6e4f; --post: #1f4fbf; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --dim: #9aa4b5; --line: #2c3442; --back: #12161d; --code: #1b212b;
          --get: #5fd3a6; --post: #8fb0ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1.25rem 4rem; background: var(--back); color: var(--ink);
       font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.9rem; margin: 0 0 .25rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .4rem; }
p { margin: .4rem 0; } .dim, td.dim { color: var(--dim); }
code, pre { font: .86rem/1.5 ui-monospace, monospace; background: var(--code); border-radius: 4px; }
code { padding: .1rem .3rem; overflow-wrap: anywhere; }
pre { padding: .8rem 1rem; overflow-x: auto; margin: .3rem 0; } pre code { padding: 0; overflow-wrap: normal; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; } th { font-weight: 600; color: var(--dim); font-size: .85rem; }
th, td { text-align: left; vertical-align: top; padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--line); }
.verb { font: 600 .8rem ui-monospace, monospace; } .get { color: var(--get); } .post { color: var(--post); }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ about }}</p>
<p class="dim">The same for programs: <a href="openapi.json">openapi.json</a>, OpenAPI {{ openapi }}.</p>

{% for row in rows %}
<h2>{{ row.title }}</h2>
<div class="wide"><table>
<tr><th>field</th><th>type</th><th>allowed</th><th>example</th></tr>
{% for field in row.fields %}
<tr><td><code>{{ field.name }}</code>{% if field.needed %} <span class="dim">needed</span>{% endif %}</td>
<td>{{ field.type }}</td><td>{{ field.allowed }}</td><td class="dim">{{ field.example }}</td></tr>
{% endfor %}
</table></div>
{% endfor %}

{% if examples %}
<h2>Ask it</h2>
{% for example in examples %}
<h3>{{ example.title }}</h3>
<pre><code>{{ example.command }}</code></pre>
{% endfor %}
{% endif %}

<h2>Paths</h2>
<div class="wide"><table>
{% for path in paths %}
<tr><td><span class="verb {{ path.verb | lower }}">{{ path.verb }}</span></td><td><code>{{ path.path }}</code></td>
<td>{{ path.summary }}</td></tr>
{% endfor %}
</table></div>

<h2>Refusals</h2>
<p>A refused request is answered with one line that names the field, as <code>{"error": "…"}</code>
(<code>/invocations</code>: <code>{"error_code": "…", "message": "…"}</code>).</p>
<div class="wide"><table>
{% for status, meaning in refusals %}
<tr><td><code>{{ status }}</code></td><td>{{ meaning }}</td></tr>
{% endfor %}
</table></div>
</body>
</html>
"""


def render_page(document: Mapping[str, Any], address: str) -> str:
    """The page of a document of :func:`clearway.serving.openapi.describe_api`; ``address`` is where it was asked."""
    schemas = document["components"]["schemas"]
    row = schemas["Row"]
    kinds = row.get("anyOf", [row])
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_TEMPLATE).render(
        title=document["info"]["title"],
        about=document["info"]["description"],
        openapi=document["openapi"],
        rows=[
            {"title": kind.get("description", "a row").capitalize(), "fields": list(_fields(kind))} for kind in kinds
        ],
        examples=list(_examples(document, address)),
        paths=[
            {"verb": verb.upper(), "path": path, "summary": operation["summary"]}
            for path, operations in document["paths"].items()
            for verb, operation in operations.items()
        ],
        refusals=list(_refusals(document)),
    )


def _fields(row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, schema in row.get("properties", {}).items():
        types = schema.get("type", "")
        example = schema.get("examples", [""])[0]
        yield {
            "name": name,
            "needed": name in row.get("required", ()),
            "type": " or ".join(types) if isinstance(types, list) else types,
            "allowed": _allowed(schema),
            "example": "" if example == "" else json.dumps(example, ensure_ascii=False),
        }


def _allowed(schema: Mapping[str, Any]) -> str:
    said = []
    if "enum" in schema:
        said.append(", ".join(json.dumps(one, ensure_ascii=False) for one in schema["enum"]))
    elif "minimum" in schema and max(abs(schema["minimum"]), abs(schema["maximum"])) < 1e15:
        said.append(f"{schema['minimum']:,} to {schema['maximum']:,}")
    elif "minimum" in schema and schema["minimum"] > -1e15:
        said.append(f"at least {schema['minimum']:,}")
    elif "maximum" in schema and schema["maximum"] < 1e15:
        said.append(f"at most {schema['maximum']:,}")
    if "pattern" in schema and "description" not in schema:
        said.append(f"matches {schema['pattern']}")
    if "description" in schema:
        said.append(schema["description"])
    return "; ".join(said)


def _examples(document: Mapping[str, Any], address: str) -> Iterator[dict[str, str]]:
    paths = {
        "One row": ("/predict", "Row"),
        "Many rows": ("/predict", "Rows"),
        "Tensors: Open Inference Protocol": ("/v2/models/{name}/infer", "InferRequest"),
        "A table: MLflow": ("/invocations", "Invocation"),
    }
    for title, (path, schema) in paths.items():
        for example in document["components"]["schemas"][schema].get("examples", ()):
            path = path.replace("{name}", quote(document["info"]["title"], safe=""))
            body = json.dumps(example, ensure_ascii=False).replace("'", "'\\''")
            command = f"curl {address}{path} -H 'content-type: application/json' \\\n  -d '{body}'"
            yield {"title": title, "command": command}


def _refusals(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    responses = document["components"]["responses"]
    for status, answer in document["paths"]["/predict"]["post"]["responses"].items():
        if "$ref" in answer:
            yield status, responses[answer["$ref"].rpartition("/")[2]]["description"]
    yield "500", "the model failed; the answer names its version"
