"""What the place of the features in the estimator's prompt costs a model that was never trained.

    python -m tests.benchmarks.prompt_layout --data FILE --n 20

Perplexity of golden responses with features over that without, the rest of the prompt the same;
below 1, features help. They are those that the rule teacher finds in the example's own response
(`true`), or in the next example's (`of another`), which cost what it costs to have any there.
Layouts: `old` ends with the features (`brief-0.3`), `repeated` says the last exchange once more
behind them (`brief`), `before` has them before the dialogue.
"""

import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coevolve.data.corpus import read_corpus
from coevolve.information.perplexity import compare_perplexities, perplexity
from coevolve.prompts import Renderer, prompt_set
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.roles import SeparateRoles
from coevolve.teachers.rules import RuleTeacher
from tests.benchmarks import workload
from tests.benchmarks.harness import Settings, Work, arguments, measure, print_report

INPUTS = "## User Persona\n{user_persona}\n\n## Agent Character\n{agent_character}"
LAYOUTS = {
    "old": prompt_set("brief-0.3"),
    "repeated": prompt_set("brief"),
    "before": dataclasses.replace(
        prompt_set("brief-0.3"),
        estimator_user=(
            INPUTS + "\n\n## Core Features of the Golden Response\n```\n{features}\n```\n\n"
            "## Dialogue\n{dialogue}"
        ),
    ),
}


def own(settings: Settings) -> Work:
    corpus = read_corpus(settings["data"])
    examples = corpus.splits[settings["split"]][: settings["n"]]
    responses = [example.golden_response for example in examples]
    teacher = RuleTeacher(
        prompt_set("brief"), corpus.splits["IDTrain"], max_keywords=3, keywords="telling"
    )
    traces = [teacher.trace(example) for example in examples]
    model, tokenizer = workload.load(settings["folder"])

    def work() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, prompts in LAYOUTS.items():
            estimator = ProbabilityEstimator(
                SeparateRoles.untouched(model), Renderer(prompts, tokenizer), max_new_tokens=1
            )
            without = estimator.log_prob(examples, responses, [None] * len(examples))
            found[name] = {"perplexity_without": perplexity(without)}
            for what, shown in (("true", traces), ("of another", [*traces[1:], traces[0]])):
                compared = compare_perplexities(
                    estimator.log_prob(examples, responses, shown), without
                )
                found[name][what] = {"ratio": compared.ratio, "error": compared.ratio_error}
        return found

    return work


def main(argv: Sequence[str] | None = None, *, isolate: bool = True) -> None:
    parser = arguments(__doc__, repeats=1, data="", split="IDTest", n=20)
    settings: dict[str, Any] = vars(parser.parse_args(argv))
    if not settings["data"]:
        parser.error("--data is needed: dialogues with golden responses, as `coevolve` reads them")
    with tempfile.TemporaryDirectory() as scratch:
        settings["folder"] = workload.base_folder(settings["base"], Path(scratch))
        measured = measure(own, settings, isolate=isolate)
    print_report("prompt_layout", settings, layouts=measured.result, wall_s=measured.wall_s)


if __name__ == "__main__":
    main(sys.argv[1:])
