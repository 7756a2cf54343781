"""What MLflow is told of a bundle: pure functions from verified evidence to params, metrics, tags and texts.

MLflow's rules are kept here: names of letters, digits and ``_-. :/`` of at most 250 characters, values of a bounded
length, batches of a bounded number. What a rule would refuse is made to fit and stays told apart, never dropped.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clearway.bundle import CHALLENGER
from clearway.comparison import flatten
from clearway.files import sha256_bytes
from clearway.lineage import Lineage
from clearway.secretless import shown
from clearway.snapshot import Snapshot

DIGEST_TAG = "digest"
LONGEST_NAME, LONGEST_PARAM, LONGEST_TAG, LONGEST_DESCRIPTION = 250, 500, 5000, 5000
"""Characters. Of params and tags those of older servers: newer ones take 6,000 and 8,000."""
PARAMS_PER_BATCH, METRICS_PER_BATCH = 100, 1000
DATASET_DIGEST = 36
"""Characters of a data set's digest that MLflow keeps."""
LONGEST_SOURCE = 60_000
_ILLEGAL = re.compile(r"[^A-Za-z0-9_\-. ]")
_HASH, _LONGEST_PART = 8, 100


@dataclass(frozen=True)
class Content:
    """All that a run, and a version, say of one bundle."""

    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    run_tags: Mapping[str, str]
    """Those that MLflow itself shows, beside ``tags``."""
    description: str
    """Markdown."""
    dataset: Mapping[str, str]
    """name, digest, source and profile of the snapshot it was made from."""


def content_of(
    lineage: Lineage,
    digest: str,
    *,
    model: Mapping[str, Any],
    params: Mapping[str, Any],
    training: Mapping[str, Any],
    validation: Mapping[str, Any],
    snapshot: Snapshot | None,
    card: str,
) -> Content:
    """What MLflow is told of a bundle.

    Parameters
    ----------
    lineage : Lineage
    digest : str
    model : mapping
        ``params.json`` of its payload.
    params : mapping
        Its ``params.yaml``, defaults filled in where this version of the line can.
    training : mapping
        ``training.json``.
    validation : mapping
        ``model_validation.json``; empty where there is none.
    snapshot : Snapshot or None
        None in a bundle of before it was kept.
    card : str
        ``model_card.md``.
    """
    described = _description(card)
    tags = _tags(lineage, digest, validation, str(model.get("train", {}).get("estimator", "")))
    run_tags = {"mlflow.note.content": described, "mlflow.source.type": "JOB", "mlflow.source.name": "clearway"}
    if lineage.git_commit:
        run_tags["mlflow.source.git.commit"] = lineage.git_commit
    return Content(
        params=_params(model, params),
        metrics=legal(dict(_metrics(lineage, training, validation))),
        tags=tags,
        run_tags=run_tags,
        description=described,
        dataset=_dataset(lineage, snapshot),
    )


def legal(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values under names that MLflow takes: see :func:`name`, which made those of several parts.

    Names that differ by the case of their letters alone, which MySQL takes for one, end in a hash of what they were.

    >>> legal({"UA": 1, "é %": 2})
    {'UA': 1, '_ _-5ecf7cde': 2}
    """
    folded = Counter(key.casefold() for key in values)
    made = {}
    for key, value in values.items():
        written = "/".join(map(_legal, key.split("/")))
        if folded[key.casefold()] > 1 or len(written) > LONGEST_NAME:
            written = f"{written[: LONGEST_NAME - _HASH - 1]}-{_hash(key)}"
        made[written] = value
    return made


def name(*parts: str) -> str:
    """Parts joined by ``/``, which MLflow groups by, each as MLflow takes it.

    A part that had to be changed ends in a hash of what it was: it stays apart, and is called the same in each run.

    >>> name("slice", "carrier", "UA", "roc_auc")
    'slice/carrier/UA/roc_auc'
    """
    return "/".join(map(_legal, parts))


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Consecutive pieces of at most ``size``; one empty piece where there is nothing."""
    for start in range(0, max(len(items), 1), size):
        yield items[start : start + size]


def _legal(part: str) -> str:
    made = _ILLEGAL.sub("_", part)
    if made == part and made.strip(".") and len(made) <= _LONGEST_PART:
        return made
    return f"{made[:_LONGEST_PART].strip('.') or '_'}-{_hash(part)}"


def _hash(text: str) -> str:
    return sha256_bytes(text.encode("utf-8", "surrogatepass"))[:_HASH]


def _params(model: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, str]:
    """Everything in ``params.yaml``, and under short names what made this very model."""
    own = {key: value for key, value in model.items() if key != "train"}
    flat = {**flatten(params), **flatten(own), **flatten(dict(model.get("train", {})))}
    written = {key: _value(shown(value, key.rpartition(".")[2])) for key, value in flat.items()}
    return legal(written)


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_PARAM else text[: LONGEST_PARAM - 1] + "…"


def _metrics(
    lineage: Lineage, training: Mapping[str, Any], validation: Mapping[str, Any]
) -> Iterator[tuple[str, float]]:
    mine = training[lineage.role]
    measured: Mapping[str, Any] = validation.get("measured") or {}
    challenger = lineage.role == CHALLENGER
    plain: dict[str, Any] = {
        **{f"holdout_{key}": value for key, value in lineage.metrics.items()},
        **{f"training_{key}": value for key, value in mine["training_metrics"].items()},
        "training_seconds": mine["seconds"],
        "peak_memory_mb": training.get("peak_memory_mb"),
        "training_rows": lineage.training_rows,
        "holdout_rows": validation.get("rows"),
    }
    for role, values in (validation.get("metrics") or {}).items():
        if role != lineage.role:
            plain |= {f"holdout_{role}_{key}": value for key, value in (values or {}).items()}
    for part in measured.get("parts", ()):
        where = ("slice", part["column"], part["value"])
        plain[name(*where, "rows")] = part["rows"]
        for role, values in part["metrics"].items():
            prefix = "" if role == lineage.role else f"{role}_"
            plain |= {name(*where, f"{prefix}{key}"): value for key, value in values.items()}
        if challenger and part["interval"]:
            compared = measured["metric"]
            plain |= {name(*where, f"{compared}_{end}"): part["interval"][end] for end in ("lower", "upper")}
    if challenger:
        for key, found in (measured.get("intervals") or {}).items():
            plain |= {f"holdout_{key}_{end}": found[end] for end in ("lower", "upper")}
        for one in measured.get("importances", ()):
            plain[name("importance", one["feature"])] = one["mean"]
        for key, found in (validation.get("calibration") or {}).items():
            if isinstance(found, Mapping):
                plain[f"calibration_{key}"] = found.get("estimate")
        for gate in validation.get("gates", ()):
            ends = ("estimate", "lower", "upper", "threshold")
            plain |= {name("gate", gate["name"], end): gate.get(end) for end in ends}
    for key, value in plain.items():
        if isinstance(value, int | float) and math.isfinite(value):
            yield key, float(value)


def _tags(lineage: Lineage, digest: str, validation: Mapping[str, Any], estimator: str) -> dict[str, str]:
    challenger = lineage.role == CHALLENGER
    gates = validation.get("gates", ()) if challenger else ()
    uncertain = [gate["name"] for gate in gates if gate["status"] == "unknown"]
    tags = {
        DIGEST_TAG: digest,
        "role": lineage.role,
        "as_of": lineage.as_of.isoformat() if lineage.as_of else "",
        "estimator": estimator,
        "data_sha256": lineage.snapshot_sha256,
        "recipe_sha256": lineage.recipe_sha256,
        "lock_sha256": lineage.lock_sha256 or "",
        "git_commit": lineage.git_commit or "",
        "code_commit": lineage.code_commit or "",
        "trigger": lineage.trigger,
        "reasons": ", ".join(lineage.reasons),
        "verdict": str(validation.get("verdict", "")) if challenger else "",
        "verdict_reason": str(validation.get("reason", "")) if challenger else "",
        "champion": str(validation.get("champion_digest") or "") if challenger else "",
        "gates_unknown": ", ".join(uncertain),
        **{f"package.{package}": version for package, version in lineage.packages.items()},
    }
    return {_legal(key): _cut(value, LONGEST_TAG) for key, value in tags.items() if value}


def _dataset(lineage: Lineage, snapshot: Snapshot | None) -> dict[str, str]:
    tables = {} if snapshot is None else snapshot.tables
    source = {
        "snapshot_sha256": lineage.snapshot_sha256,
        "as_of": lineage.as_of.isoformat() if lineage.as_of else None,
        "tables": {
            key: {"rows": table.rows, "sha256": table.sha256, "source": shown(table.source)}
            for key, table in tables.items()
        },
    }
    profile = {"training_rows": lineage.training_rows, "labelled_rows": lineage.labelled_rows}
    return {
        "name": f"{lineage.project} snapshot",
        "digest": lineage.snapshot_sha256[:DATASET_DIGEST],
        "source": _source(source),
        "profile": json.dumps(profile),
    }


def _source(source: dict[str, Any]) -> str:
    """As JSON; without the tables where there are too many of them: the snapshot's hash names them all."""
    written = json.dumps(source)
    return written if len(written) <= LONGEST_SOURCE else json.dumps({**source, "tables": len(source["tables"])})


def _description(card: str) -> str:
    """The card without its front matter, cut at the end of a section where it is too long."""
    text = re.sub(r"\A---\n.*?\n---\n+", "", card, flags=re.DOTALL)
    if len(text) <= LONGEST_DESCRIPTION:
        return text
    rest = "\n\n*The whole card: `model_card.md` among the artifacts.*\n"
    cut = text[: LONGEST_DESCRIPTION - len(rest)]
    section = cut.rfind("\n## ")
    return (cut[:section] if section > 0 else cut).rstrip() + rest


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
