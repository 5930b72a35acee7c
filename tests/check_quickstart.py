"""Check a quickstart's results.json against what the README promises; `.ci/run` calls it after the
quickstart.
"""

import json
import sys
from pathlib import Path

PROMISED = {"full/without_corl": 0.85, "full/without_reasoning": 0.75}


def main(path: str) -> None:
    results = json.loads(Path(path).read_text())
    for name, limit in PROMISED.items():
        ratio = results["ratio"][name]["IDTest"]["ratio"]
        print(f"{name} on IDTest: {ratio:.3f} (promised: at most {limit})")
        if ratio > limit:
            sys.exit(f"{path}: {name} is {ratio:.3f}, above {limit}")
    full, floor = results["perplexity"]["full"]["IDTest"], results["perplexity"]["floor"]["IDTest"]
    if not full > floor * 0.97:  # 512 examples scatter about the expectation by some per cent
        sys.exit(
            f"{path}: perplexity {full:.3f} lies below the exact floor {floor:.3f}: the scores "
            "cannot be right"
        )


if __name__ == "__main__":
    main(sys.argv[1])
