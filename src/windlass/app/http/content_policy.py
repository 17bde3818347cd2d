"""Content-Security-Policy: what a browser may load and run from us, which is only what we serve ourselves.

The page's inline scripts carry a nonce that is new with every answer, so a script that sneaks into the page by way
of a file's content does not run, and nothing can be sent to another host. The page framework evaluates its event
handlers, hence `unsafe-eval`.
"""

from __future__ import annotations

DATA_POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


def page_policy(nonce: str) -> str:
    """The policy of the page itself."""
    return "; ".join(
        (
            "default-src 'self'",
            f"script-src 'self' 'nonce-{nonce}' 'unsafe-eval'",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data:",
            "font-src 'self' data:",
            "connect-src 'self'",
            "object-src 'none'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
            "form-action 'self'",
        )
    )


def form_policy(nonce: str) -> str:
    """The policy of the sign-in form: its own style sheet and nothing else."""
    return f"default-src 'none'; style-src 'nonce-{nonce}'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"


def with_nonce(html: bytes, nonce: str) -> bytes:
    """`html` with the nonce on every script tag.

    All data in the page stands with its angle brackets escaped, so each `<script` is one of the page's own.
    """
    return html.replace(b"<script", f'<script nonce="{nonce}"'.encode())
