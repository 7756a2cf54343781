"""What params.yaml names must exist: a package that can be imported, columns that the schema lists."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from clearway.errors import UsageError
from clearway.params import Params
from clearway.project import Project, StoredProject, definitions_sha256, load_package, load_project

VALUES = {"sources": {"pets": {"kind": "csv", "path": "pets.csv"}}, "environments": {"production": {"port": 0}}}


@pytest.mark.parametrize("name", ["", ".relative", "../folder", "no_such_package_anywhere"])
def test_a_package_that_cannot_be_found_is_named(name: str) -> None:
    with pytest.raises(UsageError, match=r"params.yaml: project.package = .* cannot be imported") as raised:
        load_package(name)
    assert repr(name) in str(raised.value)


def test_who_has_a_package_that_is_not_found_is_told_where_to_put_it() -> None:
    params = Params.model_validate({"project": {"name": "x", "package": "no_such_package_anywhere"}, **VALUES})
    for call in (lambda: load_package("no_such_package_anywhere"), lambda: definitions_sha256(params)):
        with pytest.raises(UsageError, match="put it into the project's folder, or put its folder on PYTHONPATH"):
            call()
    with pytest.raises(UsageError) as raised:
        load_package("../folder")
    assert "PYTHONPATH" not in str(raised.value)


def test_a_package_that_is_one_module_is_hashed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "one_module_alone.py").write_text("A = 1\n")
    params = Params.model_validate({"project": {"name": "x", "package": "one_module_alone"}, **VALUES})
    before = definitions_sha256(params)
    (tmp_path / "neighbour.py").write_text("B = 1\n")
    assert definitions_sha256(params) == before
    (tmp_path / "one_module_alone.py").write_text("A = 2\n")
    assert definitions_sha256(params) != before


@pytest.mark.parametrize("code", ["1 / 0", "def (", "from json import nothing"])
def test_a_package_that_fails_while_imported_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    name = f"fails_while_imported_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=r"cannot be imported: (ZeroDivision|Syntax|Import)Error") as raised:
        load_package(name)
    assert "\n" not in str(raised.value)


def test_a_package_that_imports_its_project_late_fails_in_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "def __getattr__(name):\n    if name == 'PROJECT':\n        import no_such_library\n    raise AttributeError\n"
    )
    (tmp_path / "fails_when_asked.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    values = {"sources": {"pets": {"kind": "csv", "path": "pets.csv"}}, "environments": {"production": {"port": 0}}}
    params = Params.model_validate({"project": {"name": "late", "package": "fails_when_asked"}, **values})
    with pytest.raises(UsageError, match=r"'fails_when_asked' cannot be imported: ModuleNotFoundError"):
        load_project(params, {})


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"label": "cats"}, "data.label 'cats'"),
        ({"label": "cat", "entity": "owners"}, "data.entity 'owners'"),
        ({"label": "cat", "ignore": ["owner", "chip"]}, "data.ignore 'chip'"),
    ],
)
def test_a_column_that_the_schema_does_not_list_is_named(data: dict[str, object], named: str) -> None:
    params = Params.model_validate(
        {
            "project": {"name": "pets"},
            "sources": {"pets": {"kind": "csv", "path": "pets.csv"}},
            "data": {"table": "pets", **data},
            "environments": {"production": {"port": 0}},
        }
    )
    with pytest.raises(UsageError, match=named):
        load_project(params, {"cat": "bool", "owner": "str", "age": "int"})


class Asks:
    """What every package offers."""

    numeric = ("load",)
    categorical = ()

    def known_at(self, table: str, frame: object, as_of: object) -> object:
        return frame

    def questions(self, tables: object) -> object:
        return tables


def stored(**members: object) -> object:
    return type("Stored", (Asks,), members)()


@pytest.mark.parametrize(
    ("offered", "said"),
    [
        (
            None,
            r"must define PROJECT with: numeric, categorical, known_at\(\), questions\(\), and either features\(\) or",
        ),
        (Asks(), r"lacks features\(\) \(either features\(\) or definitions\(\) and inputs\(\)\)"),
        (stored(inputs=len), r"lacks definitions\(\) \(either"),
        (stored(definitions=len), r"lacks inputs\(\) \(either"),
        (object(), r"lacks numeric, categorical, known_at\(\), questions\(\), features\(\)"),
        (
            stored(inputs=len, definitions=len, features=len),
            r"has features\(\) and definitions\(\), inputs\(\): .*remove",
        ),
    ],
)
def test_a_package_that_breaks_the_contract_is_told_which_members_it_lacks(
    monkeypatch: pytest.MonkeyPatch, offered: object, said: str
) -> None:
    with pytest.raises(UsageError, match=said) as raised:
        load_offered(monkeypatch, offered)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("members", [{"features": len}, {"definitions": len, "inputs": len}])
def test_both_kinds_of_projects_are_loaded(monkeypatch: pytest.MonkeyPatch, members: dict[str, object]) -> None:
    project = stored(**members)
    assert load_offered(monkeypatch, project) is project
    assert isinstance(project, StoredProject) == ("inputs" in members)
    assert isinstance(project, Project) == ("features" in members)


def load_offered(monkeypatch: pytest.MonkeyPatch, project: object) -> object:
    module = ModuleType("offered_by_a_test")
    if project is not None:
        module.PROJECT = project  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    values = {"sources": {"pets": {"kind": "csv", "path": "pets.csv"}}, "environments": {"production": {"port": 0}}}
    return load_project(Params.model_validate({"project": {"name": "x", "package": module.__name__}, **values}), {})
