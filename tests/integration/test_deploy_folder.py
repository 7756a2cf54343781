"""``deploy/``: what its files name exists, and the small set of packages is enough to serve and to be administered."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from hand_made import ROW, make_bundle, write_params

from clearway.admin_api import TOKEN_FILE_VARIABLE
from clearway.bundle_tar import packed
from clearway.files import write_json
from clearway.params import load_params
from clearway.prediction_log import CLOSE_SECONDS
from clearway.serving.supervisor import STOP_SECONDS
from clearway.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
PORT = load_params(ROOT / "params.yaml").environments["production"].port
TOKEN = "t" * 40


def unit() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / "clearway@.service").read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def dockerfile() -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


def options_of_serve() -> str:
    command = [sys.executable, str(ROOT / "scripts" / "serve.py"), "--help"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_the_unit_starts_what_exists_and_gives_it_time_to_drain() -> None:
    settings = unit()
    home = Path(settings["WorkingDirectory"][0])
    python, script, *flags = shlex.split(settings["ExecStart"][0])
    assert Path(python).is_relative_to(home)
    assert (ROOT / script).is_file()
    assert [flag for flag in flags if flag.startswith("--") and flag not in options_of_serve()] == []
    assert int(settings["TimeoutStopSec"][0]) > STOP_SECONDS + CLOSE_SECONDS
    assert settings["BindPaths"] == [f"/var/lib/{settings['StateDirectory'][0]}:{Workspace(home).var}"]
    assert f"{TOKEN_FILE_VARIABLE}=%d/{settings['LoadCredential'][0].partition(':')[0]}" in settings["Environment"]
    assert (ROOT / "deploy" / "README.md").is_file()


def test_the_unit_is_one_that_systemd_takes() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    command = ["systemd-analyze", "verify", str(DEPLOY / "clearway@.service")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stderr.splitlines()
    assert [line for line in said if "clearway" in line and "is not executable" not in line] == []


def test_the_image_is_made_of_files_that_exist_and_are_sent_to_the_builder() -> None:
    steps = dockerfile()
    arguments = dict(value.split("=", 1) for verb, value in steps if verb == "ARG")
    allowed = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    for value in (value for verb, value in steps if verb == "COPY" and "--from" not in value):
        for source in value.replace("${REQUIREMENTS}", arguments["REQUIREMENTS"]).split()[:-1]:
            assert list(ROOT.glob(source.rstrip("/"))), source
            assert any(source == one or fnmatch(source, one) or source.startswith(f"{one}/") for one in allowed), source
    assert [value for verb, value in steps if verb == "USER"] == ["10001:10001"]
    assert [value for verb, value in steps if verb == "EXPOSE"] == [str(PORT)]
    assert f":{PORT}/v2/health/live" in next(value for verb, value in steps if verb == "HEALTHCHECK")
    entry = next(value for verb, value in steps if verb == "ENTRYPOINT")
    assert [flag for flag in re.findall(r"--[a-z-]+", entry) if flag not in options_of_serve()] == []


def test_the_composition_names_what_exists_and_hides_what_should_be_hidden() -> None:
    content = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    server = content["services"]["server"]
    assert (DEPLOY / server["build"]["context"] / server["build"]["dockerfile"]).resolve().is_file()
    assert (ROOT / server["build"]["args"]["REQUIREMENTS"]).is_file()
    assert server["environment"][TOKEN_FILE_VARIABLE] == f"/run/secrets/{server['secrets'][0]}"
    assert content["secrets"][server["secrets"][0]]["file"].removeprefix("./") == "admin_token"
    assert "/deploy/admin_token" in (ROOT / ".gitignore").read_text().splitlines()
    assert int(server["stop_grace_period"].removesuffix("s")) > STOP_SECONDS + CLOSE_SECONDS
    names = set(content["volumes"])
    for service in content["services"].values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert source in names or (DEPLOY / source).resolve().is_file(), mount
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert service.get("image", "image:tag").rpartition(":")[2] not in ("", "latest")
    assert "${CLEARWAY_REDIS}" in (ROOT / "feature_store.redis.yaml").read_text()
    assert "CLEARWAY_REDIS" in server["environment"]


def test_the_small_set_of_packages_is_pinned_and_part_of_the_whole() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project["dependency-groups"]["serve"]) <= set(project["project"]["dependencies"])
    blocks = (ROOT / "requirements-serve.txt").read_text().replace("\\\n", " ").splitlines()
    pins = {line.split()[0]: line for line in blocks if line and not line.startswith((" ", "#"))}
    whole = (ROOT / "requirements.txt").read_text()
    assert all("--hash=sha256:" in line for line in pins.values())
    assert [pin for pin in pins if f"\n{pin} " not in whole] == [], "run `make lock`"


SERVE_AND_ADMINISTER = """
import http.client, json, os, pathlib, subprocess, sys, time
root, archive, digest = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]).read_bytes(), sys.argv[3]
server = subprocess.Popen([sys.executable, "scripts/serve.py", "--env", "production", "--project", str(root)])
def ask(method, path, body=None, **headers):
    caller = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers["authorization"] = "Bearer " + os.environ["CLEARWAY_ADMIN_TOKEN"]
    caller.request(method, path, json.dumps(body) if isinstance(body, dict) else body,
                   headers | ({"content-type": "application/json"} if isinstance(body, dict) else {}))
    answer = caller.getresponse()
    return answer.status, json.loads(answer.read())
try:
    record = root / "var" / "environments" / "production" / "server.json"
    for _ in range(600):
        if record.exists() or server.poll() is not None:
            break
        time.sleep(0.05)
    port = json.loads(record.read_text())["port"]
    head = ask("GET", "/admin/state")[1]["head"]
    kept = ask("PUT", "/admin/bundles/" + digest, archive)[0]
    deployed = ask("POST", "/admin/deploy", {"expected": head, "digest": digest, "reason": "small", "actor": "ann"})[0]
    for _ in range(600):
        if ask("GET", "/")[1]["revision"] == 1:
            break
        time.sleep(0.05)
    predicted = ask("POST", "/predict", json.loads(sys.argv[4]))[1]["score"]
finally:
    server.terminate()
    ended = server.wait(30)
print(json.dumps([kept, deployed, predicted, ended]))
"""


@pytest.mark.lines
def test_a_fresh_environment_of_the_small_set_serves_and_is_administered(tmp_path: Path) -> None:
    """As the image does it: the pinned packages, and the source beside them."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True, timeout=120)
    uv = str(Path(sys.executable).with_name("uv"))
    install = [uv, "pip", "install", "-q", "--python", str(python), "--require-hashes", "-r", "requirements-serve.txt"]
    subprocess.run(install, cwd=ROOT, check=True, timeout=600)
    workspace = write_params(tmp_path / "project", {"production": {"port": 0}})
    bundle = make_bundle(tmp_path / "made", 0.25)
    (tmp_path / "archive").write_bytes(b"".join(packed(bundle)))
    write_json(tmp_path / "row.json", ROW)
    done = subprocess.run(
        [str(python), "-c", SERVE_AND_ADMINISTER, str(workspace.root), str(tmp_path / "archive"), bundle.digest,
         json.dumps(ROW)],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT / "src"), "CLEARWAY_ADMIN_TOKEN": TOKEN,
             "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [200, 200, 0.25, 0]
