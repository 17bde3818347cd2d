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

from windlass.app.http.keys import hash_key, key_matches

COOKIE = "windlass_session"
PATH = "/sign-in"


class Doorkeeper:
    """Knows who may come in.

    Args:
        key_hashes: SHA-256 of the keys (`keys.hash_key`); with none, everybody may.
    """

    def __init__(self, key_hashes: Sequence[str]) -> None:
        self.key_hashes = tuple(key_hashes)
        self._secret = secrets.token_bytes(32)

    @property
    def open(self) -> bool:
        return not self.key_hashes

    def admits(self, authorization: str, cookies: str) -> bool:
        """True for the right `Authorization` header or a cookie given out by `cookie_for`."""
        if self.open:
            return True
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() == "bearer" and key_matches(key.strip(), self.key_hashes):
            return True
        try:
            session = SimpleCookie(cookies).get(COOKIE)
        except CookieError:
            return False
        if session is None:
            return False
        known = [hmac.compare_digest(session.value.encode(), self._session(digest)) for digest in self.key_hashes]
        return any(known)

    def cookie_for(self, form: bytes) -> str | None:
        """The `Set-Cookie` value for a submitted form, None when its key is wrong."""
        fields = parse_qs(form.decode("utf-8", "replace"), max_num_fields=4)
        key = fields.get("key", [""])[0].strip()
        if self.open or not key_matches(key, self.key_hashes):
            return None
        value = self._session(hash_key(key)).decode()
        return f"{COOKIE}={value}; Path=/; HttpOnly; SameSite=Lax"

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
