"""Serves the dashboard on loopback, behind a token."""

import logging
import socket
import sys

import panel as pn

from workbench.app.guard import TokenAuth, loopback_hosts, new_token
from workbench.app.main import build
from workbench.registry import WorkbenchError

ADDRESS = "127.0.0.1"


def serve(port: int = 0) -> None:
    """Serve until interrupted, after printing the address with its token.

    Args:
        port: to listen on; 0 takes a free one.

    Raises:
        WorkbenchError: when the port is taken or no port.
    """
    port = _free(port)
    token = new_token()
    logging.getLogger("distributed").setLevel(logging.ERROR)
    sys.stdout.write(f"Reuse Workbench is at http://{ADDRESS}:{port}/?token={token}\n(Ctrl-C stops it)\n")
    sys.stdout.flush()
    pn.serve(
        {"/": build},
        port=port,
        address=ADDRESS,
        show=False,
        title="Reuse Workbench",
        auth_provider=TokenAuth(token, port),
        websocket_origin=sorted(loopback_hosts(port)),
    )


def _free(port: int) -> int:
    with socket.socket() as probe:
        try:
            probe.bind((ADDRESS, port))
        except (OSError, OverflowError):
            raise WorkbenchError(f"Port {port} cannot be used here; leave --port out, or name another.") from None
        return probe.getsockname()[1]
