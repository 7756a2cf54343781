"""What opens a door is not shown."""

import pytest
import yaml

from clearway.secretless import HIDDEN, bared, shown, with_secrets, without_secrets


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
        ("postgresql://me:p@ss/w?rd@host/db", "postgresql://***@host/db"),
        ("https://ghp_abc@host/x.csv", "https://***@host/x.csv"),
        ("https://host:8080/a@b?page=2", "https://host:8080/a@b?page=2"),
        (
            "https://a.blob.example/x.csv?sv=1&sig=abc%2F&X-Amz-Signature=def&X-Amz-Security-Token=g",
            "https://a.blob.example/x.csv?sv=1&sig=***&X-Amz-Signature=***&X-Amz-Security-Token=***",
        ),
    ],
)
def test_secrets_are_hidden_and_nothing_else(value: object, expected: object) -> None:
    assert shown(value) == expected


WRITTEN = """sources:
  a: {kind: sql, url: "postgresql://me:p@ss@host/db", query: select 1}
  b: {kind: sql, url: 'sql://me:${PASSWORD}@host/db?token=${TOKEN}', query: "select 'x@y'"}
  c: # ann@example.org
    kind: csv
    path: https://host/c.csv?sig=abc
  d: {kind: csv, path: abfs://container@account/d.csv}
"""


def test_a_text_keeps_all_but_what_opens_a_door() -> None:
    bare = without_secrets(WRITTEN)
    assert bare == WRITTEN.replace("me:p@ss", HIDDEN).replace("sig=abc", f"sig={HIDDEN}")
    assert yaml.safe_load(bare) == bared(yaml.safe_load(WRITTEN))


def test_secrets_come_back_from_the_same_source_only() -> None:
    now = yaml.safe_load(WRITTEN)
    assert with_secrets(bared(now), now) == now
    moved = {"sources": {**now["sources"], "a": {**now["sources"]["a"], "query": "select 2"}}}
    back = with_secrets(bared(now), moved)
    assert back["sources"]["a"]["url"] == f"postgresql://{HIDDEN}@host/db"
    assert back["sources"]["c"] == now["sources"]["c"]
    assert with_secrets(bared(now), {}) == bared(now)
