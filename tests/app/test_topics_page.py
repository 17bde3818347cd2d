"""The page shows topics with the choice of k, and a hostile title stays text."""

from __future__ import annotations

from selectolax.lexbor import LexborHTMLParser

from windlass.app.page import overview
from windlass.retrieval.overview import Overview
from windlass.retrieval.topics import Topic, Topics


def test_topics_are_shown_with_their_choice_of_k():
    hostile = '<img src=x onerror="alert(1)">'
    topics = Topics(
        [Topic("a/tides.md", "Tides", 7, ["b.md"]), Topic("crane.md", hostile, 3, [])], 0.4321, {2: 0.4321, 3: 0.2}, 10
    )
    found = Overview(10, 1, {"markdown": (10, 1)}, {"indexed": 10}, [], 0, [], [], 12, (12, 12), topics=topics)
    page = LexborHTMLParser(str(overview.body(found, working=False)))
    text = page.text()
    assert "10 files grouped by meaning" in text and "2 groups separate them best (silhouette 0.43" in text
    assert "a/tides.md" in text and "b.md" in text and hostile in text
    assert page.css("img") == []
    without = overview.body(Overview(1, 1, {}, {}, [], 0, [], [], 0, (0, 0)), working=False)
    assert "What it is about" not in str(without)
