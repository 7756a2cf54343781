"""A file of settings is read as it is written, or refused in one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from clearway.errors import UsageError
from clearway.strict_yaml import read_mapping


def read(folder: Path, content: str | bytes) -> dict[str, Any]:
    path = folder / "settings.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_mapping(path, "settings belong there")


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb: {c: [1, {d: 2}], e: null}\n",
        "same: {x: 1, y: {x: 2}}\nother: {x: 1}\n",  # in another mapping it is another key
        "1: number\n'1': text\n",
        "base: &base {x: 1}\nmade: {<<: *base, x: 2}\n",
        "deep:\n  - kept: {inner: &inner {<<: &base {x: 1}, x: 2}}\nagain: {<<: *inner, x: 3}\nalso: *inner\n",
        "both: {<<: {x: 1}, <<: {y: 2}}\n",
    ],
)
def test_what_names_each_key_once_is_what_the_safe_loader_reads(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 1\n", "line 3: key a stands twice, first in line 1: keep one"),
        ("a: {b: 1, b: 2}\n", "line 1: key a.b stands twice, first in line 1: keep one"),
        ("a: 1\n'a': 2\n", "line 2: key a stands twice"),
        ("a:\n  - x: 1\n  - x: 1\n    y: 2\n    x: 3\n", "line 5: key a.1.x stands twice, first in line 3"),
        ("a: 1\nb: 2\nc: 3\nb: 2\na: 1\n", "line 4: key b stands twice, first in line 2"),
        ("base: &base {x: 1, x: 2}\nmade: {<<: *base}\n", "line 1: key base.x stands twice"),
    ],
)
def test_a_key_that_stands_twice_is_named_with_both_lines(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        read(tmp_path, text)
    assert str(raised.value).startswith(f"{tmp_path / 'settings.yaml'} {said}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: [", "is not valid YAML"),
        (b"a: \xff\n", "is not valid YAML"),
        ("a: 2013-13-01\n", "is not valid YAML: month must be in 1..12"),
        ("a: !!python/name:os.system\n", "is not valid YAML"),
        ("- a\n", "must be a mapping of keys to values, found list"),
        ("", "must be a mapping of keys to values, found NoneType"),
    ],
)
def test_what_is_no_mapping_is_refused_in_one_line(tmp_path: Path, content: str | bytes, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        read(tmp_path, content)
    assert str(raised.value).startswith(f"{tmp_path / 'settings.yaml'} {said}")
    assert "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read_says_what_belongs_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.yaml is missing: settings belong there"):
        read_mapping(tmp_path / "gone.yaml", "settings belong there")
    with pytest.raises(UsageError, match=r"cannot be read \(Is a directory\): settings belong there"):
        read_mapping(tmp_path, "settings belong there")
