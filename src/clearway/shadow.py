"""What a shadow's answers say about it: both versions answered the same questions, so the comparison is paired.

:func:`compare` and :func:`judge` are pure; :func:`compare_shadow` reads the ledger and the prediction log for them.

The unit is the entity, as it is what the answers depend on: intervals are over the first pair of each (of each row
where rows have no entity), whose number is what ``min_pairs`` asks for. A flip is an answer that would change: another
label at each version's own threshold, another class.

All intervals hold at any number of looks, so that a shadow may be asked about until it is decided. That of a share is
exact, a mixture of likelihood ratios (Robbins, Ann. Math. Stat. 41, 1970; here with the weight Beta(1/2, 1/2)); that of
a mean is an asymptotic confidence sequence (Waudby-Smith et al., Ann. Stat. 52, 2024), tightest at ``min_pairs``.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from clearway.errors import ClearwayError
from clearway.ledger import Entry, read_ledger
from clearway.params import Params, ShadowRules
from clearway.target import BINARY, Target
from clearway.targets import target_of
from clearway.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

    from clearway.reporting import Page

Verdict = Literal["pass", "fail", "hold"]
Floats = NDArray[np.float64]

SHADOW = "shadow"
READ = ("id", "revision", "version", "role", "entity", "served_at", "status", "latency_ms", "score", "probabilities")
QUANTILES = (0.05, 0.5, 0.95)


class Share(BaseModel):
    """A share with its interval; null where nothing was counted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    of: int
    estimate: float | None
    lower: float | None
    upper: float | None


class Difference(BaseModel):
    """Shadow minus stable, in probability, or in spreads of the stable model's labels; null without pairs.

    Of several classes half the sum of the differences of their probabilities, which is never negative.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float | None
    lower: float | None
    upper: float | None
    quantiles: tuple[float, ...] = ()
    """At :data:`QUANTILES`."""
    largest: float | None
    """In size."""


class Latency(BaseModel):
    """Milliseconds. The stable version's are of whole requests, the shadow's of encoding and scoring alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    p50: float | None
    p95: float | None
    p99: float | None


class ShadowReport(BaseModel):
    """What a shadow showed beside the stable version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: str
    digest: str
    stable: str
    since_revision: int
    """Ledger entry that opened the shadow."""
    verdict: Verdict
    """pass: all that is asked was shown; fail: the opposite of some of it was; hold: neither yet."""
    sentence: str
    copies: int
    """Answered by the shadow, well or not."""
    pairs: int
    """Of those, with both scores."""
    units: int
    """Different entities among the pairs; rows without one count each."""
    uncopied: int
    """Answers of the stable version that the shadow never saw: a share was asked for, or the queue was full."""
    flips: Share | None
    """Null for numbers, which have no label."""
    errors: Share
    stable_errors: Share
    """Of the same requests."""
    difference: Difference
    latency: Latency
    stable_latency: Latency


class Versions(NamedTuple):
    """What is compared, and how each answers."""

    stable: str
    shadow: str
    target: Target = BINARY
    """Of the stable version."""
    thresholds: tuple[float, float] = (0.5, 0.5)
    """Scores from which stable and shadow answer yes."""


def pair(log: "pd.DataFrame", versions: Versions) -> "pd.DataFrame":
    """Each copy beside the answer that it copies.

    Parameters
    ----------
    log : DataFrame
        Of the prediction log, with the columns :data:`READ`.
    versions : Versions

    Returns
    -------
    DataFrame
        One row per copy whose answer is known: ``entity``, and with the suffixes ``_stable`` and ``_shadow``:
        ``status``, ``latency_ms``, ``score``, ``probabilities``. Rows that share id and time with others, as repeated
        ids in one request do, are left out.
    """
    key, kept = ["id", "served_at"], ["id", "served_at", "entity", "status", "latency_ms", "score", "probabilities"]
    answers = log[(log["role"] == "stable") & (log["version"] == versions.stable)][kept]
    copies = log[(log["role"] == SHADOW) & (log["version"] == versions.shadow)][kept].drop(columns="entity")
    answers, copies = (side[~side.duplicated(key, keep=False)] for side in (answers, copies))
    return answers.merge(copies, on=key, suffixes=("_stable", "_shadow"), validate="one_to_one")


def compare(
    log: "pd.DataFrame", versions: Versions, rules: ShadowRules, *, environment: str, since_revision: int
) -> ShadowReport:
    """Compare the shadow with the stable version on the questions that both were asked, and judge it by ``rules``.

    Parameters
    ----------
    log : DataFrame
        As of :func:`pair`; since the shadow was opened.
    versions : Versions
    rules : ShadowRules
    environment, since_revision
        For the report.
    """
    pairs = pair(log, versions)
    answered = [(pairs[f"status_{side}"] == 200) & pairs[f"score_{side}"].notna() for side in ("stable", SHADOW)]
    both = pairs[answered[0] & answered[1]]
    unit = both["entity"].where(both["entity"].notna(), both["id"])
    first = both[~unit.duplicated()]
    everyone = pairs["entity"].where(pairs["entity"].notna(), pairs["id"])
    asked = ~everyone.duplicated()
    flips = None
    if versions.target.kind != "regression":
        flips = _share(int(_flips(first, versions).sum()), len(first), rules.confidence)
    served = int(((log["role"] == "stable") & (log["version"] == versions.stable)).sum())
    report = ShadowReport(
        environment=environment,
        digest=versions.shadow,
        stable=versions.stable,
        since_revision=since_revision,
        verdict="hold",
        sentence="",
        copies=len(pairs),
        pairs=len(both),
        units=len(first),
        uncopied=served - len(pairs),
        flips=flips,
        errors=_share(int((~answered[1] & asked).sum()), int(asked.sum()), rules.confidence),
        stable_errors=_share(int((~answered[0] & asked).sum()), int(asked.sum()), rules.confidence),
        difference=_difference(_differences(first, versions), rules),
        latency=_latency(pairs["latency_ms_shadow"]),
        stable_latency=_latency(pairs["latency_ms_stable"]),
    )
    verdict, sentence = judge(report, rules)
    return report.model_copy(update={"verdict": verdict, "sentence": sentence})


def judge(report: ShadowReport, rules: ShadowRules) -> tuple[Verdict, str]:
    """Whether the shadow showed what the rules ask for, and a sentence that says so.

    A rule is kept when the whole interval keeps it, and broken when the whole interval breaks it. What is broken fails
    at any number of pairs; too few pairs never pass.
    """
    seen = f"{report.units:,} paired entities, {report.copies:,} copies"
    if not report.copies:
        return "hold", "the shadow has answered no copy yet: no traffic proves nothing"
    broken, undecided = [], []
    shares = [("errors", report.errors, rules.max_error_rate)]
    if report.flips is not None:
        shares.append(("flips", report.flips, rules.max_flip_rate))
    for name, share, most in shares:
        told = f"{name} {_percent(share.lower)} to {_percent(share.upper)} (at most {most:g})"
        if share.lower is not None and share.lower > most:
            broken.append(told)
        elif share.upper is None or share.upper > most:
            undecided.append(told)
    apart, most = report.difference, rules.max_difference
    told = f"mean difference {_signed(apart.lower)} to {_signed(apart.upper)} (within ±{most:g})"
    if apart.lower is None or apart.upper is None:
        undecided.append(told)
    elif apart.lower > most or apart.upper < -most:
        broken.append(told)
    elif apart.lower < -most or apart.upper > most:
        undecided.append(told)
    if broken:
        return "fail", f"{seen}: {'; '.join(broken)}"
    if report.units < rules.min_pairs:
        return "hold", f"{seen}: fewer pairs than the {rules.min_pairs:,} that canary.shadow.min_pairs asks for"
    if undecided:
        return "hold", f"{seen}: not decided yet: {'; '.join(undecided)}"
    return "pass", f"{seen}: errors, flips and differences are within canary.shadow"


def compare_shadow(params: Params, workspace: Workspace, environment: str, digest: str | None = None) -> ShadowReport:
    """Compare a shadow, by default the open one, with the version beside it, over its latest trial.

    The rules are ``canary.shadow``, or their defaults where that is null. It also reads a trial that has ended, so that
    it can be asked when the version is to become the canary.

    Raises
    ------
    UsageError
        There is no such environment.
    ClearwayError
        No shadow is open and none is named, or it was never one; a bundle does not verify; the environment is elsewhere
        and its log cannot be had.
    """
    from clearway.bundle import verify
    from clearway.model import recorded_target, recorded_threshold  # imports ONNX Runtime's types
    from clearway.prediction_log import read_log

    target = target_of(params, workspace, environment)
    target.pull()
    folder = workspace.environment(environment)
    trial = latest_trial(read_ledger(folder, environment), environment, digest)
    target.pull_log(trial[0].sequence)
    log = read_log(folder / "predictions", since_revision=trial[0].sequence, columns=READ)
    log = log[log["revision"] <= trial[-1].sequence]
    shadow, stable = str(trial[0].shadow), trial[0].stable
    target.fetch(stable)
    target.fetch(shadow)
    bundles = [verify(workspace.bundles / one, one) for one in (stable, shadow)]
    thresholds = (recorded_threshold(bundles[0]), recorded_threshold(bundles[1]))
    versions = Versions(stable, shadow, recorded_target(bundles[0]), thresholds)
    rules = params.canary.shadow or ShadowRules()
    return compare(log, versions, rules, environment=environment, since_revision=trial[0].sequence)


def latest_trial(entries: Sequence[Entry], environment: str, digest: str | None = None) -> Sequence[Entry]:
    """The entries of the ledger during which ``digest``, by default the open shadow, was a shadow for the last time.

    Raises
    ------
    ClearwayError
        There is none.
    """
    digest = digest or (entries[-1].shadow if entries else None)
    if digest is None:
        raise ClearwayError(
            f"{environment} has no shadow: open one with scripts/deploy.py --env {environment} --strategy shadow, or "
            "name one that was with --digest"
        )
    ended = next((end for end in range(len(entries), 0, -1) if entries[end - 1].shadow == digest), None)
    if ended is None:
        raise ClearwayError(
            f"{digest[:12]} was never a shadow in {environment}: make it one with scripts/deploy.py "
            f"--env {environment} --strategy shadow --digest {digest}"
        )
    began = ended
    while began > 0 and entries[began - 1].shadow == digest:
        began -= 1
    return entries[began:ended]


def write_report(report: ShadowReport, workspace: Workspace) -> None:
    """Write ``reports/shadow.json`` and ``.html``."""
    from clearway.files import write_json
    from clearway.reporting import write_page

    write_json(workspace.reports / "shadow.json", report.model_dump(mode="json"))
    write_page(workspace.reports / "shadow.html", _page(report))


def summary_rows(report: ShadowReport) -> list[tuple[str, str, str]]:
    """What was measured, of the shadow and of the stable version, as text."""
    apart = report.difference
    flips = "has no label" if report.flips is None else _told(report.flips)
    spread = " / ".join(_signed(value) for value in apart.quantiles) or "none"
    return [
        ("copies answered", f"{report.copies:,}", f"{report.uncopied:,} answers not copied"),
        ("pairs", f"{report.pairs:,}", f"of {report.units:,} entities"),
        ("flips", flips, ""),
        ("errors", _told(report.errors), _told(report.stable_errors)),
        ("mean difference", f"{_signed(apart.mean)} ({_signed(apart.lower)} to {_signed(apart.upper)})", ""),
        ("difference p5 / p50 / p95", spread, ""),
        ("largest difference", "none" if apart.largest is None else f"{apart.largest:.4f}", ""),
        ("latency p50 / p95 / p99, ms", _told_latency(report.latency), _told_latency(report.stable_latency)),
    ]


def summary_text(report: ShadowReport) -> str:
    """The same as an aligned table, then the verdict."""
    rows = [("measured", SHADOW, "stable"), *summary_rows(report)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, f"check shadow: {report.verdict}: {report.sentence}"])


def _flips(pairs: "pd.DataFrame", versions: Versions) -> NDArray[np.bool_]:
    if versions.target.kind == "multiclass":
        said = [[_likeliest(one) for one in pairs[f"probabilities_{side}"]] for side in ("stable", SHADOW)]
        return np.array([mine != theirs for mine, theirs in zip(*said, strict=True)], dtype=bool)
    mine, theirs = (pairs[f"score_{side}"].to_numpy(dtype=np.float64) for side in ("stable", SHADOW))
    changed: NDArray[np.bool_] = (mine >= versions.thresholds[0]) != (theirs >= versions.thresholds[1])
    return changed


def _likeliest(probabilities: object) -> str | None:
    if not isinstance(probabilities, dict) or not probabilities:
        return None
    return str(max(probabilities, key=lambda name: float(probabilities[name])))


def _differences(pairs: "pd.DataFrame", versions: Versions) -> Floats:
    if versions.target.kind == "multiclass":
        both = zip(pairs["probabilities_stable"], pairs["probabilities_shadow"], strict=True)
        return np.array([_variation(mine or {}, theirs or {}) for mine, theirs in both], dtype=np.float64)
    apart = pairs["score_shadow"].to_numpy(dtype=np.float64) - pairs["score_stable"].to_numpy(dtype=np.float64)
    if versions.target.kind == "regression":
        assert versions.target.spread is not None  # checked when it was made
        apart = apart / versions.target.spread
    return np.asarray(apart, dtype=np.float64)


def _variation(mine: dict[str, float], theirs: dict[str, float]) -> float:
    return sum(abs(mine.get(name, 0.0) - theirs.get(name, 0.0)) for name in {*mine, *theirs}) / 2.0


def interval(count: int, of: int, confidence: float) -> tuple[float, float]:
    """Bounds of a share of which ``count`` of ``of`` > 0 were seen, that hold at every look at once.

    A share is in it unless the mixture is ``1 / (1 - confidence)`` times as likely to have made what was seen.
    """
    from scipy.optimize import brentq
    from scipy.special import betaln, xlog1py, xlogy

    evidence = float(betaln(count + 0.5, of - count + 0.5) - betaln(0.5, 0.5) + np.log(1 - confidence))

    def refuted(share: float) -> float:
        return evidence - float(xlogy(count, share) + xlog1py(of - count, -share))

    seen, tiny = count / of, 1e-12
    lower = float(brentq(refuted, tiny, seen)) if refuted(tiny) > 0 and count else 0.0
    upper = float(brentq(refuted, seen, 1 - tiny)) if refuted(1 - tiny) > 0 and count < of else 1.0
    return lower, upper


def _share(count: int, of: int, confidence: float) -> Share:
    if not of:
        return Share(count=0, of=0, estimate=None, lower=None, upper=None)
    lower, upper = interval(count, of, confidence)
    return Share(count=count, of=of, estimate=count / of, lower=lower, upper=upper)


def _difference(apart: Floats, rules: ShadowRules) -> Difference:
    """Of a single pair the mean has no interval."""
    if not apart.size:
        return Difference(mean=None, lower=None, upper=None, largest=None)
    mean, lower, upper = float(apart.mean()), None, None
    if apart.size > 1:
        alpha, n = 1 - rules.confidence, apart.size
        tuned = (-2 * np.log(alpha) + np.log(1 - 2 * np.log(alpha))) / rules.min_pairs
        mass = n * tuned + 1
        reach = float(apart.std(ddof=1) * np.sqrt(2 * mass / (n**2 * tuned) * np.log(np.sqrt(mass) / alpha)))
        lower, upper = mean - reach, mean + reach
    quantiles = tuple(float(value) for value in np.quantile(apart, QUANTILES))
    return Difference(mean=mean, lower=lower, upper=upper, quantiles=quantiles, largest=float(np.abs(apart).max()))


def _latency(values: "pd.Series[float]") -> Latency:
    known = values.dropna().to_numpy(dtype=np.float64)
    if not known.size:
        return Latency(p50=None, p95=None, p99=None)
    p50, p95, p99 = (float(value) for value in np.percentile(known, [50, 95, 99]))
    return Latency(p50=p50, p95=p95, p99=p99)


def _page(report: ShadowReport) -> "Page":
    from clearway.reporting import Page, Table

    table = Table(
        title="The same questions",
        columns=("measured", SHADOW, "stable"),
        rows=summary_rows(report),
        note="Latency is of whole requests where stable answers, and of encoding and scoring alone in the shadow.",
    )
    return Page(
        title=f"Shadow in {report.environment}",
        verdict=report.verdict,
        status={"pass": "pass", "fail": "fail", "hold": "warn"}[report.verdict],
        sentence=report.sentence,
        facts=(
            ("shadow", report.digest),
            ("stable", report.stable),
            ("since entry", str(report.since_revision)),
            ("written", datetime.now(UTC).isoformat(timespec="seconds")),
        ),
        blocks=(table,),
    )


def _told(share: Share) -> str:
    return f"{share.count:,} of {share.of:,} ({_percent(share.lower)} to {_percent(share.upper)})"


def _told_latency(latency: Latency) -> str:
    values = (latency.p50, latency.p95, latency.p99)
    return " / ".join("none" if value is None else f"{value:.2f}" for value in values)


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2%}"


def _signed(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.4f}"
