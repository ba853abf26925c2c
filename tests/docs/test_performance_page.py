"""Tables and chart of the page on performance are those of its file of figures."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from tools.performance import CHART, PAGE, README, chart, load, merge, page, readme


def test_tables_and_chart_are_up_to_date() -> None:
    figures = load()
    text = PAGE.read_text("utf-8")
    assert page(figures, text) == text, "run: python -m tools.performance"
    text = README.read_text("utf-8")
    assert readme(figures, text) == text, "run: python -m tools.performance"
    assert chart(figures) == CHART.read_text("utf-8"), "run: python -m tools.performance"


def test_results_file_replaces_its_sections() -> None:
    figures = load()
    row = {"section": "start", "name": "import", "measured": "1 ms", "met": True, "cpu_ms": 1.23456, "base_ms": 1}
    results = {"machine": ["M", "P"], "events": 1_000, "rounds": 2, "rows": [row]}
    merged = merge(figures, results, "2026-12-01")
    assert merged["start"] == {
        "date": "2026-12-01",
        "machine": "M; P; 1,000 events, 2 rounds",
        "rows": [{"name": "import", "cpu_ms": 1.235, "base_ms": 1}],
    }
    assert merged["burst"] == figures["burst"]


def test_chart_has_a_bar_for_each_library() -> None:
    bars = [element for element in ET.fromstring(chart(load())).iter() if element.tag.endswith("rect")]
    assert len(bars) == 4
