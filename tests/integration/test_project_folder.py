import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clearway.errors import ClearwayError, UsageError
from clearway.lineage import recipe_sha256
from clearway.params import load_params
from clearway.project_folder import HEADER, HOME, check_source_deps, prepare, render_dvc
from clearway.workspace import Workspace

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


PACKAGED = """
project: {name: pets, package: pets_of_a_test}
sources: {pets: {kind: csv, path: pets.csv}}
environments: {production: {port: 0}}
"""
PACKAGE = """
OLD = 7


class Pets:
    numeric, categorical = ("age",), ()

    def known_at(self, table, frame, as_of):
        return frame

    def questions(self, tables): ...

    def features(self, questions, tables): ...


PROJECT = Pets()
"""


@pytest.fixture
def packaged(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a package in its folder, which no path names."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (project / "params.yaml").write_text(PACKAGED)
    (project / "pets.csv").write_text("cat,age\n1,2\n")
    (project / "pets_of_a_test").mkdir()
    (project / "pets_of_a_test" / "__init__.py").write_text(PACKAGE)
    return project


def test_a_change_of_the_projects_own_package_is_a_change_to_dvc(packaged: Path) -> None:
    """Every stage that names the example in the line's own pipeline names the package in its place."""
    prepare(packaged)
    own = yaml.safe_load((HOME / "dvc.yaml").read_text())["stages"]
    made = yaml.safe_load((packaged / "dvc.yaml").read_text())["stages"]
    stages = {name for name, stage in own.items() if "src/flights" in stage["deps"]}
    assert stages == {name for name, stage in made.items() if "pets_of_a_test" in stage["deps"]} >= {"features"}

    def dvc(*arguments: str) -> str:
        place = {**os.environ, "CLEARWAY_PROJECT": ".", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        place.pop("PYTHONDONTWRITEBYTECODE", None)
        command = [sys.executable, "-m", "dvc", *arguments]
        done = subprocess.run(command, cwd=packaged, env=place, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    dvc("repro", "ingest")
    assert (packaged / "pets_of_a_test" / "__pycache__").exists(), "it was imported without being installed"
    assert "up to date" in dvc("status", "ingest")
    code = packaged / "pets_of_a_test" / "__init__.py"
    code.write_text(code.read_text().replace("OLD = 7", "OLD = 8"))
    for stage in ("ingest", "features"):
        assert re.search(r"(modified|new): +pets_of_a_test", dvc("status", stage))


def test_a_package_elsewhere_is_watched_file_by_file(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path_factory.mktemp("elsewhere"))])
    package = Path(sys.path[-1]) / "pets_elsewhere"
    (package / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").write_text(PACKAGE)
    (package / "more.py").write_text("")
    (project / "params.yaml").write_text(PACKAGED.replace("pets_of_a_test", "pets_elsewhere"))
    deps = yaml.safe_load(render_dvc(HOME, project))["stages"]["features"]["deps"]
    found = sorted((project / dep).resolve() for dep in deps if "pets_elsewhere" in dep)
    assert found == [package / "__init__.py", package / "more.py"]


def test_a_package_that_is_nowhere_is_refused_in_one_line(packaged: Path) -> None:
    (packaged / "params.yaml").write_text(PACKAGED.replace("pets_of_a_test", "nowhere_at_all"))
    with pytest.raises(UsageError, match=r"package = 'nowhere_at_all' cannot be found: install it, put") as raised:
        prepare(packaged)
    assert "\n" not in str(raised.value)


def test_a_hand_written_pipeline_that_would_miss_a_changed_package_is_refused(packaged: Path) -> None:
    stages = "ingest: {cmd: x, deps: [pets.csv], outs: [data/raw]}, features: {cmd: x, deps: [data/raw]}"
    (packaged / "dvc.yaml").write_text(f"stages: {{{stages}}}\n")
    with pytest.raises(UsageError, match="stage features must list pets_of_a_test among its deps"):
        check_source_deps(packaged)


def test_the_code_of_an_estimator_is_a_dependency_and_a_part_of_the_recipe(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module beside params.yaml, and every file of a package; what is installed is no code of the project."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    train = "train: {estimator: ours_of_a_test.deep.Model, baseline: sklearn.linear_model.LogisticRegression}\n"
    (project / "params.yaml").write_text(FLAT + train)
    package = project / "ours_of_a_test"
    package.mkdir()
    for name in ("__init__", "deep", "helper"):
        (package / f"{name}.py").write_text("a = 1\n")
    prepare(project)
    stages = yaml.safe_load((project / "dvc.yaml").read_text())["stages"]
    assert {name for name, stage in stages.items() if "ours_of_a_test" in stage["deps"]} == {"decide", "train"}
    params = load_params(project / "params.yaml")
    before = recipe_sha256(params, Workspace(project))
    (package / "helper.py").write_text("a = 2\n")
    assert recipe_sha256(params, Workspace(project)) != before
    (project / "dvc.yaml").write_text("stages: {ingest: {cmd: x, deps: [pets.csv]}, train: {cmd: x, deps: [data]}}\n")
    with pytest.raises(UsageError, match="stage train must list ours_of_a_test among its deps"):
        check_source_deps(project)
