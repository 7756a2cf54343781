"""Every feature of every question of a stored project, after ingest: ``flights_training_set.py PROJECT REPEATS``.

Making the rows of the views from the raw tables is counted apart from asking for the training set, which registers the
definitions, joins every view, and computes what is computed on demand.
"""

import os
import sys
import time
from pathlib import Path

from _measure import peak_mb, report, seconds

started = time.perf_counter()
import clearway.feature_store  # noqa: E402, F401 - imports Feast
from clearway.acceptance import accept_raw  # noqa: E402
from clearway.params import load_params  # noqa: E402
from clearway.project import StoredProject, load_project  # noqa: E402
from clearway.snapshot import load_tables  # noqa: E402
from clearway.stored_features import event_tables, historical_features, inputs_of, write_event_tables  # noqa: E402
from clearway.workspace import Workspace  # noqa: E402

imported = time.perf_counter() - started


def main() -> None:
    workspace, repeats = Workspace(Path(sys.argv[1])), int(sys.argv[2])
    os.chdir(workspace.root)
    params = load_params(workspace.params_file)
    project = load_project(params, {})
    if not isinstance(project, StoredProject):
        sys.exit(f"package {params.project.package} defines no features with Feast")
    as_of = params.time()
    tables = accept_raw(load_tables(workspace, params), params, workspace, as_of)
    began = time.perf_counter()
    events = event_tables(project, tables, known_until=as_of)
    write_event_tables(events, workspace.feature_tables)
    made = time.perf_counter() - began
    questions = project.questions(tables)
    inputs = inputs_of(project, questions, tables)
    few = questions.index[:1000]  # what the first call imports is no part of the others
    historical_features(params, workspace, project, questions.loc[few], inputs.loc[few])
    answers = []

    def ask() -> None:
        answers[:] = [historical_features(params, workspace, project, questions, inputs)]

    peak = peak_mb(ask)
    times = seconds(ask, repeats)
    report(
        import_seconds=imported,
        events_seconds=made,
        seconds=times,
        extra_mb=peak,
        questions=len(questions),
        lost=len(questions) - len(answers[0]),
        features=answers[0].shape[1],
        views=len(events),
        event_rows=sum(map(len, events.values())),
    )


if __name__ == "__main__":
    main()
