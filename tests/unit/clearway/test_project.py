"""What params.yaml names must exist: a package that can be imported, columns that the schema lists."""

from pathlib import Path

import pytest

from clearway.errors import UsageError
from clearway.params import Params
from clearway.project import load_package, load_project


@pytest.mark.parametrize("name", ["", ".relative", "../folder", "no_such_package_anywhere"])
def test_a_package_that_cannot_be_found_is_named(name: str) -> None:
    with pytest.raises(UsageError, match=r"params.yaml: project.package = .* cannot be imported") as raised:
        load_package(name)
    assert repr(name) in str(raised.value)


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
