"""What of a lock is in a remote, what to move, and what to say of a remote that fails; without one."""

import threading

import pytest

from clearway.data_remote import (
    Entry,
    Survey,
    explain,
    judge,
    listed,
    to_pull,
    to_push,
    within,
    without_password,
)
from clearway.errors import ClearwayError

FOLDER = Entry("data/raw/", "f" * 32 + ".dir")
FILE = Entry("data/raw/cells.parquet", "a" * 32)
REPORT = Entry("reports/metrics.json", "b" * 32)
ALL = frozenset(entry.oid for entry in (FOLDER, FILE, REPORT))
REMOTE = "store (s3://bucket/models)"


def survey(
    cached: frozenset[str] = frozenset(), stored: frozenset[str] = ALL, damaged: tuple[Entry, ...] = ()
) -> Survey:
    return Survey(REMOTE, (FOLDER, FILE, REPORT), cached, stored, damaged)


def test_all_in_the_remote_passes_whatever_is_here() -> None:
    verdict = judge([survey()])
    assert verdict.status == "complete"
    assert verdict.passed
    assert verdict.missing == ()


@pytest.mark.parametrize("entry", [FOLDER, FILE, REPORT])
def test_one_object_missing_fails_and_is_named_with_its_md5_and_what_to_do(entry: Entry) -> None:
    verdict = judge([survey(cached=ALL, stored=ALL - {entry.oid})])
    assert not verdict.passed
    assert verdict.missing == (entry,)
    for said in (entry.path, entry.oid, REMOTE, "1 of 3", "make data-push"):
        assert said in verdict.sentence


def test_a_damaged_list_of_a_folder_is_as_good_as_missing() -> None:
    assert judge([survey(damaged=(FOLDER,))]).missing == (FOLDER,)


def test_each_remote_must_hold_what_belongs_there() -> None:
    other = Survey("other (/mnt/disk)", (REPORT,), frozenset(), frozenset())
    verdict = judge([survey(), other])
    assert verdict.missing == (REPORT,)
    assert "other (/mnt/disk)" in verdict.sentence


def test_a_lock_that_names_nothing_passes_and_says_so() -> None:
    assert judge([]).status == "nothing_named"
    assert judge([Survey(REMOTE, (), frozenset(), frozenset())]).passed


def test_what_the_remote_lacks_is_pushed() -> None:
    assert to_push(survey(cached=ALL, stored=frozenset({FILE.oid}))) == {FOLDER.oid, REPORT.oid}
    assert to_push(survey()) == set(), "what is there need not be here"


def test_what_is_neither_here_nor_there_cannot_be_pushed_and_nothing_is_pulled_beside_it() -> None:
    lost = survey(cached=frozenset({FOLDER.oid}), stored=frozenset({REPORT.oid}))
    for decide in (to_push, to_pull):
        with pytest.raises(ClearwayError, match=r"data/raw/cells.parquet \(md5 a{32}\)") as raised:
            decide(lost)
        assert REPORT.path not in str(raised.value)


def test_what_is_missing_here_is_pulled() -> None:
    assert to_pull(survey(cached=frozenset({FILE.oid}))) == {FOLDER.oid, REPORT.oid}
    assert to_pull(survey(cached=ALL, stored=frozenset())) == set()


def test_nothing_is_pulled_by_a_list_that_is_damaged() -> None:
    with pytest.raises(ClearwayError, match=r"damaged in the remote .*data/raw/"):
        to_pull(survey(damaged=(FOLDER,)))


def test_a_line_names_a_few_and_counts_the_rest() -> None:
    entries = [Entry(f"data/{n}", f"{n:032x}") for n in range(9)]
    assert listed(entries).endswith(f"data/4 (md5 {4:032x}) and 4 more")


def test_a_password_in_a_url_is_not_printed() -> None:
    assert without_password("ssh://ann:secret@host:22/x") == "ssh://ann:***@host:22/x"
    assert without_password("s3://bucket/x") == "s3://bucket/x"


def named(name: str, *bases: type[Exception]) -> Exception:
    """An error as a package raises it that need not be installed."""
    error = type(name, bases or (Exception,), {})("said\n  so")
    assert isinstance(error, Exception)
    return error


@pytest.mark.parametrize(
    ("error", "scheme", "wanted"),
    [
        (ImportError("gs is supported, but requires 'dvc-gs'"), "gs", r"uv pip install 'dvc\[gs\]'"),
        (named("RemoteMissingDepsError"), "azure", r"uv pip install 'dvc\[azure\]'"),
        (named("NoCredentialsError"), "s3", "no usable credentials .* AWS_ACCESS_KEY_ID"),
        (named("DefaultCredentialsError"), "gs", "no usable credentials .* GOOGLE_APPLICATION_CREDENTIALS"),
        (named("ClientAuthenticationError"), "azure", "refused access: said so: .* AZURE_STORAGE"),
        (named("PermissionDenied"), "ssh", "refused access: said so: .* ssh-agent"),
        (PermissionError("The key is not known"), "s3", "refused access: The key is not known"),
        (PermissionError(13, "Permission denied"), "", "refused access: .*: check its rights$"),
        (named("NoSuchBucket"), "s3", "the bucket of the remote .* does not exist"),
        (named("EndpointConnectionError"), "s3", "cannot be reached: said so"),
        (named("ConnectTimeoutError"), "s3", "cannot be reached"),
        (ConnectionRefusedError(111, "refused"), "ssh", "cannot be reached"),
        (TimeoutError("no answer within 15 s"), "gs", "cannot be reached: no answer within 15 s"),
        (ValueError("odd"), "s3", "failed: ValueError: odd$"),
    ],
)
def test_a_failure_is_one_line_that_says_what_to_do(error: Exception, scheme: str, wanted: str) -> None:
    with pytest.raises(ClearwayError, match=wanted) as raised:
        raise ClearwayError(explain(error, REMOTE, scheme))
    assert "\n" not in str(raised.value)
    assert REMOTE in str(raised.value)


def test_the_cause_behind_an_error_is_looked_at_even_where_causes_go_in_a_circle() -> None:
    outer, inner = FileNotFoundError("bucket"), named("NoSuchBucket")
    outer.__cause__, inner.__context__ = inner, outer
    assert "does not exist" in explain(outer, REMOTE, "s3")


def test_a_client_that_never_answers_is_not_waited_for() -> None:
    with pytest.raises(TimeoutError, match=r"no answer within 0.05 s"):
        within(0.05, threading.Event().wait)


def test_an_answer_and_an_error_come_through() -> None:
    def fail() -> None:
        raise PermissionError("no")

    assert within(5, lambda: 3) == 3
    assert within(5, lambda: None) is None
    with pytest.raises(PermissionError, match="no"):
        within(5, fail)
