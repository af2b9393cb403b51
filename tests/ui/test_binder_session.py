"""What a person finds in a Binder session: the dashboard behind the Jupyter server's prefix and token."""

import os
import re
import secrets
import shutil
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect

CONFIG = Path(__file__).parents[2] / "binder" / "jupyter_server_config.py"
PREFIX = "/user/abc/"
SLOW = 180_000


def test_the_dashboard_is_behind_the_server_s_prefix_and_token(
    page: Page, running: Callable, private_environment: dict[str, str], tmp_path: Path
) -> None:
    settings = Path(private_environment["JUPYTER_CONFIG_DIR"])
    settings.mkdir(parents=True)
    shutil.copy(CONFIG, settings)
    token = secrets.token_hex(16)
    root = ["--allow-root"] if os.geteuid() == 0 else []

    def command(port: int) -> list[str]:
        options = [f"--ServerApp.base_url={PREFIX}", f"--IdentityProvider.token={token}", f"--port={port}"]
        options += ["--ip=127.0.0.1", "--no-browser", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={tmp_path}"]
        return [sys.executable, "-m", "jupyterlab", *options, *root]

    with running(command, tmp_path / "log", **private_environment) as (port, _):
        address = f"http://127.0.0.1:{port}{PREFIX}workbench/main"
        with urllib.request.urlopen(address, timeout=60) as answer:  # without the token
            assert answer.url.startswith(f"http://127.0.0.1:{port}{PREFIX}login?")
        page.goto(f"{address}?token={token}", timeout=SLOW)
        page.get_by_text(re.compile(r"share \d+ of their \d+ strongest heads")).wait_for(timeout=SLOW)
        # A click goes to Python and back through the proxy's websocket.
        page.get_by_role("grid").first.get_by_label(re.compile("^L0H1,")).click()
        expect(page.locator(".rw-attention .rw-title")).to_have_text(re.compile("^L0H1 on prompt 0"), timeout=SLOW)
        expect(page).to_have_url(re.compile(rf"^{re.escape(address)}\?.*head=L0H1"))
        assert token not in page.url
    kept = list(Path(private_environment["WORKBENCH_HOME"]).rglob("head_patching-*.nc"))
    assert len(kept) == 2
