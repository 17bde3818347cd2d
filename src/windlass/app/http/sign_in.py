"""Signing in with a browser: the key is typed once into a form and traded for a cookie of this server's lifetime.

Programs send `Authorization: Bearer KEY` with every request. A browser cannot, and a key in a URL would end up in
histories and logs. The cookie holds a keyed hash of the key's hash, so a stolen cookie does not reveal the key and
stops working when the server does.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from windlass.app.http.keys import matching_hash
from windlass.app.http.tenants import LOCAL, Tenant

COOKIE = "windlass_session"
PATH = "/sign-in"


class Doorkeeper:
    """Knows who may come in.

    Args:
        tenants: Who has keys; with nobody, everybody may come in, as `LOCAL`.
    """

    def __init__(self, tenants: Sequence[Tenant]) -> None:
        self._of_key = {digest: tenant for tenant in tenants for digest in tenant.hashes}
        self._secret = secrets.token_bytes(32)

    @property
    def open(self) -> bool:
        return not self._of_key

    def admits(self, authorization: str, cookies: str) -> Tenant | None:
        """Who sends this `Authorization` header or a cookie given out by `cookie_for`; None for a stranger."""
        if self.open:
            return LOCAL
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() == "bearer":
            digest = matching_hash(key.strip(), self._of_key)
            if digest is not None:
                return self._of_key[digest]
        try:
            session = SimpleCookie(cookies).get(COOKIE)
        except CookieError:
            return None
        if session is None:
            return None
        value = session.value.encode()
        known = [tenant for digest, tenant in self._of_key.items() if hmac.compare_digest(value, self._session(digest))]
        return known[0] if known else None

    def cookie_for(self, form: bytes) -> str | None:
        """The `Set-Cookie` value for a submitted form, None when its key is wrong."""
        fields = parse_qs(form.decode("utf-8", "replace"), max_num_fields=4)
        digest = matching_hash(fields.get("key", [""])[0].strip(), self._of_key)
        if digest is None:
            return None
        return f"{COOKIE}={self._session(digest).decode()}; Path=/; HttpOnly; SameSite=Lax"

    def _session(self, digest: str) -> bytes:
        return hmac.new(self._secret, digest.encode(), hashlib.sha256).hexdigest().encode()


def form(nonce: str, *, wrong: bool) -> bytes:
    """The page that asks for the key."""
    message = "That key is not known here." if wrong else "This Windlass is protected by a key."
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Windlass: sign in</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<style nonce="{nonce}">
body {{ font: 15.5px/1.55 system-ui, sans-serif; background: #f6f4ef; color: #1c2628; display: grid;
 place-items: center; min-height: 88vh; margin: 0 1rem }}
form {{ width: min(22rem, 100%); display: grid; gap: .5rem }}
h1 {{ font-size: 24px; margin: 0; letter-spacing: -.012em }} p {{ margin: 0 0 1rem; color: #566265 }}
label {{ font-size: 14px; color: #566265 }}
input, button {{ font: inherit; padding: .6rem .8rem; border-radius: 8px; border: 1px solid #c9c3b4 }}
input {{ background: #fffefb; color: inherit; margin-bottom: .5rem }} :focus-visible {{ outline: 2px solid #0e4f5c }}
button {{ background: #0e4f5c; color: #fff; border-color: #0e4f5c; font-weight: 560; cursor: pointer }}
@media (prefers-color-scheme: dark) {{ body {{ background: #11181a; color: #e4e9e8 }} p, label {{ color: #a2aeb0 }}
 input {{ background: #182124; border-color: #3c4a4e }}
 button {{ background: #7cc7cd; color: #06272d; border-color: #7cc7cd }} :focus-visible {{ outline-color: #7cc7cd }} }}
</style></head><body><form method="post" action="{PATH}"><h1>Windlass</h1><p>{message}</p>
<label for="key">Key</label><input id="key" name="key" type="password" autocomplete="current-password" autofocus
required><button>Open</button></form></body></html>""".encode()
