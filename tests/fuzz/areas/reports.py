"""Results that `coevolve report` is given: of a run, of `remid`, of `bound`.

A page that is written has no cell that is no number where numbers stand, no script, and nothing
from the network.
"""

import html
import re
import shutil
from pathlib import Path

from tests.fuzz.core import Case
from tests.fuzz.mutate import mutate_file, mutate_folder

FILES = {
    "lora": ("results.json", "metrics.jsonl"),
    "remid": ("results.json",),
    "bound": ("bound.json", "blame.json"),
}
NO_NUMBER = re.compile(r">\s*[-+]?(nan|inf|None)\b[^<]{0,20}<")


class Reports:
    name = "reports"
    share = 5

    def run(self, case: Case) -> None:
        kind = case.rng.choices(list(FILES), (1, 2, 2))[
            0
        ]  # a run has most pictures, and they take the time
        folder = case.inputs / kind
        folder.mkdir()
        for name in FILES[kind]:
            shutil.copy(case.valid.folder / kind / name, folder / name)
        said = "".join(path.read_text("utf-8") for path in folder.iterdir())
        if not case.untouched:
            file = folder / case.rng.choice(FILES[kind])
            case.note(
                mutate_file(case.rng, file, as_json=0.9)
                if case.chance(0.9)
                else mutate_folder(case.rng, folder)
            )
        case.note(kind)
        case.may_change += [f"{kind}/report.html", f"{kind}/report", f"{kind}/report/*"]
        case.command("report", folder)
        _check_page(case, folder / "report.html", said)


def _check_page(case: Case, page: Path, said: str) -> None:
    case.wrong_if(not page.is_file(), "no page was written")
    text = page.read_text("utf-8")
    case.wrong_if("<script" in text.lower(), "a script in the page")
    fetched = re.search(r"""<link\b|src\s*=\s*["']?https?:|url\(["']?https?:""", text)
    case.wrong_if(fetched is not None, "the page fetches something", fetched)
    found = NO_NUMBER.search(text)
    case.wrong_if(
        found is not None,
        "a cell that is no number",
        found and html.unescape(text[found.start() - 80 : found.end() + 20]),
    )


AREA = Reports()
