from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from brd_edge.evaluate.report import page
from brd_edge.ship.report import BEGIN, END, LINK_BEGIN, LINK_END, add_devices, clear_devices

OUTCOME = {
    "devices": [
        {
            "device": "edge@<camera>",
            "status": "serving",
            "message": "",
            "release": "0001-small-abc",
            "engine": "openvino-fp32",
            "checks": {
                "openvino-fp32": {
                    "agreement": 1.0,
                    "latency_ms": {"p50": 4.25, "p95": 5.5},
                    "energy_mj_per_frame": None,
                }
            },
            "profile": {"model": "NVIDIA Jetson & friends"},
        },
        {
            "device": "b",
            "status": "failed",
            "message": "no <answer>",
            "release": None,
            "engine": None,
            "checks": {},
            "profile": {},
        },
    ]
}


class _Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, _attributes: list) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def test_devices_are_added_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(f"<p>before</p>{BEGIN}{END}<p>after</p>", encoding="utf-8")
    assert add_devices(path, OUTCOME)
    first = path.read_text(encoding="utf-8")
    assert add_devices(path, OUTCOME)
    assert path.read_text(encoding="utf-8") == first
    assert first.startswith("<p>before</p>")
    assert first.endswith("<p>after</p>")
    cells = _Cells()
    cells.feed(first)
    assert cells.rows[1][0] == "edge@<camera>NVIDIA Jetson & friends"
    assert cells.rows[1][3:7] == ["openvino-fp32", "4.25", "5.50", "100.00"]
    assert cells.rows[2][1] == "failedno <answer>"
    assert len({len(row) for row in cells.rows}) == 1


def test_a_report_without_a_place_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("<p>old</p>", encoding="utf-8")
    assert not add_devices(path, OUTCOME)
    assert path.read_text(encoding="utf-8") == "<p>old</p>"


def test_the_way_to_the_devices_is_there_while_they_are(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    empty = f"<nav>{LINK_BEGIN}{LINK_END}</nav>{BEGIN}{END}"
    path.write_text(empty, encoding="utf-8")
    assert add_devices(path, OUTCOME)
    shipped = path.read_text(encoding="utf-8")
    assert 'href="#devices"' in shipped.partition("</nav>")[0]
    assert 'id="devices"' in shipped.partition("</nav>")[2]
    clear_devices(path)
    assert path.read_text(encoding="utf-8") == empty
    # the report's own template has both places
    (template,) = Path(page.__file__).parent.glob("page.html.jinja")
    text = template.read_text(encoding="utf-8")
    assert LINK_BEGIN + LINK_END in text and BEGIN + END in text
