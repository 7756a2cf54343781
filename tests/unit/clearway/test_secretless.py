"""What opens a door is not shown."""

import pytest

from clearway.secretless import shown


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("postgresql://me:pass@host/db?x=1", "postgresql://***@host/db?x=1"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("a@b.example", "a@b.example"),
        (
            {"storage_options": {"aws_secret": "x", "anon": True}},
            {"storage_options": {"aws_secret": "***", "anon": True}},
        ),
        (
            {"api_key": "x", "tokens": ["a", "b"], "password": None},
            {"api_key": "***", "tokens": ["***", "***"], "password": None},
        ),
        (["http://u:p@h", 3], ["http://***@h", 3]),
        ({"key": "row"}, {"key": "row"}),
    ],
)
def test_secrets_are_hidden_and_nothing_else(value: object, expected: object) -> None:
    assert shown(value) == expected
