"""Write what a run or an evaluation measured as one HTML page, with its figures as PNG and SVG."""

import argparse

from coevolve.cli.paths import adders
from coevolve.outputs import REPORT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _, _, writes = adders(parser)
    what = "the --output-dir of coevolve train, or --out of coevolve remid and bound, or compare"
    writes("folder", what, kind=REPORT, metavar="DIR")


def run(options: argparse.Namespace) -> None:
    from coevolve.report.contents import read_contents
    from coevolve.report.page import write_report

    for path in write_report(read_contents(options.folder), options.folder):
        print(path)
