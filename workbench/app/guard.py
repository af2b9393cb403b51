"""Who may open the dashboard: a token in the address, as Jupyter asks for one, and only under a loopback name."""

import hmac
import secrets

from bokeh.server.auth_provider import AuthProvider
from tornado.web import HTTPError, RequestHandler

COOKIE = "workbench-token"
REFUSAL = "This dashboard needs the token that was printed when it was started: open the address shown there."


def loopback_hosts(port: int) -> frozenset[str]:
    """The Host headers a browser on this machine sends; any other is refused, which stops DNS rebinding."""
    return frozenset(f"{name}:{port}" for name in ("127.0.0.1", "localhost"))


class Refused(RequestHandler):
    """The page that a visitor without the token sees."""

    def get(self) -> None:
        """Say what is missing, with status 403."""
        self.set_status(403)
        self.finish(REFUSAL)


class TokenAuth(AuthProvider):
    """Lets a visitor in who brings the token in the address or, after that, in a cookie."""

    def __init__(self, token: str, port: int) -> None:
        self._token, self._hosts = token, loopback_hosts(port)
        super().__init__()

    @property
    def get_user(self):  # pyright: ignore[reportIncompatibleMethodOverride]  (a property in Bokeh too)
        """The check Bokeh makes for every page and websocket."""

        def user(handler: RequestHandler) -> str | None:
            if handler.request.host not in self._hosts:
                raise HTTPError(403, reason="Host not allowed")
            given = handler.get_argument("token", default="")
            if self._is_mine(given):
                handler.set_cookie(COOKIE, self._token, httponly=True, samesite="Strict")
                return "owner"
            return "owner" if self._is_mine(handler.get_cookie(COOKIE, "") or "") else None

        return user

    def _is_mine(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())

    @property
    def login_url(self) -> str:
        """Where a visitor without the token is sent."""
        return "/refused"

    @property
    def login_handler(self) -> type[RequestHandler]:
        """The page there."""
        return Refused

    @property
    def get_login_url(self):
        """None: `login_url` is used."""
        return None


def new_token() -> str:
    """A token of 24 random bytes, safe in an address."""
    return secrets.token_urlsafe(24)
