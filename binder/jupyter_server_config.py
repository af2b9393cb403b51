"""Starts the dashboard on first use, behind the Jupyter server's own token, at <base url>/workbench/main."""

import sys
from importlib.util import find_spec
from pathlib import Path

package = Path(find_spec("workbench").origin).parent

c = get_config()  # noqa: F821  (Jupyter puts it there)
c.ServerProxy.servers = {
    "workbench": {
        "command": [
            *(sys.executable, "-m", "panel", "serve", str(package / "app" / "main.py")),
            *("--address", "127.0.0.1", "--port", "{port}", "--allow-websocket-origin", "*"),
        ],
        "timeout": 120,
        "absolute_url": False,
        "launcher_entry": {"title": "Reuse Workbench", "path_info": "workbench/main"},
        "new_browser_tab": True,
    }
}
