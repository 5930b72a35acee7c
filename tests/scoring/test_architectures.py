"""Every architecture of the table is scored as in float64 or refused, and stands in the page."""

import re
from pathlib import Path

import pytest

from tests.scoring.architectures import HEADER, ROWS, measured

PAGE = Path(__file__).parents[2] / "coevolve" / "scoring" / "README.md"
TOLERANCE = 1e-4  # nats per response
OF_EACH_KIND = [
    "bert",
    "gemma4",
    "gpt_neo",
    "llama",
    "mamba",
    "musicgen",
    "opt",
    "roberta, decoder",
]


@pytest.fixture(scope="module")
def page():
    """Each row of the table, by its name."""
    table = PAGE.read_text().split(HEADER)[1].split("\n\n")[0]
    return {line.split(" | ")[0].removeprefix("| "): line for line in table.strip().splitlines()}


def without_figures(text):
    return re.sub(r"\d+(\.\d+)?(e-\d+)?", "N", text)


def check(name, page):
    found = measured(name)
    assert found.refusal or max(found.far, found.far_adapted) < TOLERANCE
    assert without_figures(found.row(name)) == without_figures(page[name])
    assert found.refusal or all(
        float(x) < TOLERANCE for x in page[name].strip("| ").split(" | ")[3:]
    )


def test_the_page_has_every_row_and_no_other(page):
    assert list(page) == list(ROWS)


@pytest.mark.parametrize("name", OF_EACH_KIND)
def test_one_of_each_kind_is_right_or_refused(name, page):
    check(name, page)


@pytest.mark.slow(seconds=1)
@pytest.mark.parametrize("name", [name for name in ROWS if name not in OF_EACH_KIND])
def test_every_architecture_is_right_or_refused(name, page):
    check(name, page)
