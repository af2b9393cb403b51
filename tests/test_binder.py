"""The files that Binder builds a session from, as far as they can be tried without building one."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BINDER = ROOT / "binder"
BASH = shutil.which("bash")


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def dockerfile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What repo2docker would build from the tracked files; it downloads nothing and needs no docker."""
    pytest.importorskip("repo2docker", reason="jupyter-repo2docker is not installed")
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("repository")
    for name in tracked():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--debug", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_repo2docker_takes_all_three_files(dockerfile):
    assert "conda environment for python=3.11" in dockerfile
    assert re.search(r"^COPY .*src/binder/environment\.yml ", dockerfile, re.MULTILINE)
    assert re.search(r"env update .* --file \"binder/environment\.yml\"", dockerfile)
    assert re.search(r"^RUN \./binder/postBuild$", dockerfile, re.MULTILINE)
    assert 'ENV R2D_ENTRYPOINT="${REPO_DIR}/binder/start"' in dockerfile


@pytest.mark.parametrize("name", ["postBuild", "start"])
def test_the_scripts_are_bash_that_parses_and_may_be_run(name):
    assert (BINDER / name).stat().st_mode & 0o111
    text = (BINDER / name).read_text()
    assert text.startswith("#!/usr/bin/env bash\n")
    checked = subprocess.run([BASH, "-n", BINDER / name], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_start_hands_over_to_the_command_it_is_given(tmp_path):
    assert (BINDER / "start").read_text().rstrip().endswith('exec "$@"')
    told = [BASH, BINDER / "start", BASH, "-c", 'echo "$WORKBENCH_HOME|$1|$2"', "name", "two words", "*"]
    for given, expected in [({}, f"{tmp_path}/.cache/workbench"), ({"WORKBENCH_HOME": "/there"}, "/there")]:
        environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", **given}
        done = subprocess.run(told, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == f"{expected}|two words|*\n"


def test_the_build_leaves_torch_and_the_server_to_the_image(tmp_path):
    """postBuild with a pip that only writes down what it was asked for."""
    shutil.copy(ROOT / "constraints.txt", tmp_path)
    shutil.copytree(BINDER, tmp_path / "binder")
    pip, asked = tmp_path / "bin" / "pip", tmp_path / "asked"
    pip.parent.mkdir()
    pip.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {asked}\ncp "$4" {tmp_path}/used\n')
    pip.chmod(0o755)
    prefix = tmp_path / "prefix"
    environment = {"PATH": f"{pip.parent}:/usr/bin:/bin", "NB_PYTHON_PREFIX": str(prefix), "HOME": str(tmp_path)}
    subprocess.run([BASH, tmp_path / "binder" / "postBuild"], cwd=tmp_path, env=environment, check=True)
    arguments = asked.read_text().split()
    assert arguments[0] == "install" and arguments[-1] == "." and arguments[2] == "-c"
    pins = {line.partition("==")[0] for line in (tmp_path / "used").read_text().split()}
    assert {"panel", "xarray", "transformer-lens"} <= {name.lower().replace("_", "-") for name in pins}
    assert not [name for name in pins if re.match("torch|jupyter|notebook", name)]
    copied = prefix / "etc" / "jupyter" / "jupyter_server_config.py"
    assert copied.read_text() == (BINDER / "jupyter_server_config.py").read_text()


@pytest.mark.parametrize(
    "path", sorted(path for path in BINDER.iterdir() if path.is_file()), ids=lambda path: path.name
)
def test_nothing_names_a_package_host(path):
    text = path.read_text()
    assert "://" not in text
    assert not re.search(r"\b[\w-]+\.(org|com|io|net|ai|dev|cloud)\b", text)
    assert not re.search(r"--(extra-)?index-url|--find-links|--trusted-host", text)


def test_the_server_s_settings_start_the_dashboard_on_loopback():
    from traitlets.config import Config

    config = Config()
    exec((BINDER / "jupyter_server_config.py").read_text(), {"get_config": lambda: config})
    (server,) = config.ServerProxy.servers.values()
    command = server["command"]
    assert Path(command[command.index("serve") + 1]) == ROOT / "workbench" / "app" / "main.py"
    assert command[command.index("--address") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "{port}"
    assert server["launcher_entry"]["path_info"] == "workbench/main"
