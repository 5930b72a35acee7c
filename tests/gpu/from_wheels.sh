#!/usr/bin/env bash
# The GPU suite in an environment that is made of a folder of wheels and nothing else; prints one JSON.
set -euo pipefail
wheels=${1:?usage: bash tests/gpu/from_wheels.sh WHEELS/   (coevolve, torch, vllm and what they need)}
wheels=$(cd "$wheels" && pwd)
cd "$(dirname "$0")/../.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install -q --no-index --find-links "$wheels" "coevolve[test,vllm]" >&2
mkdir "$scratch/suite" && cp -r tests launch pyproject.toml "$scratch/suite"  # coevolve is the wheel's
cd "$scratch/suite" && "$scratch/venv/bin/python" -m tests.gpu
