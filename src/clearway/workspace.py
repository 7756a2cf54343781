"""Where everything lives. One object knows every path; nothing else spells one out."""

from dataclasses import dataclass
from pathlib import Path

MODEL_REPORT, MODEL_PAGE, DRAWINGS, PLOTS = "model_validation.json", "model_validation.html", "drawings", "plots"
"""What the gates write under ``reports/``: the verdict, its page, the page's drawings, and the numbers behind them."""


@dataclass(frozen=True)
class Workspace:
    """The folder of one project: its params.yaml, and all that the line reads and writes for it."""

    root: Path

    @property
    def params_file(self) -> Path:
        return self.root / "params.yaml"

    @property
    def raw(self) -> Path:
        """Raw tables at ``as_of``, one Parquet file each, and ``snapshot.json``."""
        return self.root / "data" / "raw"

    def raw_table(self, table: str) -> Path:
        return self.raw / f"{table}.parquet"

    @property
    def snapshot(self) -> Path:
        return self.raw / "snapshot.json"

    @property
    def quarantine(self) -> Path:
        """Rows that the validation has set aside, one Parquet file per table, and ``quarantine.json``."""
        return self.root / "data" / "quarantine"

    @property
    def features(self) -> Path:
        """``training.parquet``, ``holdout.parquet``, ``current.parquet`` and ``features.json``."""
        return self.root / "data" / "features"

    @property
    def feature_tables(self) -> Path:
        """The rows of each feature view, one Parquet file each: the offline store."""
        return self.root / "data" / "feature_tables"

    @property
    def build(self) -> Path:
        return self.root / "build"

    @property
    def champion(self) -> Path:
        """``champion.json`` and, unless this is a bootstrap, ``bundle/``."""
        return self.build / "champion"

    @property
    def past_decisions(self) -> Path:
        """What was decided before, as far as the next decision may weigh it."""
        return self.build / "past_decisions.json"

    @property
    def model(self) -> Path:
        """The challenger's payload: exactly the files its digest covers."""
        return self.build / "model"

    @property
    def baseline(self) -> Path:
        """The payload of the simple model that the gates compare with."""
        return self.build / "baseline"

    @property
    def bundle(self) -> Path:
        return self.build / "bundle"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def drift_result(self) -> Path:
        """``true`` or ``false``, for shell users."""
        return self.root / "drift_result.txt"

    @property
    def var(self) -> Path:
        """All state: bundles, environments, MLflow."""
        return self.root / "var"

    @property
    def feature_store(self) -> Path:
        """Feast's registry, the embedded online store, and ``online.json``: how far it is filled."""
        return self.var / "feature_store"

    @property
    def unfinished(self) -> Path:
        """Study and checkpoints of a training that has not ended, where DVC, which removes a stage's outs, does not."""
        return self.var / "training"

    @property
    def bundles(self) -> Path:
        return self.var / "bundles"

    @property
    def decisions(self) -> Path:
        """History of decisions, one JSON line each."""
        return self.var / "decisions.jsonl"

    def environment(self, name: str) -> Path:
        """Ledger, routing table, prediction log and server record of one environment."""
        return self.var / "environments" / name
