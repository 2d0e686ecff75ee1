"""How the bench computes and reports its figures; none of these tests measures anything."""

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench import _format
from bench.__main__ import FIGURES, main
from bench._figure import OURS, Curve, Figure, Goal, Spread, at_most, share_of
from bench._report import BEGIN, END, MarksError, as_text, write_json, write_markdown
from bench._rounds import interleave
from bench._svg import draw
from bench._workers import Worker, WorkerError

PAGE = (Path(__file__).parents[2] / "docs/performance.md").read_text(encoding="utf-8")


@pytest.fixture
def figure() -> Figure:
    """A figure with two peers and a bare app."""
    rounds = {OURS: [1.0, 2.0, 4.0], "slow <&": [10.0, 20.0, 20.0], "slower": [50.0] * 3, "bare": [7.0] * 3}
    return Figure(
        name="small",
        title="a small one",
        unit="µs",
        rounds=rounds,
        also=("bare",),
        goals=[*share_of("slower", rounds, 50, stretch=True), *at_most("≤ 3 µs", rounds, 3.0)],
        missing={"pino": "install Node"},
    )


@pytest.fixture
def growing(figure: Figure) -> Figure:
    """A figure that grows."""
    curve = Curve(label="series", x=(1, 100), lines={OURS: (0.5, 30.0), "slow <&": (2.0, None)})
    return Figure(name="growing", title="a growing one", unit="ms", rounds=figure.rounds, curve=curve)


def test_a_ratio_is_the_median_of_the_rounds_ratios(figure: Figure) -> None:
    """Load that slows both values of a round does not change their ratio."""
    assert figure.ratios["slow <&"] == Spread(0.1, 0.1, 0.2)
    assert figure.ours == Spread(2.0, 1.0, 4.0)
    # The figure's own is that to the best peer, and a bare app is not a peer.
    assert figure.ratio == 0.1
    assert list(figure.peers) == ["slow <&", "slower"]


def test_where_more_is_better_the_best_peer_has_the_lowest_ratio() -> None:
    """For a rate, the ratio is the lowest one."""
    figure = Figure(
        name="rate", title="", unit="1/s", rounds={OURS: [10.0], "a": [5.0], "b": [20.0]}, more_is_better=True
    )
    assert figure.ratio == 0.5


def test_a_goal_is_reached_at_its_bound() -> None:
    """A value equal to the bound reaches the goal."""
    assert Goal(text="", value=2.0, at_most=2.0).reached
    assert not Goal(text="", value=2.1, at_most=2.0).reached


def test_there_is_no_goal_for_a_peer_that_was_not_measured() -> None:
    """A missing peer is neither a reached nor a missed goal."""
    assert share_of("pino", {OURS: [1.0]}, 2) == []
    assert at_most("", {}, 2) == []


def test_rounds_are_interleaved_in_alternating_order() -> None:
    """Each round measures all names, the next one in reverse order, after one for warming up."""
    asked: list[str] = []

    def measure(name: str) -> float:
        asked.append(name)
        return float(len(asked))

    found = interleave(["a", "b"], measure, 2)
    assert "".join(asked) == "ababba"
    assert found == {"a": [3.0, 6.0], "b": [4.0, 5.0]}


def test_the_json_has_one_object_for_each_figure(figure: Figure, growing: Figure, tmp_path: Path) -> None:
    """Five keys are the contract; the others add detail."""
    write_json([figure, growing], tmp_path / "figures.json")
    small, second = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert {key: small[key] for key in ("name", "unit", "ours", "peers", "ratio")} == {
        "name": "small",
        "unit": "µs",
        "ours": 2.0,
        "peers": {"slow <&": 20.0, "slower": 50.0},
        "ratio": 0.1,
    }
    assert [goal["reached"] for goal in small["goals"]] == [False, True]
    assert second["curve"]["lines"] == {OURS: [0.5, 30.0], "slow <&": [2.0, None]}


def test_the_text_shows_values_ratios_goals_and_missing_peers(figure: Figure) -> None:
    """It has our value, each peer's with the ratio, each goal's verdict, and what was not measured."""
    text = as_text(figure)
    assert re.search(r"slow <&\s+20\.0\s+1/10\.0 ", text)
    assert re.search(r"≤ 1/50 of slower\s+1/25\s+not yet", text)
    assert re.search(r"≤ 3 µs\s+2\.00\s+reached", text)
    assert "pino was not measured: install Node" in text


def test_the_tables_go_between_the_marks(figure: Figure, growing: Figure, tmp_path: Path) -> None:
    """The text around the marks stays; the last run's tables are replaced."""
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write_markdown([figure, growing], page, "On this machine.")
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"\n{END}\nafter\n")
    assert "old" not in text
    assert "\nOn this machine.\n" in text
    assert "| `small`: a small one, µs | watchkeeper | 2.00 |" in text
    assert "| watchkeeper | 0.500 | 30.0 |" in text


def test_a_page_without_marks_is_not_changed(figure: Figure, tmp_path: Path) -> None:
    """A mistyped file name is an error that leaves the file as it is."""
    page = tmp_path / "page.md"
    page.write_text("mine\n", encoding="utf-8")
    with pytest.raises(MarksError, match="the tables go between them"):
        write_markdown([figure], page, "")
    assert page.read_text(encoding="utf-8") == "mine\n"


def test_the_svg_has_names_values_and_units(figure: Figure, growing: Figure) -> None:
    """Texts are escaped, axes are labelled, and there is a dark colour scheme."""
    svg = draw([growing, figure])
    root = ET.fromstring(svg)  # noqa: S314 - our own
    texts = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"watchkeeper", "slow <&", "2.00", "µs, less is better", "series", "100", "ms"} <= texts
    assert "prefers-color-scheme: dark" in svg


@pytest.mark.parametrize(
    ("value", "written"),
    [
        *((0.1194, "0.119"), (1.84, "1.84"), (24.12, "24.1"), (458.3, "458"), (2411.2, "2,411")),
        *((-3.25, "-3.25"), (0.0, "0")),
    ],
)
def test_numbers_have_three_significant_digits(value: float, written: str) -> None:
    """More digits would be noise."""
    assert _format.number(value) == written


@pytest.mark.parametrize(
    ("value", "written"), [(0.25, "1/4.0"), (0.02, "1/50"), (2.0, "2.0 times"), (-0.1, "nothing")]
)
def test_ratios_are_fractions_or_multiples(value: float, written: str) -> None:
    """They are written as the goals are worded."""
    assert _format.ratio(value) == written


def test_a_worker_that_dies_is_an_error() -> None:
    """Its message is on stderr; the bench continues with the next figure."""
    worker = Worker(["/bin/true"])
    with pytest.raises(WorkerError, match="ended too early"):
        worker.ask()
    worker.close()


def test_the_list_names_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    """`--list` measures nothing."""
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(FIGURES)


def test_a_mistyped_figure_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The error lists the valid names."""
    with pytest.raises(SystemExit, match="2"):
        main(["--only", "scrap"])
    assert "scrape-by-workers" in capsys.readouterr().err


def test_the_page_explains_every_figure() -> None:
    """It also has the tables and the picture."""
    explained = re.findall(
        r"`([\w-]+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGE.partition(END)[2], re.MULTILINE))
    )
    assert explained == list(FIGURES)
    assert BEGIN in PAGE
    assert END in PAGE
    assert (Path(__file__).parents[2] / "docs/performance.svg").exists()
