import subprocess
from pathlib import Path

import pytest
import yaml

from clearway.errors import ClearwayError, UsageError
from clearway.project_folder import HEADER, HOME, check_source_deps, prepare, render_dvc

FLAT = """
project: {name: pets}
sources: {pets: {kind: csv, path: pets.csv}}
data: {table: pets, label: cat}
environments: {production: {port: 0}}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(FLAT)
    (tmp_path / "schema.yaml").write_text("tables: {}\n")
    (tmp_path / "pets.csv").write_text("cat\n")
    return tmp_path


def test_every_path_of_the_rendered_pipeline_exists(project: Path) -> None:
    stages = yaml.safe_load(render_dvc(HOME, project))["stages"]
    made_by = [out for stage in stages.values() for kind in ("outs", "metrics") for out in stage.get(kind, [])]
    outs = {next(iter(out)) if isinstance(out, dict) else out for out in made_by}
    for name, stage in stages.items():
        for dep in stage["deps"]:
            made = any(dep == out or dep.startswith(f"{out}/") for out in outs)
            assert made or (project / dep).exists(), f"{name} depends on {dep}, which is nowhere"
        assert (project / stage["cmd"].split()[1]).exists()


def test_the_rendered_pipeline_tracks_only_params_that_exist(project: Path) -> None:
    stages = yaml.safe_load(render_dvc(HOME, project))["stages"]
    assert stages["features"]["params"] == ["project", "data"]


def test_a_project_without_a_package_depends_on_no_package(project: Path) -> None:
    stages = yaml.safe_load(render_dvc(HOME, project))["stages"]
    sources = {dep for stage in stages.values() for dep in stage["deps"] if "/src/" in f"/{dep}"}
    assert all("src/clearway/" in dep for dep in sources)


def test_the_source_file_is_a_dependency_of_ingest(project: Path) -> None:
    assert "pets.csv" in yaml.safe_load(render_dvc(HOME, project))["stages"]["ingest"]["deps"]


def test_a_source_that_dvc_cannot_watch_is_read_every_time(project: Path) -> None:
    text = FLAT.replace("kind: csv, path: pets.csv", "kind: sql, url: 'sqlite:///pets.db', query: select 1")
    (project / "params.yaml").write_text(text)
    assert yaml.safe_load(render_dvc(HOME, project))["stages"]["ingest"]["always_changed"]


def test_a_hand_written_pipeline_that_would_miss_a_new_file_is_refused(project: Path) -> None:
    (project / "dvc.yaml").write_text("stages: {ingest: {cmd: x, deps: [], outs: [data/raw]}}\n")
    with pytest.raises(UsageError, match=r"stage ingest must list pets\.csv"):
        check_source_deps(project)


@pytest.mark.parametrize(
    ("source", "refusal"),
    [
        ({"kind": "csv", "path": "more.csv"}, r"stage ingest must list more\.csv among its deps"),
        ({"kind": "csv", "path": "https://example.org/more.csv"}, r"always_changed: true, .* sources\.more change"),
    ],
)
def test_this_repositorys_own_pipeline_watches_its_sources_and_would_miss_another(
    tmp_path: Path, source: dict[str, str], refusal: str
) -> None:
    check_source_deps(HOME)
    params = yaml.safe_load((HOME / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({**params, "sources": {**params["sources"], "more": source}}))
    (tmp_path / "dvc.yaml").write_text((HOME / "dvc.yaml").read_text())
    with pytest.raises(UsageError, match=refusal):
        check_source_deps(tmp_path)


def test_prepare_outside_git_starts_dvc_without_git(project: Path) -> None:
    prepare(project)
    assert (project / ".dvc" / "config").read_text().count("no_scm = True") == 1
    assert (project / "dvc.yaml").read_text().startswith(HEADER)


def test_a_pipeline_that_a_person_took_over_is_left_alone(project: Path) -> None:
    prepare(project)
    (project / "dvc.yaml").write_text("stages: {}\n")
    prepare(project)
    assert (project / "dvc.yaml").read_text() == "stages: {}\n"


def test_a_line_outside_git_is_refused(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("home")
    with pytest.raises(UsageError, match="is not a git repository"):
        prepare(project, home)


def test_a_missing_source_is_named_with_its_key(project: Path) -> None:
    (project / "pets.csv").unlink()
    with pytest.raises(ClearwayError, match=r"pets\.csv is missing \(params\.yaml: sources\.pets\.path"):
        prepare(project)


def test_prepare_in_a_subfolder_of_a_repository_keeps_git(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    project = tmp_path / "models" / "pets"
    project.mkdir(parents=True)
    (project / "params.yaml").write_text(FLAT)
    (project / "pets.csv").write_text("cat\n")
    prepare(project)
    assert "no_scm" not in (project / ".dvc" / "config").read_text()
    assert "/var/" in (project / ".gitignore").read_text()
