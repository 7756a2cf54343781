"""Bundles as a stream: what goes through unchanged, and what no archive may bring in."""

import io
import tarfile
from pathlib import Path

import pytest

from clearway.bundle import Bundle, BundleError, keep, pack, verify
from clearway.bundle_tar import packed, unpack

MOST = 10_000_000


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    payload = tmp_path / "payload"
    (payload / "deep").mkdir(parents=True)
    (payload / "model.onnx").write_bytes(bytes(range(256)) * 9000)
    (payload / "deep" / "größe.txt").write_text("x")
    (payload / "empty").write_bytes(b"")
    return pack(payload, {"golden.json": b"{}"}, tmp_path / "bundle")


def archive(*members: tuple[tarfile.TarInfo, bytes], kind: int = tarfile.USTAR_FORMAT) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as made:
        for member, content in members:
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    stream.seek(0)
    return stream


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_comes_out_as_it_went_in(bundle: Bundle, tmp_path: Path) -> None:
    made = tmp_path / "made"
    unpack(io.BytesIO(b"".join(packed(bundle))), made, MOST)
    assert files(made) == files(bundle.path)
    assert verify(made, bundle.digest).digest == bundle.digest
    assert keep(made, tmp_path / "bundles", bundle.digest) == bundle.digest


def test_the_same_bundle_is_the_same_bytes_and_any_tar_reads_them(bundle: Bundle, tmp_path: Path) -> None:
    content = b"".join(packed(bundle))
    (bundle.payload / "model.onnx").touch()
    assert b"".join(packed(bundle)) == content
    with tarfile.open(fileobj=io.BytesIO(content)) as other:
        other.extractall(tmp_path / "other", filter="data")
    assert files(tmp_path / "other") == files(bundle.path)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../up", "payload/../../up", "a//b", "./a", ".", "..", "a\\b", "a\nb", "", "a/", " \x7f"]
)
def test_a_name_that_is_not_plain_is_refused(name: str, tmp_path: Path) -> None:
    header = member("x").tobuf(tarfile.USTAR_FORMAT)
    block = bytearray(name.encode().ljust(100, b"\0") + header[100:])
    block[148:156] = b"        "
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    with pytest.raises(BundleError, match="archive"):
        unpack(io.BytesIO(bytes(block) + bytes(1024)), tmp_path / "made", MOST)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["made"])
    assert not files(tmp_path)


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE,
        tarfile.GNUTYPE_SPARSE, tarfile.CONTTYPE, b"x", b"g", b"L", b"Z",
    ],
)  # fmt: skip
def test_only_plain_files_are_let_in(kind: bytes, tmp_path: Path) -> None:
    block = member("payload", kind, "/etc/passwd").tobuf(tarfile.USTAR_FORMAT)
    with pytest.raises(BundleError, match="no plain file"):
        unpack(io.BytesIO(block + bytes(1024)), tmp_path, MOST)
    assert list(tmp_path.iterdir()) == []


def test_a_link_cannot_be_written_through(tmp_path: Path) -> None:
    stream = archive((member("payload", tarfile.SYMTYPE, str(tmp_path / "outside")), b""), (member("payload/x"), b"!"))
    (tmp_path / "outside").mkdir()
    with pytest.raises(BundleError, match="no plain file"):
        unpack(stream, tmp_path / "made", MOST)
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize("names", [("a", "a"), ("a", "a/b"), ("a/b", "a")])
def test_a_name_stands_once(names: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="twice"):
        unpack(archive(*((member(name), b"x") for name in names)), tmp_path / "made", MOST)


def test_what_is_too_large_is_refused_before_it_is_written(tmp_path: Path) -> None:
    huge = member("a")
    huge.size = 8_000_000_000
    with pytest.raises(BundleError, match="more than 1,000 bytes"):
        unpack(io.BytesIO(huge.tobuf(tarfile.USTAR_FORMAT)), tmp_path, 1000)
    with pytest.raises(BundleError, match="more than 1,000 bytes"):
        unpack(archive((member("a"), bytes(600)), (member("b"), bytes(600))), tmp_path, 1000)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("size", [0, 100, 600, 1024, 5000])
def test_an_archive_that_is_cut_short_is_refused(bundle: Bundle, size: int, tmp_path: Path) -> None:
    content = b"".join(packed(bundle))
    with pytest.raises(BundleError, match="cut short"):
        unpack(io.BytesIO(content[:size]), tmp_path / "made", MOST)


@pytest.mark.parametrize("content", [b"\x1f\x8b" + bytes(1022), b"x" * 1024, bytes(range(256)) * 4])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="archive is damaged"):
        unpack(io.BytesIO(content), tmp_path / "made", MOST)
