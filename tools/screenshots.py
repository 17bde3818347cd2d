"""Pictures of the page as a person sees it, at 1280 and 400 pixels, from a server that is already running.

    windlass up examples/harbour &
    pip install playwright
    python tools/screenshots.py http://localhost:8765 docs/images --question "Who approves dredging works?"

Drives a real browser: overview, search, graph, an answer, a citation opened, light and dark. Exits 1 when the page
logged an error, broke its content policy, or asked any other host for anything.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, sync_playwright

WIDTHS = {"wide": (1280, 860), "narrow": (400, 820)}
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


class Visit:
    """One browser window of one size and colour scheme."""

    def __init__(self, browser: Browser, options: argparse.Namespace, name: str, scheme: str) -> None:
        width, height = WIDTHS[name]
        self._context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=options.scale
        )
        self.page: Page = self._context.new_page()
        self._options = options
        self._suffix = name if scheme == "light" else f"{name}-{scheme}"
        self.problems: list[str] = []
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("request", self._on_request)

    def shoot(self, name: str, *, full: bool = False) -> None:
        self.page.wait_for_timeout(400)
        self.page.screenshot(path=self._options.out / f"{name}-{self._suffix}.png", full_page=full)
        overflow = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        if overflow > 0:
            self.problems.append(f"{name}: {overflow} pixels wider than the window")

    def overview(self) -> None:
        self.page.goto(self._options.url)
        self.page.wait_for_selector(".figures, .empty")
        self.shoot("overview")
        self.shoot("overview-whole", full=True)
        table = self.page.locator(".fold > summary").first
        if table.count():
            table.click()
            table.scroll_into_view_if_needed()
            self.shoot("overview-table")

    def search(self) -> None:
        self.page.locator(".views a[data-view=search]").click()
        self.shoot("search-empty")
        self.page.fill("#search-input", self._options.query)
        self.page.keyboard.press("Enter")
        self.page.wait_for_selector(".result, .empty")
        self.shoot("search")

    def graph(self) -> None:
        self.page.locator(".views a[data-view=graph]").click()
        self.page.wait_for_selector(".graph-chart canvas, .view-graph .empty", timeout=60_000)
        self.page.wait_for_timeout(2_000)
        self.shoot("graph")
        chart = self.page.locator(".graph-chart")
        if chart.locator("canvas").count():
            chart.scroll_into_view_if_needed()
            box = chart.bounding_box()
            assert box is not None
            self.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            self.page.mouse.wheel(0, -600)
            self.page.wait_for_timeout(1_000)
            self.shoot("graph-near")

    def chat(self) -> None:
        self.page.locator(".views a[data-view=chat]").click()
        self.page.wait_for_selector(".chat-start h1")
        self.shoot("chat-empty")
        for number, question in enumerate((self._options.question, self._options.unanswerable), 1):
            self.page.fill("#chat-input", question)
            self.page.keyboard.press("Enter")
            self.page.wait_for_selector(f".turns > :nth-child({number}) .turn-foot", timeout=120_000)
            self.page.locator("html:not([data-busy])").wait_for(state="attached")
            if number == 1:
                self.shoot("chat")
                self.citation()
        self.shoot("chat-not-found")

    def citation(self) -> None:
        cite = self.page.locator(".cite").first
        if not cite.count():
            self.problems.append("the question was answered without a citation")
            return
        cite.click()
        self.page.wait_for_selector("dialog.source[open] #source-quote")
        self.shoot("chat-citation")
        self.page.keyboard.press("Escape")
        self.page.wait_for_selector("dialog.source[open]", state="detached")

    def close(self) -> None:
        self._context.close()

    def _on_console(self, message: Any) -> None:
        if message.type == "error":
            self.problems.append(f"console: {message.text}")

    def _on_request(self, request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.netloc != urlsplit(self._options.url).netloc:
            self.problems.append(f"foreign request: {request.url}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("out", type=Path)
    parser.add_argument("--question", default="Who approves dredging works?")
    parser.add_argument("--unanswerable", default="Which opera did the captain's sister compose?")
    parser.add_argument("--query", default="dredging permit berth")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--only", choices=["wide", "narrow"])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    problems = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=ARGUMENTS)
        for name in WIDTHS:
            for scheme in ("light", "dark"):
                if options.only in (None, name):
                    visit = Visit(browser, options, name, scheme)
                    visit.overview()
                    visit.search()
                    visit.graph()
                    visit.chat()
                    visit.close()
                    problems += [f"{name}, {scheme}: {problem}" for problem in visit.problems]
        browser.close()
    print("\n".join(problems) or f"pictures are in {options.out}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
