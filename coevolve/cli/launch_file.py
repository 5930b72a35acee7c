"""Print where a launch file lies, for accelerate's --config_file; without NAME, which ones there
are.
"""

import argparse

from coevolve.cli.paths import adders
from coevolve.shipped import shipped, shipped_launch_files, summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, _, _ = adders(parser)
    add("name", "such as zero2", nargs="?", metavar="NAME")


def run(options: argparse.Namespace) -> None:
    files = shipped_launch_files()
    if options.name is not None:
        print(shipped("launch file", files, options.name))
        return
    for name, file in files.items():
        print(f"{name:16} {summary(file)}")
