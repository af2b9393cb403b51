"""The Binder files, as far as they can be checked without building an image."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BINDER = ROOT / "binder"


@pytest.mark.parametrize("name", ["postBuild", "start"])
def test_the_scripts_are_sound_and_may_be_run(name):
    script = BINDER / name
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_start_hands_over_to_the_server():
    assert (BINDER / "start").read_text().rstrip().endswith('exec "$@"')


def test_every_pin_that_post_build_leaves_is_one_that_was_tested():
    pattern = re.search(r"grep -vE '([^']+)'", (BINDER / "postBuild").read_text()).group(1)
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    left = [pin for pin in pins if not re.match(pattern, pin)]
    assert left and not any(pin.startswith(("torch==", "jupyterlab==")) for pin in left)
    assert any(pin.startswith("panel==") for pin in left) and all("==" in pin for pin in left)


def test_repo2docker_plans_an_image_with_these_files(tmp_path):
    for name in ("binder", "pyproject.toml", "constraints.txt"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--debug", str(tmp_path)]
    planned = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    said = planned.stdout + planned.stderr
    assert planned.returncode == 0, said[-2000:]
    assert all(part in said for part in ("environment.yml", "binder/postBuild", "binder/start"))


def test_the_proxy_starts_the_page_of_the_installed_package(monkeypatch):
    class Traits:
        def __getattr__(self, name):
            self.__dict__[name] = Traits()
            return self.__dict__[name]

    config = Traits()
    code = compile((BINDER / "jupyter_server_config.py").read_text(), "config", "exec")
    exec(code, {"get_config": lambda: config})
    entry = config.ServerProxy.servers["workbench"]
    page = next(part for part in entry["command"] if part.endswith("main.py"))
    assert Path(page).is_file() and entry["launcher_entry"]["path_info"] == "workbench/main"
    assert "127.0.0.1" in entry["command"] and "{port}" in entry["command"]
