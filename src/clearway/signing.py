"""Signatures of bundles, in the format of OpenSSF model signing: who made it, beside what it is.

``model.sig`` in a bundle's folder is a Sigstore bundle around an in-toto statement of the payload's files and their
SHA-256, as ``model_signing sign BUNDLE/payload`` writes it, so that the public tool verifies it too::

    model_signing verify key BUNDLE/payload --signature BUNDLE/model.sig --public-key release.pub

The digest of the bundle follows from those hashes: a signature is accepted only if that digest is the expected one. The
digest still decides what is read; a signature adds that a known key, or a known workflow, stood behind it. The library
is an extra (``pip install 'clearway[signing]'``) and is imported only where something is signed or must be.
"""

import base64
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from clearway.bundle import MOST_MANIFEST_BYTES, SIGNATURE, Bundle, BundleError, Manifest, add_signature, once, verify
from clearway.errors import ClearwayError, UsageError
from clearway.params import Params, SignaturePolicy, SigningParams
from clearway.workspace import Workspace

KEY_VARIABLE, PASSWORD_VARIABLE = "CLEARWAY_SIGNING_KEY", "CLEARWAY_SIGNING_PASSWORD"
PREDICATE = "https://model_signing/signature/v1.0"
_PARTS = {"mediaType", "verificationMaterial", "dsseEnvelope"}


class SignatureError(BundleError):
    """A bundle's signature is not what an environment asks for; names the file, the environment and what to do."""


class _Resource(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    algorithm: str
    digest: str


def signed_digest(content: bytes) -> str:
    """The digest of the bundle whose files a signature speaks of; whether it speaks the truth is not looked at.

    Raises
    ------
    ValueError
        The bytes are no such signature.
    """
    try:
        found = json.loads(content, object_pairs_hook=once)
        if found.keys() != _PARTS:
            raise ValueError("it has other parts")
        statement = json.loads(base64.b64decode(found["dsseEnvelope"]["payload"]), object_pairs_hook=once)
        if statement["predicateType"] != PREDICATE:
            raise ValueError(f"it states {statement['predicateType']!a}")
        files: dict[str, Any] = {}
        for each in statement["predicate"]["resources"]:
            resource = _Resource.model_validate(each)
            if resource.algorithm != "sha256" or resource.name in files:
                raise ValueError(f"{resource.name!a} is not hashed by sha256, once")
            files[resource.name] = resource.digest
        return Manifest(payload=files).digest
    except ValidationError as error:
        raise ValueError(f"{error.error_count()} of its fields are wrong") from None
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


def sign(bundle: Bundle, settings: SigningParams, root: Path) -> bool:
    """Sign a verified bundle and lay the signature beside its payload; False where ``settings`` signs nothing.

    Parameters
    ----------
    bundle : Bundle
    settings : SigningParams
    root : Path
        The project folder, where relative paths begin.

    Raises
    ------
    UsageError
        There is no key, it cannot be used, or the library is not installed.
    ClearwayError
        Sigstore does not sign: there is no identity, or no network.
    """
    if settings.method == "none":
        return False
    signing, _, hashing = _library()
    config = signing.Config().set_hashing_config(hashing.Config().use_file_serialization(hashing_algorithm="sha256"))
    with TemporaryDirectory(prefix="clearway-sign-") as folder:
        made = Path(folder) / SIGNATURE
        if settings.method == "key":
            with _private_key(settings, root, Path(folder)) as (path, said):
                password = os.environ.get(PASSWORD_VARIABLE)
                try:
                    config.use_elliptic_key_signer(private_key=path, password=password.encode() if password else None)
                except Exception as error:  # its text may repeat what it was given
                    raise UsageError(
                        f"{said} cannot sign ({type(error).__name__}): expected a private key of an elliptic curve "
                        f"(P-256, P-384, P-521) in PEM, and its password in ${PASSWORD_VARIABLE} if it has one"
                    ) from None
                config.sign(bundle.payload, made)
        else:
            from sigstore.oidc import detect_credential

            try:
                token = detect_credential(client_id="sigstore")
                if token is None:  # the library would open a browser, and wait
                    raise LookupError("this process runs as nobody that Sigstore knows")
                config.use_sigstore_signer(identity_token=token).sign(bundle.payload, made)
            except Exception as error:  # sigstore raises what its network client raises
                reason = " ".join(str(error).split())[:200]
                raise ClearwayError(
                    f"signing.method is sigstore, which did not sign ({type(error).__name__}: {reason}): it needs the "
                    "network and an identity, on GitHub the permission id-token: write"
                ) from None
        content = made.read_bytes()
    if signed_digest(content) != bundle.digest:
        raise BundleError(f"{bundle.payload} changed while it was signed: nothing was written")
    add_signature(bundle.path, content)
    return True


def sign_kept(params: Params, workspace: Workspace, names: Sequence[str]) -> list[Path]:
    """Sign bundles under ``var/bundles``, named by digests or their beginnings; returns the signatures' paths.

    Raises
    ------
    UsageError
        ``signing.method`` is none, or a name means no bundle or several; or as :func:`sign`.
    ClearwayError
        A bundle does not verify; or as :func:`sign`.
    """
    from clearway.model_record import find_digest  # imports pandas

    if params.signing.method == "none":
        raise UsageError("params.yaml: signing.method is none: set it to key or sigstore")
    made = []
    for digest in [find_digest(name, workspace.bundles) for name in names]:
        bundle = verify(workspace.bundles / digest, digest)
        sign(bundle, params.signing, workspace.root)
        made.append(bundle.path / SIGNATURE)
    return made


def check_signature(bundle: Bundle, policy: SignaturePolicy, environment: str, root: Path) -> str:
    """Hold a verified bundle to an environment's policy; returns a warning, or nothing.

    Parameters
    ----------
    bundle : Bundle
        Verified by its digest, and not yet read.
    policy : SignaturePolicy
        ``environments.<environment>.signature``.
    environment : str
    root : Path
        The project folder, where relative paths begin.

    Raises
    ------
    SignatureError
        A signature is required, and there is none, or none of a trusted key or identity over this digest.
    """
    if policy.policy == "ignored":
        return ""
    problem = _problem(bundle, policy, root)
    if not problem:
        return ""
    said = f"{bundle.path / SIGNATURE}: {problem}"
    if policy.policy == "warn":
        return f"{said} (environments.{environment}.signature.policy is warn)"
    raise SignatureError(
        f"{said}; environments.{environment}.signature.policy is required: sign bundle {bundle.digest[:12]} with a "
        "trusted key (scripts/sign.py), or take another version"
    )


def check_for(params: Params, environment: str, bundle: Bundle, root: Path) -> str:
    """:func:`check_signature` by the policy that ``params`` has for ``environment``."""
    return check_signature(bundle, params.environment(environment).signature, environment, root)


def _problem(bundle: Bundle, policy: SignaturePolicy, root: Path) -> str:
    """Why the signature is not good enough; empty where it is."""
    try:
        content = _content(bundle.path / SIGNATURE)
    except FileNotFoundError:
        return "there is no signature"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    try:
        digest = signed_digest(content)
    except ValueError as error:
        return f"is no signature in the format of OpenSSF model signing ({error})"
    if digest != bundle.digest:
        return f"is a signature of digest {digest}, expected {bundle.digest}"
    try:
        _, verifying, _ = _library()
    except ClearwayError as error:
        return f"cannot be verified: {error}"
    found = []
    with TemporaryDirectory(prefix="clearway-verify-") as folder:
        signature = Path(folder) / SIGNATURE  # of its own: what is verified is what was read above
        signature.write_bytes(content)
        for who, configure in _trusted(policy, root, verifying):
            try:
                configure().verify(bundle.payload, signature)
            except Exception as error:  # a library's own, and those of its cryptography and network
                found.append(f"{who}: {_why(error)}")
            else:
                return ""
    return f"is of nobody who is trusted ({'; '.join(found)})"


def _trusted(policy: SignaturePolicy, root: Path, verifying: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Who may have signed, and what makes a verifier for each: to make one reads a key, which may fail."""
    for key in policy.keys:
        yield key, partial(verifying.Config().use_elliptic_key_verifier, public_key=root / key)
    trust = {} if policy.sigstore_root is None else {"trust_config": root / policy.sigstore_root}
    for who in policy.identities:
        verifier = partial(verifying.Config().use_sigstore_verifier, identity=who.identity, oidc_issuer=who.issuer)
        yield who.identity, partial(verifier, **trust)


def _why(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if type(error).__name__ == "InvalidSignature":
        return "what was signed has been changed since"
    reason = " ".join(str(error).split()) or type(error).__name__
    return "another key made it" if reason.startswith("Key mismatch") else reason[:200]


def _content(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(MOST_MANIFEST_BYTES + 1)


@contextmanager
def _private_key(settings: SigningParams, root: Path, folder: Path) -> Iterator[tuple[Path, str]]:
    """A file with the private key, and how to call it; one from the environment is there only for as long as needed."""
    if settings.key is not None:
        path = root / settings.key
        if not path.is_file():
            raise UsageError(f"params.yaml: signing.key = {settings.key!r}: there is no such file")
        yield path, f"params.yaml: signing.key = {settings.key!r}"
        return
    text = os.environ.get(KEY_VARIABLE, "")
    if not text.strip():
        raise UsageError(
            f"params.yaml: signing.method is key, but there is no key: set signing.key to the path of one, or put the "
            f"key itself into ${KEY_VARIABLE}"
        )
    path = folder / "key.pem"  # the folder is its owner's alone
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    try:
        yield path, f"the key in ${KEY_VARIABLE}"
    finally:
        path.unlink(missing_ok=True)


def _library() -> tuple[Any, Any, Any]:
    """Its modules ``signing``, ``verifying`` and ``hashing``; they take more than a second to import."""
    try:
        from model_signing import hashing, signing, verifying
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed: pip install 'clearway[signing]'") from None
    return signing, verifying, hashing
