"""``params.yaml``: every setting of the line, typed. Unknown keys, wrong types and impossible values are refused."""

import json
import math
import os
import posixpath
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from clearway.errors import UsageError
from clearway.strict_yaml import read_mapping

SLUG = r"^[a-z0-9][a-z0-9_-]{0,62}$"
Slug = Annotated[str, Field(pattern=SLUG)]
KubernetesName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
ENTITY_KEY = "entity"
"""The routing key unless params.yaml names another."""

Share = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(gt=0, lt=1)]
PositiveWeight = Annotated[float, Field(gt=0)]
Kind = Literal["binary", "multiclass", "regression"]

METRICS_OF: dict[Kind, tuple[str, ...]] = {
    "binary": (
        "roc_auc", "average_precision", "log_loss", "brier", "accuracy", "precision", "recall", "f1",
        "balanced_accuracy", "matthews_corrcoef",
    ),
    "multiclass": (
        "accuracy", "balanced_accuracy", "precision_macro", "recall_macro", "f1_macro", "log_loss", "brier",
        "roc_auc_ovr", "precision_weighted", "f1_weighted", "matthews_corrcoef",
    ),
    "regression": ("rmse", "mae", "r2", "median_absolute_error", "p95_absolute_error", "explained_variance"),
}  # fmt: skip
"""Names of the metrics of :mod:`clearway.metrics`, which takes seconds to import."""

MAIN_METRIC: dict[Kind, str] = {"binary": "roc_auc", "multiclass": "accuracy", "regression": "r2"}
"""What judges a search, the champion and the live model of each kind where params.yaml names no other."""

_DEFAULTS_OF: dict[str, dict[tuple[str, ...], Any]] = {
    "multiclass": {
        ("gates", "floors"): {"roc_auc_ovr": 0.65},
        ("gates", "champion", "metric"): MAIN_METRIC["multiclass"],
        ("decision", "performance", "metric"): MAIN_METRIC["multiclass"],
    },
    "regression": {
        ("train", "estimator"): "sklearn.ensemble.HistGradientBoostingRegressor",
        ("train", "baseline"): "sklearn.linear_model.Ridge",
        ("gates", "floors"): {"r2": 0.1},
        ("gates", "champion", "metric"): MAIN_METRIC["regression"],
        ("decision", "performance", "metric"): MAIN_METRIC["regression"],
        ("canary", "score_margin"): 0.5,
    },
}
"""What stands in place of a key's own default for a target that is not binary."""


def _utc(value: Any) -> Any:
    """YAML reads ``2013-07-01`` as a date and ``2013-07-01T00:00:00Z`` as a time: both mean UTC here."""
    if isinstance(value, str) and value not in ("auto", ""):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return value
    if hasattr(value, "isoformat") and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return value


UtcTime = Annotated[AwareDatetime, BeforeValidator(_utc)]


def check_plain(value: Any, name: str) -> None:
    """Refuse what JSON cannot hold: it is written into a payload, and hashed.

    Raises
    ------
    ValueError
        A number is infinite or none, keys of a mapping are of two kinds, or a value is neither text, number, truth
        value, null, list nor mapping; names it.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} = {value} must be a finite number (for one without bound, such as C, give 1.0e+300)")
    if isinstance(value, dict):
        if len({type(key) for key in value}) > 1:
            raise ValueError(f"{name} = {value!r}: keys must be all text, or all numbers")
        for key, inner in value.items():
            check_plain(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            check_plain(inner, f"{name}.{place}")
    elif value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"{name} = {value!r} is neither text, number, true, false, null, list nor mapping")


def _plain_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    for name, value in arguments.items():
        check_plain(value, name)
    return arguments


Arguments = Annotated[dict[str, Any], AfterValidator(_plain_arguments)]


class Section(BaseModel):
    """A part of ``params.yaml``: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, defer_build=True, allow_inf_nan=False)


class ProjectParams(Section):
    """Which model this is. Without ``package`` the project is one flat table described by ``data``."""

    name: Slug
    package: str | None = None


class ClockParams(Section):
    """A simulated clock for a project whose world is not today's: ``as_of: auto`` starts here and steps."""

    start: UtcTime
    step_days: int = Field(7, ge=1)
    sample: UtcTime | None = None
    """``as_of`` of a quick try: a time with little data yet. Pull requests run the line as of it."""


class _TableFormat(Section):
    timestamps: tuple[str, ...] = ()
    """Columns to read as UTC times."""


class PackageSource(_TableFormat):
    """A CSV (or Parquet) file inside an installed Python distribution; the package is never imported."""

    kind: Literal["package"]
    distribution: str
    path: str
    read: dict[str, Any] = Field(default_factory=dict)
    """Further arguments for :func:`pandas.read_csv`."""


class CsvSource(_TableFormat):
    """A CSV file: a path relative to the project folder, or any fsspec URL."""

    kind: Literal["csv"]
    path: str
    read: dict[str, Any] = Field(default_factory=dict)


class ParquetSource(_TableFormat):
    """A Parquet file: a path relative to the project folder, or any fsspec URL."""

    kind: Literal["parquet"]
    path: str


class SqlSource(_TableFormat):
    """A query against any SQLAlchemy URL. ``${NAME}`` in the URL is taken from the environment."""

    kind: Literal["sql"]
    url: str
    query: str


Source = Annotated[PackageSource | CsvSource | ParquetSource | SqlSource, Field(discriminator="kind")]


class DataParams(Section):
    """A flat table: one row, one question, one answer, no time."""

    table: str
    label: str
    positive: str | int | float | bool = 1
    """The label value that counts as 1; every other value counts as 0. Binary targets only."""
    entity: str | None = None
    ignore: tuple[str, ...] = ()


class TargetParams(Section):
    """What the model answers."""

    kind: Kind = "binary"
    """``binary``: 0 or 1. ``multiclass``: one of several classes, named by the label's values as text. ``regression``:
    a number. The latter two have defaults of their own. multiclass: ``gates.floors`` {roc_auc_ovr: 0.65},
    ``gates.champion.metric`` and ``decision.performance.metric`` accuracy. regression: ``train.estimator``
    HistGradientBoostingRegressor, ``train.baseline`` Ridge, ``gates.floors`` {r2: 0.1}, both metrics r2,
    ``canary.score_margin`` 0.5."""


class SplitParams(Section):
    """How rows are set aside. With time: the last ``holdout_days`` before ``as_of``. Without: a seeded hash."""

    holdout_days: int = Field(30, ge=1)
    current_days: int = Field(28, ge=1)
    holdout_share: Probability = 0.25


class DomainParams(Section):
    """A classifier that tries to tell the current rows from the reference: it sees what no single column shows."""

    enabled: bool = True
    max_auc: float = Field(0.65, ge=0.5, lt=1)
    """Largest cross-validated ROC AUC at which the two still count as alike."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.99
    """One-sided level of the lower bound of the AUC, which must lie above ``max_auc``."""
    max_rows: int = Field(2000, ge=200)
    """Rows drawn from each side; bounds its time."""


class DriftParams(Section):
    """When a feature has drifted: the shift is material and, after Holm's correction over all tests, no noise."""

    alpha: Probability = 0.05
    """Chance of any false alarm of any feature, at most, where nothing has changed."""
    min_rows: int = Field(50, ge=20)
    """Fewer values on either side are unknown, neither drift nor none."""
    numeric_effect: float = Field(0.1, ge=0)
    """Wasserstein distance in reference standard deviations from which a distribution has moved materially."""
    mean_effect: float = Field(0.1, ge=0)
    """Difference of the means in reference standard deviations."""
    spread_effect: float = Field(0.2, ge=0)
    """Absolute log ratio of the standard deviations: 0.2 is a change by a fifth."""
    categorical_effect: Share = 0.1
    """Jensen-Shannon distance, base 2."""
    unseen_effect: Share = 0.01
    """Share of current values in categories that the reference does not hold."""
    missing_effect: Share = 0.05
    """Difference of the share of missing values."""
    feature_share: Share = 0.3
    """Share of features that must drift for the data set to count as drifted."""
    feature_count: int | None = Field(None, ge=1)
    """Number of features that is enough whatever their share; null: the share alone counts."""
    domain: DomainParams = DomainParams()
    season: tuple[Literal["hour", "weekday", "month"], ...] = ()
    """Compare with a reference that has the current window's mix of these (UTC): a Sunday with Sundays."""


class Windows(Section):
    """Hysteresis: a trigger fires in the latest window and in at least ``required`` of the last ``of``."""

    required: int = Field(1, ge=1)
    of: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.required > self.of:
            raise ValueError(f"required = {self.required} of {self.of} windows can never be")
        return self


class Trigger(Section):
    enabled: bool = True


class WindowedTrigger(Trigger):
    windows: Windows = Windows()


class ScheduleTrigger(Trigger):
    max_age_days: float = Field(30, gt=0)
    """Days since the champion was trained."""


class VolumeTrigger(Trigger):
    min_new_rows: int = Field(10_000, ge=1)


class FreshnessTrigger(Trigger):
    max_age_days: float = Field(90, gt=0)
    """Days between the last answer the champion learnt from and the last that is known now."""


class PerformanceTrigger(WindowedTrigger):
    metric: str = "roc_auc"
    max_drop: float = Field(0.03, gt=0)
    """Largest tolerated fall below the value the champion had on its own holdout."""
    min_rows: int = Field(500, ge=2)


class DecisionParams(Section):
    """Which reasons retrain the model. Broken data vetoes all of them unless ``override_veto`` gives a reason."""

    manual: Trigger = Trigger()
    bootstrap: Trigger = Trigger()
    code: Trigger = Trigger()
    performance: PerformanceTrigger = PerformanceTrigger()
    drift: WindowedTrigger = WindowedTrigger()
    schedule: ScheduleTrigger = ScheduleTrigger()
    data_volume: VolumeTrigger = VolumeTrigger()
    freshness: FreshnessTrigger = FreshnessTrigger()
    cool_down_days: float = Field(0, ge=0)
    """Days after a decision to retrain in which performance, drift, schedule, volume and freshness are held back."""
    override_veto: Annotated[str, StringConstraints(strip_whitespace=True, min_length=8)] | None = None
    """Why broken data may be trained on, for the record. Null: it may not."""


class IntSpace(Section):
    """Whole numbers from ``low`` to ``high``."""

    kind: Literal["int"]
    low: int
    high: int
    step: int = Field(1, ge=1)
    log: bool = False
    """Try as many between 1 and 10 as between 10 and 100."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        _check_range(self.low, self.high, None if self.step == 1 else self.step, self.log)
        return self


class FloatSpace(Section):
    """Numbers from ``low`` to ``high``."""

    kind: Literal["float"]
    low: float
    high: float
    step: float | None = Field(None, gt=0)
    log: bool = False
    """Try as many between 0.01 and 0.1 as between 0.1 and 1."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        _check_range(self.low, self.high, self.step, self.log)
        return self


class CategoricalSpace(Section):
    """Values without an order: text, numbers, true or false, null, or lists of them."""

    kind: Literal["categorical"]
    choices: tuple[Any, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for place, choice in enumerate(self.choices):
            check_plain(choice, f"choices.{place}")
            if json.loads(json.dumps(choice)) != choice:  # a search keeps its choices as JSON
                raise ValueError(f"choices.{place} = {choice!r}: keys must be text")
        spelled = [repr(choice) for choice in self.choices]
        twice = sorted({each for each in spelled if spelled.count(each) > 1})
        if twice:
            raise ValueError(f"choices has {', '.join(twice)} twice")
        return self


def _check_range(low: float, high: float, step: float | None, log: bool) -> None:
    if low > high:
        raise ValueError(f"low = {low:g} is above high = {high:g}")
    if log and low <= 0:
        raise ValueError(f"log = true needs low above 0, not {low:g}")
    if log and step is not None:
        raise ValueError(f"log = true and step = {step:g} exclude each other")


Space = Annotated[IntSpace | FloatSpace | CategoricalSpace, Field(discriminator="kind")]


class TuneParams(Section):
    """A search for arguments of ``train.estimator``, by Optuna, on the training rows alone."""

    space: dict[str, Space] = Field(min_length=1)
    """Arguments to search. One that ``train.arguments`` names too is first tried as it is there."""
    trials: int = Field(20, ge=1)
    timeout_seconds: float | None = Field(None, gt=0)
    """After so many seconds of trials none is begun. What is then best depends on how fast the machine is."""
    metric: str | None = None
    """What is judged by; any of the gates' metrics. Null: roc_auc; multiclass accuracy; regression r2."""
    folds: int = Field(3, ge=1)
    """How often a trial is fitted. With time: on expanding windows, each judged on the rows that come next."""
    validation_share: Probability = 0.3
    """With time: the last share of the training rows, cut into ``folds`` windows. Without: used if ``folds`` is 1."""
    batch: int = Field(1, ge=1)
    """Trials that are suggested, and run, together: more of them use more workers and learn less from one another."""
    seed: int | None = Field(None, ge=0)
    """Of the search; null: ``seed``."""


class ResourceParams(Section):
    """What training may take of this machine. None of it changes the model."""

    threads: int = Field(1, ge=1)
    """Cores to use: threads of OpenMP, and what an estimator's ``n_jobs`` would say. Linear algebra always uses one,
    because the last bits of its sums depend on how many."""
    memory_mb: float | None = Field(None, ge=64)
    """Most memory, in 2²⁰ bytes, of the process and all that it starts on this machine; null: no limit."""
    time_limit_seconds: float | None = Field(None, gt=0)
    """Longest wall time of training; null: no limit."""


class JoblibParams(Section):
    """Where joblib runs the parts of estimators that have an ``n_jobs``."""

    backend: Literal["local", "dask", "ray"] = "local"
    """Threads of this machine, or a cluster that is there already."""
    address: str | None = None
    """Of the cluster: ``tcp://HOST:PORT`` of Dask's scheduler; for Ray what ``ray.init`` takes, such as ``auto``."""
    connect_seconds: float = Field(10.0, gt=0)
    """Longest wait for the cluster, and for a worker of it."""

    @model_validator(mode="after")
    def _addressed(self) -> Self:
        if (self.address is None) != (self.backend == "local"):
            raise ValueError(
                f"backend = {self.backend} and address = {self.address}: give the address of a cluster, and none for "
                "local"
            )
        if self.backend == "dask" and not re.fullmatch(
            r"((tcp|tls|ws|wss|ucx)://)?[^\s/]+:\d{1,5}", self.address or ""
        ):
            raise ValueError("address is none of a Dask scheduler: give one such as tcp://HOST:PORT")
        return self


class ScoreCalibrationParams(Section):
    """Probabilities learnt anew from rows that the estimator did not see."""

    method: Literal["isotonic", "sigmoid"]
    """``sigmoid`` is a curve of two parameters; ``isotonic`` any rising one, for a thousand rows and more."""
    share: Probability = 0.2
    """Of the training rows: the latest by prediction time; without time, drawn with the seed, equally of each class.
    The estimator is fitted on the others."""


class TrainParams(Section):
    """The challenger and the simple model it must beat: importable scikit-learn classes and their arguments."""

    estimator: str = "sklearn.ensemble.HistGradientBoostingClassifier"
    arguments: Arguments = Field(default_factory=dict)
    baseline: str = "sklearn.linear_model.LogisticRegression"
    baseline_arguments: Arguments = Field(default_factory=dict)
    threshold: Probability = 0.5
    """Score from which the answer is yes. Binary targets only."""
    format: Literal["skops", "joblib"] = "skops"
    """How the estimator is stored. A skops file is read type by type; a joblib file is a pickle, which runs what it
    holds, and needs ``trust.joblib`` too."""
    onnx: bool = True
    """Export to ONNX what can be. False, for an estimator whose ONNX disagrees: it is served through scikit-learn."""
    tune: TuneParams | None = None
    """Null: ``arguments`` are taken as they are."""
    checkpoint_seconds: float | None = Field(30.0, ge=0)
    """Shortest time between two checkpoints of a fit, where the estimator can go on from one; null: none are kept."""
    class_weights: Literal["balanced"] | dict[bool | int | str, PositiveWeight] | None = None
    """How much a row counts in the fit, by its label: ``{0: 1, 1: 5}``; ``balanced``: each label as much as any other.
    Both models are fitted so. Scores then no longer are probabilities, unless they are calibrated."""
    calibration: ScoreCalibrationParams | None = None
    """How scores are made probabilities after the fit, of both models; null: they stay as the estimator gives them."""
    resources: ResourceParams = ResourceParams()
    joblib: JoblibParams = JoblibParams()


class TrustParams(Section):
    """What this project deserialises. A bundle is held to this, whatever it was trained with: none can allow itself."""

    types: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")], ...] = ()
    """Types, ``package.module.Class``, that a skops file may hold beyond those of scikit-learn; each is code to run."""
    joblib: bool = False
    """Whether a joblib file may be opened, once its digest is verified and this project's ledger or its last training
    vouches for that digest."""


class SigstoreIdentity(Section):
    """Who may sign without a key: an identity, as an issuer vouches for it."""

    identity: str
    """Such as ``https://github.com/OWNER/NAME/.github/workflows/delivery.yml@refs/heads/main``."""
    issuer: str = "https://token.actions.githubusercontent.com"


class SigningParams(Section):
    """How ``package_model.py`` and ``sign.py`` sign a bundle, in the format of OpenSSF model signing."""

    method: Literal["none", "key", "sigstore"] = "none"
    """``sigstore`` signs with the identity of the running workflow, and needs the network."""
    key: str | None = None
    """Path of a private key (PEM, elliptic curve), relative to the project folder. Null: the environment variable
    ``CLEARWAY_SIGNING_KEY`` holds the key itself. A password is taken from ``CLEARWAY_SIGNING_PASSWORD``."""


class SignaturePolicy(Section):
    """Which signature a bundle needs before it is deployed here, and before a server here reads it."""

    policy: Literal["ignored", "warn", "required"] = "ignored"
    keys: tuple[str, ...] = ()
    """Paths of trusted public keys (PEM), relative to the project folder; one of them must have signed."""
    identities: tuple[SigstoreIdentity, ...] = ()
    """Trusted Sigstore identities, one of which may have signed instead."""
    sigstore_root: str | None = None
    """Path of a Sigstore trust configuration (JSON): identities are then checked without the network."""

    @model_validator(mode="after")
    def _trusts_someone(self) -> Self:
        if self.policy != "ignored" and not (self.keys or self.identities):
            raise ValueError(f"policy = {self.policy!r} needs at least one of keys and identities")
        return self


class ChampionGate(Section):
    metric: str = "roc_auc"
    margin: float = Field(0.01, ge=0)
    """The challenger passes when the lower bound of its paired difference is above minus this."""


class NoiseGate(Section):
    """How the model is shaken: its answers must stand."""

    share: float = Field(0.01, gt=0)
    """Standard deviation of the noise, as a share of each numeric column's own."""
    keep: Probability = 0.95
    """Smallest share of holdout rows that keep their answer, lower bound."""
    tolerance: float = Field(0.1, gt=0)
    """Regression: how far a prediction may move and still be kept, in standard deviations of the predictions."""


class LeakageGate(Section):
    """When a feature or the split gives the answer away."""

    max_single_auc: float = Field(0.99, gt=0.5, le=1)
    """A feature that separates the answers as well as this by itself is taken for one made from the answer.
    Multiclass: the mean over classes, each against the rest."""
    max_single_r2: float = Field(0.99, gt=0, le=1)
    """Regression: the same, as the share of the variance of the labels' ranks that a feature explains alone."""
    max_duplicates: Share | None = None
    """Largest share of holdout rows with the features of a training row. Null: 0.05 with time; without, no row may
    have the entity, label and features of one."""


class ClassesGate(Section):
    """Multiclass: whether the holdout can speak of each class."""

    min_rows: int = Field(10, ge=1)
    """Holdout rows of each class; a class of fewer is not judged, and named: unknown."""
    max_unseen: Share = 0.05
    """Largest share of holdout rows of classes that training never saw. Each of them counts as a wrong answer."""
    unknown_blocks: bool = True
    """Whether a class of too few rows stops the challenger."""


class CalibrationGate(Section):
    """How far scores may be from what they say. Multiclass: the score of the class that is answered. Not for
    regression."""

    max_error: Probability | None = None
    """Largest expected calibration error, upper bound; null: reported, not judged."""
    champion_margin: float | None = Field(None, ge=0)
    """By how much it may be larger than the champion's; null: not judged."""
    bins: int = Field(10, ge=2)


class ColumnTest(Section):
    """A change of one column of the holdout, and what it must do to the score."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]{0,62}$")]
    """Of the gate: ``behaviour_<name>``."""
    column: str
    multiply: float | None = None
    add: float | None = None
    set: float | str | None = None
    """Just one of the three: what is done to each value that is there; ``set`` fills missing ones too."""
    expect: Literal["same", "up", "down"]
    """The score does not move; does not fall; does not rise."""
    of_class: str | None = None
    """Multiclass: the class whose probability is meant. ``up`` and ``down`` need it; ``same`` without it means each."""
    tolerance: Share = 0.01
    """How far a score may still move otherwise: a probability, or for regression spreads of the training labels."""
    min_share: Annotated[float, Field(gt=0, le=0.9999)] = 0.95
    """Smallest share of the changed rows that behave, lower bound."""

    @model_validator(mode="after")
    def _one_change(self) -> Self:
        if [self.multiply, self.add, self.set].count(None) != 2:
            raise ValueError(f"{self.name}: give one of multiply, add and set")
        return self


class SliceGates(Section):
    """In which parts of the holdout the challenger must hold, and how far it may fall behind the champion there."""

    declared: tuple[str | tuple[str, ...], ...] = ()
    """Columns whose levels are judged each; a list of columns means their combinations."""
    discover: bool = True
    """Search for the parts where the challenger is worst, too."""
    bins: int = Field(4, ge=2)
    """Equally full ranges that a numeric column is cut into; one of no more values is taken value by value."""
    min_rows: int = Field(200, ge=20)
    """A level of fewer rows is pooled with others like it and not judged by itself."""
    metric: str | None = None
    """Null: the champion gate's."""
    margin: float = Field(0.05, ge=0)
    """A part holds when the lower bound of its gain over the champion is above minus this."""
    floor: float | None = None
    """Without a champion: what each part must reach (a loss: stay below); null: nothing is judged then."""
    unknown_blocks: bool = False
    """Whether a part too uncertain to call stops the challenger."""


class FairnessGates(Section):
    """Which groups the challenger must treat alike, and how much so. At its own threshold."""

    attributes: tuple[str | tuple[str, ...], ...] = ()
    """Columns whose levels are groups; a list of columns means their combinations."""
    classes: tuple[str, ...] = ()
    """Multiclass: the classes whose answers are compared, each against the rest; empty: all of them."""
    min_rows: int = Field(200, ge=20)
    """A smaller group is not judged, and named."""
    bins: int = Field(4, ge=2)
    """Equally full ranges that a numeric column is cut into."""
    max_difference: Share | None = None
    """Largest difference of a rate between any two groups, upper bound; null: not judged. Regression: of the mean
    error and the mean absolute error, in spreads of the training labels."""
    min_ratio: Share | None = None
    """Smallest ratio of a rate between any two groups, lower bound; 0.8 is the four-fifths rule; null: not judged."""
    margin: Share | None = 0.05
    """By how much the largest difference may exceed the champion's, upper bound; null: not judged."""
    ratio_margin: Share | None = None
    """By what share of the champion's the smallest ratio may fall below it, lower bound; null: not judged."""
    unknown_blocks: bool = True
    """Whether a comparison too uncertain to call, or a group that could not be judged, stops the challenger."""


class GateParams(Section):
    """What a challenger must prove on the holdout. Every bound is the lower one of a confidence interval."""

    floors: dict[str, float] = Field(default_factory=lambda: {"roc_auc": 0.65})
    """Metric → the least that its bound must reach (of a loss the most): one of docs/targets.md, or any scorer of
    scikit-learn that fits the target, such as ``jaccard`` or ``neg_brier_score``."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """One-sided level of each bound."""
    resamples: int = Field(400, ge=100)
    cluster: Literal["entity", "day"] | None = "entity"
    """Rows that stand or fall together: of one entity, or asked on one day (UTC). Null: each row is a draw of its own.
    At least ten entities or days are needed."""
    min_rows: int = Field(50, ge=2)
    champion: ChampionGate = ChampionGate()
    baseline_gain: float | None = None
    """Smallest gain over the simple model, lower bound, in the champion gate's metric; null: reported, not judged."""
    noise: NoiseGate = NoiseGate()
    classes: ClassesGate = ClassesGate()
    behaviour: tuple[ColumnTest, ...] = ()
    """Changes of one column and what they must do; a project package may declare others as ``PROJECT.behaviour``."""
    leakage: LeakageGate = LeakageGate()
    calibration: CalibrationGate = CalibrationGate()
    slices: SliceGates = SliceGates()
    fairness: FairnessGates = FairnessGates()
    max_challengers: int | None = Field(None, ge=1)
    """Challengers that one holdout may judge; null: any number, each held to a higher confidence than the last."""
    accept_changes: tuple[str, ...] = ()
    """Features, join keys and fields whose callers are ready for the change: the schema gate lets these pass."""
    latency_ms: float = Field(100.0, gt=0)
    """Largest p95 of a single-row answer."""
    latency_p99_ms: float | None = Field(None, gt=0)
    through_server: bool = True
    """Measure latency and memory in processes of their own, as they are served. Without it the latency is that of the
    model alone, in this process, and memory is not measured."""
    max_bundle_mb: float = Field(100.0, gt=0)
    """Largest size of the model's files, in 2²⁰ bytes."""
    max_memory_mb: float = Field(512.0, gt=0)
    """Most memory that loading the model and scoring 1,000 rows may add to a process, in 2²⁰ bytes."""
    max_server_mb: float = Field(1024.0, gt=0)
    """Most memory that a process of the server may take once it has answered, all it has loaded included, in 2²⁰
    bytes."""
    onnx_tolerance: float = Field(1e-5, gt=0)
    """Largest difference between ONNX and scikit-learn scores on the holdout. Regression: relative to the value or to
    the spread of the training labels, whichever is larger."""
    require_onnx: bool = False
    """Whether a model without ONNX is rejected; if not, it is served through scikit-learn, slower."""
    unknown_blocks: bool = True
    """Whether a comparison too uncertain to call stops the challenger."""

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        names = [test.name for test in self.behaviour]
        if len(names) != len(set(names)):
            raise ValueError("behaviour: two tests have one name")
        return self


class ModelCardParams(Section):
    """What only people know of the model, for its card (Mitchell et al. 2019). Never part of the model's digest."""

    intended_use: str | None = None
    """What it is for, and who uses its answers."""
    out_of_scope: str | None = None
    """What it must not be used for."""
    limitations: tuple[str, ...] = ()
    ethical_considerations: tuple[str, ...] = ()
    owners: tuple[str, ...] = ()
    """Who answers for it, and how to reach them."""
    licence: str | None = None
    """An SPDX identifier, such as ``Apache-2.0``."""


class RegistryParams(Section):
    model: str | None = Field(None, pattern=r"^[^/:\x00-\x1f\x7f]*[^/:\x00-\x1f\x7f. ][^/:\x00-\x1f\x7f]*$")
    """Name of the registered model, without ``/`` and ``:``, which MLflow and the paths of the server cannot have; the
    project's name by default."""
    tracking_uri: str | None = None
    """MLflow server; ``$MLFLOW_TRACKING_URI`` wins over it; SQLite under ``var/`` by default."""


class LocalTargetParams(Section):
    """A server process of this machine."""

    kind: Literal["local"] = "local"
    supervised: bool = False
    """Something else starts, restarts and stops the server, such as systemd: commands only wait for it to follow."""


class ServedHereParams(LocalTargetParams):
    """What a server makes of its own environment's target, for one change that was sent to it; never in a file."""

    supervised: bool = True
    expected_sequence: int
    expected_head: str
    """Hash of the ledger entry that the sender decided on."""
    evidence: dict[str, str] = Field(default_factory=dict)
    """What the sender adds to the entry's own."""


class HttpTargetParams(Section):
    """A Clearway server elsewhere, changed through its ``/admin``; its ledger is the truth, here is a verified copy."""

    kind: Literal["http"]
    url: str | None = None
    """Where it answers, such as ``https://models.example.org``; ``CLEARWAY_<ENV>_URL`` comes before it."""
    ca_file: str | None = None
    """Certificate authorities in PEM to check its certificate with, in place of those that the system trusts."""
    plain_http: bool = False
    """Let a token travel unencrypted to another machine; on this machine it always may."""
    timeout_seconds: float = Field(60.0, gt=0)
    """Longest wait for one answer."""
    retries: int = Field(4, ge=0, le=10)
    """How often a request is sent again that the network lost, each time after twice the wait."""


class KServeTargetParams(Section):
    """A KServe ``InferenceService`` in a Kubernetes cluster; see docs/kserve.md."""

    kind: Literal["kserve"]
    api: str | None = None
    """Where the Kubernetes API answers, such as ``https://10.0.0.1:6443``; ``CLEARWAY_<ENV>_URL`` comes before it. Left
    out, it is the cluster that the command runs in."""
    ca_file: str | None = None
    """Certificate authorities in PEM to check its certificate with; in a cluster its own by default, else the
    system's."""
    plain_http: bool = False
    """Let a token travel unencrypted to another machine; on this machine it always may."""
    timeout_seconds: float = Field(30.0, gt=0)
    """Longest wait for one answer."""
    retries: int = Field(4, ge=0, le=10)
    """How often a request is sent again that the network lost or the API asks to repeat."""
    namespace: KubernetesName
    name: Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=40)]
    """Of the ``InferenceService``; its ledger is the ConfigMap ``<name>-ledger``."""
    image: str = Field(pattern=r"^[^\s@]+@sha256:[0-9a-f]{64}$")
    """This project's server (deploy/Dockerfile), by its digest: it is what verifies the bundle."""
    bundles: str = Field(pattern=r"^[a-z0-9]+://[^\s?#]+$")
    """Where bundles are kept for the cluster, as fsspec names it, such as ``s3://models/apples``: each in a folder that
    its digest names."""
    storage_uri: str | None = Field(None, pattern=r"^[a-z0-9]+://[^\s?#]+$")
    """The same place as KServe names it (``storageUri``), if that is another name, such as ``pvc://models/apples``."""
    service_account: KubernetesName | None = None
    """Whose credentials KServe's storage initializer reads the bundle with."""
    cpu: str = Field("1", pattern=r"^[0-9]+(\.[0-9]+)?m?$")
    """Of each pod, as request and as limit."""
    memory: str = Field("1Gi", pattern=r"^[0-9]+(\.[0-9]+)?([EPTGMK]i?)?$")
    min_replicas: int = Field(1, ge=0)
    """Pods of each version that gets traffic; 0 lets it start with the first request."""
    max_replicas: int = Field(3, ge=1)
    env: dict[str, str] = Field(default_factory=dict)
    """More environment variables of the server. No secrets: they are readable in the manifest."""
    log_claim: KubernetesName | None = None
    """A PersistentVolumeClaim (ReadWriteMany) in which all pods write their prediction log."""
    log_folder: str | None = None
    """Where this machine has that volume mounted, or its copy: without it no canary can be judged, and none begins."""
    ready_seconds: float = Field(600.0, gt=0)
    """How long a version may take to get its traffic."""

    @property
    def stored_at(self) -> str:
        """Where KServe finds the bundles."""
        return (self.storage_uri or self.bundles).rstrip("/")

    @model_validator(mode="after")
    def _can_be_rendered(self) -> Self:
        if self.max_replicas < max(1, self.min_replicas):
            raise ValueError(f"max_replicas is {self.max_replicas}, less than min_replicas ({self.min_replicas})")
        if (self.log_claim is None) != (self.log_folder is None):
            raise ValueError("log_claim and log_folder belong together: where pods write, and where that is read")
        if taken := {"STORAGE_URI", "CLEARWAY_ENV", "PROTOCOL", "PORT"} & self.env.keys():
            raise ValueError(f"env cannot set {min(taken)}: the manifest does")
        return self


class EnvironmentParams(Section):
    """Where one environment serves."""

    host: str = "127.0.0.1"
    port: int = Field(ge=0, le=65535)
    workers: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = 1
    """Processes that answer on this port; ``auto`` is one for each core that this process may use."""
    target: LocalTargetParams | HttpTargetParams | KServeTargetParams = Field(LocalTargetParams(), discriminator="kind")
    """How its server is reached: a process of this machine, ``/admin`` of a server elsewhere (docs/remote.md), or
    through KServe (docs/kserve.md)."""
    requires: str | None = None
    """The environment in which a digest must be live before it may come here."""
    signature: SignaturePolicy = SignaturePolicy()
    models: dict[Slug, str] = Field(default_factory=dict)
    """Models of other project folders that this server hosts too, by the name in their address: the folder, from this
    project's own; see docs/serving-many-models.md."""

    @model_validator(mode="after")
    def _hosts_each_once(self) -> Self:
        seen: dict[str, str] = {}
        for name, folder in self.models.items():
            first = seen.setdefault(posixpath.normpath(folder), name)
            if first != name:
                raise ValueError(f"models.{name} is the folder of models.{first} too: {folder}")
        if "." in seen:
            raise ValueError(f"models.{seen['.']} is this project itself, which its server serves anyway: remove it")
        return self

    @property
    def worker_count(self) -> int:
        """``workers``, on this machine."""
        if self.workers != "auto":
            return self.workers
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class FeatureLookupParams(Section):
    """How a server reads features by key from the online store."""

    timeout_ms: float = Field(250.0, gt=0)
    """Longest wait for the store; then ``on_failure`` applies."""
    max_staleness_ms: float = Field(0.0, ge=0)
    """How long a value once read may be used again without asking the store; 0 asks it every time."""
    on_failure: Literal["fail", "last_known"] = "fail"
    """Without an answer of the store: refuse the request (503), or use values read before, if there are any."""
    last_known_seconds: float = Field(300.0, gt=0)
    """How long ago, by the wall clock, a value may have been read to count as last known."""
    cache_entries: int = Field(100_000, ge=1)
    """Values kept, least recently used ones dropped first; one per view and key."""
    clock_tolerance_seconds: float = Field(5.0, ge=0)
    """A value that became known up to this long after ``asked_at`` is used: clocks differ. A later one is null."""


class LogParams(Section):
    """The prediction log of each environment: what it says of a request, and for how long."""

    leave_out: tuple[str, ...] = ()
    """Fields that are never written: `features`, `inputs`, or one of either as `features.NAME`."""
    hash: tuple[str, ...] = ()
    """Fields of which only a hash is written, keyed by $CLEARWAY_LOG_KEY: `entity`, or as those of `leave_out`."""
    retention_days: int | None = Field(None, ge=1)
    """Whole days after which predictions and their labels are removed; null keeps them."""
    compact_minutes: float | None = Field(15.0, gt=0)
    """How often a server turns finished segments into Parquet; null leaves it to `scripts/compact_log.py`."""
    late_label_days: float = Field(30.0, gt=0)
    """A label that became known so long after its question counts as late in the report; it is used all the same."""

    @model_validator(mode="after")
    def _can_be_hidden(self) -> Self:
        for key, names, whole in (
            ("leave_out", self.leave_out, ("features", "inputs")),
            ("hash", self.hash, ("entity", "features", "inputs")),
        ):
            for name in names:
                group, dot, inner = name.partition(".")
                if key == "leave_out" and name == "entity":
                    raise ValueError("leave_out cannot name entity: the canary is judged by entities; hash it instead")
                if name not in whole and not (dot and inner and "," not in inner and group in ("features", "inputs")):
                    allowed = ", ".join((*whole, "features.NAME", "inputs.NAME"))
                    raise ValueError(f"{key} cannot name {name!r}: it can be {allowed}")
        if both := set(self.leave_out) & set(self.hash):
            raise ValueError(f"{min(both)} is both in leave_out and in hash: choose one")
        return self

    @property
    def hides(self) -> bool:
        """Whether anything is left out or hashed."""
        return bool(self.leave_out or self.hash)


class ShadowParams(Section):
    """Copies of what the stable version answers, which a shadow version answers unseen."""

    share: float = Field(1.0, gt=0, le=1)
    """Of the rows that are answered, the share that is copied, by chance."""
    queue: int = Field(2000, ge=1)
    """Copies that may wait for the shadow; more are dropped and counted, and no caller waits."""
    timeout_seconds: float = Field(10.0, gt=0)
    """A shadow process that answers nothing for so long is killed and started again."""


class TraceParams(Section):
    """OpenTelemetry: where spans are sent; none are made without an endpoint. Needs the extra ``traces``."""

    endpoint: str | None = Field(None, pattern=r"^https?://[^@\s]+$")
    """OTLP over HTTP, in full, such as http://localhost:4318/v1/traces. Tokens stand in OTEL_EXPORTER_OTLP_HEADERS."""
    sample: float = Field(0.01, ge=0, le=1)
    """Share of requests that are traced; one that comes with a traceparent follows its caller's choice."""


class BatchingParams(Section):
    """Rows for a model without ONNX that arrive while others are scored are scored together, with no timer."""

    max_rows: int = Field(256, ge=1)
    """Rows that are scored together, at most; a request of more is scored by itself."""
    max_waiting: int = Field(2048, ge=1)
    """Rows that may wait to be scored; a request beyond them is answered 503 with Retry-After."""


class OidcParams(Section):
    """Workflows of one GitHub repository that may change an environment, by the tokens that GitHub signs for them."""

    repository: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+$")
    """``owner/name``."""
    environment: str | None = Field(None, min_length=1)
    """GitHub environment that the job must run in; null is the served environment's own name."""
    also: tuple[str, ...] = ()
    """Further ones that are let in, such as ``watch``, in which the hourly monitor runs without a reviewer."""
    audience: str = Field("clearway", min_length=1)
    """Whom the token must be meant for; the ``http`` target asks GitHub for it."""
    events: tuple[str, ...] = Field(("push", "schedule", "workflow_dispatch"), min_length=1)
    """What may have started the workflow; ``pull_request`` is refused unless it stands here."""
    issuer: str = "https://token.actions.githubusercontent.com"
    jwks_url: str | None = None
    """Where the issuer's public keys are; null is ``<issuer>/.well-known/jwks``."""


class AdminParams(Section):
    """Who may change an environment through its server's ``/admin`` (docs/remote.md). Nobody, unless a token is set.

    The token comes from ``CLEARWAY_ADMIN_TOKEN``, or from a file that ``CLEARWAY_ADMIN_TOKEN_FILE`` or ``token_file``
    names, and has at least 32 characters.
    """

    token_file: str | None = None
    """File that holds the token, read again at each use, so that it can be replaced while the server runs."""
    open_on_loopback: bool = False
    """Without token and oidc, let programs of this machine in. A proxy on this machine would let everyone in."""
    oidc: OidcParams | None = None
    max_bundle_bytes: int = Field(2**30, ge=2**16)
    """Largest bundle that may be sent."""
    max_failures: int = Field(30, ge=1)
    """Refused attempts a minute that are logged one by one; further ones are counted and answered 429."""


class ServingParams(Section):
    salt: str = "clearway"
    """Changes which entities see the canary, from the next rollout on."""
    routing_key: str = Field(ENTITY_KEY, min_length=1)
    """What a row is routed by: a field of the row, such as a join key or a feature. Where a row has none, it is its
    ``entity``, else its ``id``, else chance. A rollout keeps the key that it began with."""
    max_rows: int = Field(1000, ge=1)
    """Most rows of one request, whatever its protocol; more are refused (413)."""
    max_body_bytes: int = Field(1_048_576, ge=1024)
    """Largest body of a request; a larger one is refused (413) and read no further."""
    read_timeout_seconds: float = Field(10.0, gt=0, le=3600)
    """How long a request may take to arrive, headers and body; then its connection is closed (408)."""
    max_connections: int = Field(2000, ge=1)
    """Connections that one process holds open; further callers are turned away (503)."""
    log: LogParams = LogParams()
    log_format: Literal["text", "json"] = "text"
    """Of the server's own log, on its standard error."""
    access_log: bool = False
    """Whether every request is a line of that log."""
    features: FeatureLookupParams = FeatureLookupParams()
    admin: AdminParams = AdminParams()
    batching: BatchingParams = BatchingParams()
    max_loaded_models: int = Field(10, ge=1)
    """Models of other projects (``environments.<name>.models``) kept in memory; the least recently used one makes room
    for the next. The project's own is not counted."""
    load_seconds: float = Field(30.0, gt=0)
    """Longest time that a request waits for its model to be loaded; then 503 with Retry-After."""
    shadow: ShadowParams = ShadowParams()
    traces: TraceParams = TraceParams()

    @field_validator("routing_key")
    @classmethod
    def _is_no_time(cls, value: str) -> str:
        if value == "asked_at":
            raise ValueError("a time names nobody: choose a field that says who or what a row is about")
        return value


class CanaryStep(Section):
    weight: int = Field(ge=1, le=100)
    """Percent of routing keys that see the canary; of the last step, what ``canary.control`` leaves of it."""
    margin: Share
    """Largest harm that may remain possible when the step is passed."""
    min_requests: int = Field(500, ge=1)
    """Least number of the canary's answers in the step before it may be passed."""
    min_minutes: float = Field(0.0, ge=0)
    """Least time in the step before it may be passed: a day has hours that a burst of traffic does not show."""


class BusinessMetric(Section):
    """A number of the project's own that each answer leads to, such as what was sold."""

    name: Slug
    function: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """``module:function``. It is given the prediction log of the rollout as a DataFrame and returns a Series of numbers
    indexed by the ids of those requests whose number is known."""
    low: float
    """Least and largest number; what lies beyond is cut off, because one order of a million may decide nothing."""
    high: float
    better: Literal["higher", "lower"] = "higher"
    margin: float = Field(gt=0)
    """Largest harm to the mean that may remain possible, in the metric's own unit."""

    @model_validator(mode="after")
    def _range_rises(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        return self


class CanaryLabels(Section):
    """What canary and stable were worth once the truth is known: late, so that a promotion does not wait for it."""

    metric: Literal["accuracy", "loss"] = "accuracy"
    """``loss`` is the squared error: of the probability (Brier), or in spreads of the labels for regression. Numbers
    have no accuracy."""
    margin: Share = 0.02
    """Largest harm that may remain possible when a promotion stops being provisional."""


class ShadowRules(Section):
    """What a shadow must have shown before it may become a canary, over answers to the same questions."""

    min_pairs: int = Field(1000, ge=1)
    """Entities (else rows) that both must have answered."""
    max_flip_rate: Share = 0.05
    """Largest share of entities whose answer would change; its upper confidence bound is held against it."""
    max_error_rate: Share = 0.01
    """Largest share of copies that the shadow fails to answer; likewise."""
    max_difference: float = Field(0.05, ge=0)
    """Largest mean difference of the scores, either way; of numbers in spreads of the stable model's labels."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Of each interval, two-sided and at every look at once."""


class CanaryParams(Section):
    """How much harm a rollout may do, and how sure the judge must be. One error budget covers the whole rollout."""

    steps: tuple[CanaryStep, ...] = (
        CanaryStep(weight=10, margin=0.05),
        CanaryStep(weight=25, margin=0.03),
        CanaryStep(weight=50, margin=0.02),
        CanaryStep(weight=100, margin=0.01),
    )
    control: int = Field(5, ge=1, le=50)
    """Percent of routing keys that the stable version keeps until the final verdict, to compare the canary with."""
    promote_alpha: Probability = 0.05
    """Chance, at most, that a version is promoted that is worse than the last step's margin in any metric."""
    rollback_alpha: Probability = 0.01
    """Chance, at most, that a version no worse than stable is rolled back, over all metrics, steps and looks."""
    split_alpha: Probability = 0.001
    """Chance, at most, that keys that are split as promised are taken not to be."""
    rollback_margin: Share = 0.0
    """Harm up to here is not held against the canary."""
    verdict_hours: float = Field(24.0, gt=0, le=24 * 365)
    """For how long a verdict *promote* lets the canary rise: what was served since then nobody has judged."""
    latency_ms: float = Field(100.0, gt=0)
    """The latency objective: the judged metric is the share of requests slower than this."""
    shadow: ShadowRules | None = None
    """What a version must have shown as a shadow before it may become a canary; null asks for nothing."""
    score_margin: Share = 0.15
    """Largest difference of the mean score that is not held against the canary: of each class's probability where
    there are several, in spreads of the training labels for regression."""
    labels: CanaryLabels | None = None
    """Judge the canary on labels too; null where none come."""
    business: tuple[BusinessMetric, ...] = ()
    """Metrics of the project's own."""

    @model_validator(mode="after")
    def _steps_rise(self) -> Self:
        weights = [step.weight for step in self.steps]
        if not weights or weights != sorted(set(weights)):
            raise ValueError(f"steps must rise from one weight to the next, got {weights}")
        largest = 100 - self.control
        for weight in weights[:-1]:
            if weight >= largest:
                raise ValueError(
                    f"control = {self.control} leaves the canary {largest}% at most, and only in the last step, got a "
                    f"step of {weight}% before it"
                )
        return self

    def weights(self) -> tuple[int, ...]:
        """What each step really sends to the canary, in percent: the control is kept to the end."""
        return tuple(min(step.weight, 100 - self.control) for step in self.steps)


class ABParams(Section):
    """A fixed split that ends when one version is proven better, or as harmful."""

    weight: int = Field(50, ge=1, le=95)
    """Percent of routing keys that see the new version."""
    metric: str = "accuracy"
    """What must rise: ``accuracy`` (of ``canary.labels``) or the name of one of ``canary.business``."""
    lift: float = Field(0.02, ge=0, le=1)
    """By how much of the stable version's mean the new one's must be better: 0.02 is 2%."""
    min_samples: int = Field(10_000, ge=100)
    """Least number of measured requests of both versions together."""
    alpha: Probability = 0.05
    """Chance, at most, that a version whose lift is less is taken for the winner, and that one whose lift is more is
    sent away."""


class BlueGreenParams(Section):
    """A whole switch that is watched, with the version before kept ready. There is no control beside it: what is judged
    is the new version now against the one before then."""

    keep_warm_minutes: float = Field(60.0, gt=0)
    """How long servers keep the version before in memory, so that a rollback loads nothing."""
    watch_minutes: float = Field(5.0, ge=0)
    """How long the command that switched watches; 0: it does not."""
    alpha: Probability = 0.01
    """Largest chance that a version as good as the one before is rolled back, however often it is looked at."""
    margin: Share = 0.0
    """By how much the share of failed or slow answers may rise before the switch is undone."""
    min_requests: int = Field(100, ge=1)
    """Answers of either version without which a watch that saw no harm has proved nothing."""


class DeploymentParams(Section):
    """How a new version comes to the environment that users see."""

    strategy: Literal["canary", "blue-green", "ab", "shadow"] = "canary"
    """What a deployment without ``--strategy`` and without ``--canary`` does: ``canary`` replaces the stable version
    and forgets it, a trial being asked for by ``--canary N`` (``--strategy canary`` without it is refused);
    ``blue-green`` keeps the one before ready and watches; ``ab`` opens a fixed split, which ``check_canary.py`` then
    judges as such; ``shadow`` has the new one answer copies of the traffic, which ``check_shadow.py`` judges."""
    blue_green: BlueGreenParams = BlueGreenParams()
    ab: ABParams = ABParams()


RunEnding = Literal["delivered", "staged", "skipped", "rejected", "unchanged", "held", "rolled_back", "failed"]
"""How a delivery may end: :mod:`clearway.conclusion`."""
AlertEvent = Literal["deploy", "canary", "promote", "hold", "rollback", "quarantine", "release"]


class AlertParams(Section):
    """Who is told of what, through Apprise. The addresses are secrets: they stand in ``$CLEARWAY_ALERT_URLS``."""

    events: tuple[AlertEvent, ...] = ("deploy", "canary", "promote", "hold", "rollback", "quarantine", "release")
    """Actions of the ledger that people are told of."""
    timeout_seconds: float = Field(15.0, gt=0)
    """Longest time that a command spends on telling, after the environment serves what the ledger says."""
    runs: tuple[RunEnding, ...] = ("failed", "rolled_back", "held", "rejected")
    """Endings of a delivery that people are told of."""


class MonitoringParams(Section):
    """When the monitor of a live environment raises an alarm, beside drift and the champion's performance."""

    max_silence_hours: float = Field(24.0, gt=0)
    """Longest time without a prediction, by the wall clock."""
    every_minutes: float = Field(15.0, gt=0)
    """Pause between two rounds of ``scripts/monitor.py --watch``."""
    round_minutes: float = Field(30.0, gt=0)
    """Longest time of one round of it, which is then ended and is an alarm itself."""
    deliver_hours: float = Field(24.0, gt=0)
    """While an alarm that a new model could answer lasts, a delivery is started at most so often."""


class ReplayParams(Section):
    """Traffic made from the source's own later rows, each asked once."""

    days: int = Field(28, ge=1)
    connections: int = Field(16, ge=1, le=256)
    cycles: int = Field(100, ge=1)
    """Without time in the data, how often the holdout rows may be asked again."""


class Params(Section):
    """All of ``params.yaml``."""

    project: ProjectParams
    as_of: UtcTime | Literal["auto"] | None = None
    clock: ClockParams | None = None
    seed: int = Field(20130701, ge=0, lt=2**32)
    sources: dict[Slug, Source] = Field(min_length=1)
    data_schema: str = Field("schema.yaml", alias="schema")
    feature_store: str = "feature_store.yaml"
    """Feast's own configuration; read only where the project package defines features with Feast."""
    data: DataParams | None = None
    target: TargetParams = TargetParams()
    split: SplitParams = SplitParams()
    drift: DriftParams = DriftParams()
    decision: DecisionParams = DecisionParams()
    train: TrainParams = TrainParams()
    trust: TrustParams = TrustParams()
    signing: SigningParams = SigningParams()
    gates: GateParams = GateParams()
    model_card: ModelCardParams = ModelCardParams()
    registry: RegistryParams = RegistryParams()
    environments: dict[Slug, EnvironmentParams] = Field(min_length=1)
    serving: ServingParams = ServingParams()
    canary: CanaryParams = CanaryParams()
    deployment: DeploymentParams = DeploymentParams()
    alerts: AlertParams = AlertParams()
    monitoring: MonitoringParams = MonitoringParams()
    replay: ReplayParams = ReplayParams()

    def trial_weights(self) -> tuple[int, ...]:
        """What each step of the strategy sends to a new version, in percent."""
        return (self.deployment.ab.weight,) if self.deployment.strategy == "ab" else self.canary.weights()

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_kind(cls, content: Any) -> Any:
        return _with_defaults(content) if isinstance(content, dict) else content

    @model_validator(mode="after")
    def _fits_kind(self) -> Self:
        for key, cause in _misfits(self):
            raise ValueError(f"{key} does not fit target.kind = {self.target.kind!r}: {cause}")
        return self

    @model_validator(mode="after")
    def _logs_of_pods_stay_lines(self) -> Self:
        for name, each in self.environments.items():
            if not isinstance(each.target, KServeTargetParams) or each.target.log_claim is None:
                continue
            if self.serving.log.compact_minutes is not None:
                raise ValueError(
                    f"environments.{name}.target.log_claim is shared by pods, which must not compact each other's log: "
                    "set serving.log.compact_minutes: null"
                )
        return self

    @model_validator(mode="after")
    def _ab_can_be_measured(self) -> Self:
        wanted, labels = self.deployment.ab.metric, self.canary.labels
        known = [metric.name for metric in self.canary.business]
        if labels is not None and labels.metric == "accuracy":
            known.append("accuracy")
        if self.deployment.strategy == "ab" and wanted not in known:
            raise ValueError(
                f"deployment.ab.metric is {wanted!r}, but nothing measures it (known: {', '.join(known) or 'none'}): "
                "set canary.labels: {metric: accuracy}, or name one of canary.business"
            )
        return self

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.project.package is None:
            if self.data is None:
                raise ValueError("data is missing: without project.package it must name the table and the label")
            if self.data.table not in self.sources:
                raise ValueError(f"data.table {self.data.table!r} is not one of sources: {', '.join(self.sources)}")
        elif self.data is not None:
            raise ValueError("data describes a flat table and cannot stand beside project.package")
        if self.train.format == "joblib" and not self.trust.joblib:
            raise ValueError("train.format is joblib: set trust.joblib: true too, or nothing here would open the model")
        for name, environment in self.environments.items():
            if environment.requires is not None and environment.requires not in self.environments:
                raise ValueError(f"environments.{name}.requires {environment.requires!r} is no environment")
            if self.model_name in environment.models:
                raise ValueError(f"environments.{name}.models.{self.model_name}: this project's own model is called so")
        self._check_chains()
        taken: dict[tuple[str, int], str] = {}
        for name, environment in self.environments.items():
            if environment.target.kind == "http":
                continue
            first = taken.setdefault((environment.host, environment.port), name)
            if first != name and environment.port != 0:
                raise ValueError(f"environments.{name}.port {environment.port} is that of environments.{first} too")
        return self

    def _check_chains(self) -> None:
        """Nothing can ever be deployed to an environment that, in the end, requires itself."""
        for name in self.environments:
            chain: list[str] = []
            step: str | None = name
            while step is not None and step not in chain:
                chain.append(step)
                step = self.environments[step].requires
            if step is not None:
                raise ValueError(f"environments.{name}.requires goes in a circle: {' → '.join([*chain, step])}")

    @property
    def model_name(self) -> str:
        """Name of the registered model."""
        return self.registry.model or self.project.name

    @property
    def production(self) -> str:
        """Name of the environment at the end of the chain of ``requires``: the one whose stable model is the champion.

        Where several chains end, the last one listed that requires another counts.
        """
        required = {environment.requires for environment in self.environments.values()}
        ends = [name for name in self.environments if name not in required]
        chained = [name for name in ends if self.environments[name].requires is not None]
        return (chained or ends or list(self.environments))[-1]

    def time(self) -> datetime | None:
        """``as_of`` in UTC; None where the data knows no time.

        Raises
        ------
        UsageError
            ``as_of`` is still ``auto``: only the caller of the line may resolve it.
        """
        if self.as_of == "auto":
            raise UsageError("params.yaml: as_of is auto: resolve it first with scripts/resolve_as_of.py --write")
        return self.as_of

    def environment(self, name: str) -> EnvironmentParams:
        """The named environment.

        Raises
        ------
        UsageError
            There is none of that name.
        """
        if name not in self.environments:
            known = ", ".join(self.environments)
            raise UsageError(f"environment {name!r} is not in params.yaml (environments: {known})")
        return self.environments[name]


def _with_defaults(content: dict[str, Any]) -> dict[str, Any]:
    """``params.yaml`` with the defaults of its kind of target where it says nothing; what is malformed is left."""
    target = content.get("target")
    kind = target.get("kind") if isinstance(target, dict) else getattr(target, "kind", None)
    filled = dict(content)
    for path, value in _DEFAULTS_OF.get(str(kind), {}).items():
        place = filled
        for name in path[:-1]:
            inner = place.get(name, {})
            if not isinstance(inner, dict):
                break
            place[name] = place = dict(inner)
        else:
            place.setdefault(path[-1], value)
    return filled


def _misfits(params: "Params") -> Iterator[tuple[str, str]]:
    """Each setting that cannot apply to the kind of target, and what to do about it. Nothing is ever skipped."""
    kind, gates = params.target.kind, params.gates
    named = {
        "gates.champion.metric": gates.champion.metric,
        "gates.slices.metric": gates.slices.metric,
        "train.tune.metric": None if params.train.tune is None else params.train.tune.metric,
        "decision.performance.metric": params.decision.performance.metric,
    }
    for key, name in named.items():
        if name is not None and name not in METRICS_OF[kind]:
            yield key, f"choose one of {', '.join(METRICS_OF[kind])}, not {name!r}"
    for name in gates.floors.keys() - set(METRICS_OF[kind]):
        from clearway.scorers import why_not  # here, because it imports scikit-learn: seconds

        if reason := why_not(name, kind):
            yield f"gates.floors.{name}", f"{reason}: choose one of {', '.join(METRICS_OF[kind])} or a scorer that does"
    only: list[tuple[str, Any, Any, tuple[Kind, ...]]] = [
        ("train.threshold", params.train.threshold, 0.5, ("binary",)),
        ("data.positive", params.data.positive if params.data else 1, 1, ("binary",)),
        ("train.class_weights", params.train.class_weights, None, ("binary", "multiclass")),
        ("train.calibration", params.train.calibration, None, ("binary", "multiclass")),
        ("gates.calibration.max_error", gates.calibration.max_error, None, ("binary", "multiclass")),
        ("gates.calibration.champion_margin", gates.calibration.champion_margin, None, ("binary", "multiclass")),
        ("gates.fairness.min_ratio", gates.fairness.min_ratio, None, ("binary", "multiclass")),
        ("gates.fairness.ratio_margin", gates.fairness.ratio_margin, None, ("binary", "multiclass")),
        ("gates.fairness.classes", gates.fairness.classes, (), ("multiclass",)),
        ("gates.classes", gates.classes, ClassesGate(), ("multiclass",)),
        ("gates.noise.tolerance", gates.noise.tolerance, 0.1, ("regression",)),
        ("gates.leakage.max_single_auc", gates.leakage.max_single_auc, 0.99, ("binary", "multiclass")),
        ("gates.leakage.max_single_r2", gates.leakage.max_single_r2, 0.99, ("regression",)),
    ]
    labels = params.canary.labels
    if labels is not None and labels.metric == "accuracy" and kind == "regression":
        yield "canary.labels.metric", "numbers have no accuracy: choose loss"
    for key, value, default, kinds in only:
        if value != default and kind not in kinds:
            yield key, f"it applies to {' and '.join(kinds)} only: remove it"
    for test in gates.behaviour:
        if test.of_class is not None and kind != "multiclass":
            yield f"gates.behaviour.{test.name}.of_class", "only multiclass targets have classes: remove it"
        if test.of_class is None and kind == "multiclass" and test.expect != "same":
            yield f"gates.behaviour.{test.name}", f"say the probability of which class goes {test.expect}: add of_class"


def load_params(path: Path) -> Params:
    """Read and check ``params.yaml``.

    Raises
    ------
    UsageError
        The file is missing, is not YAML, or a key or value in it is wrong or a key stands twice; names file, key and
        value.
    """
    content = read_mapping(path, "a project folder needs a params.yaml (see docs/params.md)")
    for key, value in _unquoted_times(content):
        raise UsageError(f'{path}: {key} = {value} must be quoted ("2013-07-01"): DVC tracks no YAML times')
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{path}: {describe(error)}") from None


def _unquoted_times(content: Any, key: str = "") -> Iterator[tuple[str, date]]:
    """Every time that YAML reads as a time, with its key."""
    if isinstance(content, date):
        yield key, content
    elif isinstance(content, dict):
        for name, value in content.items():
            yield from _unquoted_times(value, f"{key}.{name}".lstrip("."))


def describe(error: ValidationError) -> str:
    """One line for a pydantic error: each key with its value, what is wrong, and what to do."""
    lines = []
    for problem in error.errors():
        # pydantic adds which alternative of a type it tried, such as function-before[_utc(), datetime]
        key = ".".join(str(part) for part in problem["loc"] if "[" not in str(part))
        key = key if key.isprintable() else ascii(key)
        value = problem["input"]
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown key {key} = {value!r}: remove it or correct its name")
        elif problem["type"] == "missing":
            lines.append(f"key {key} is missing: add it")
        elif isinstance(value, dict):
            lines.append(f"{key}: {problem['msg'].removeprefix('Value error, ')}".removeprefix(": "))
        else:
            lines.append(f"{key or 'content'} = {value!r}: {problem['msg'].removeprefix('Value error, ')}")
    return "; ".join(lines)
