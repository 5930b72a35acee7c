"""What only a GPU shows, in one program that prints one JSON, and tests of what it found.

    python -m tests.gpu                  about 10 minutes on one GPU of 80 GB
    python -m tests.gpu --size tiny      the same code, on a CPU too
    bash tests/gpu/from_wheels.sh WHEELS/    in an environment made of wheels alone

A Qwen3-0.6B-shaped random model in bfloat16, dialogues of made words. Parts, each in a process of
its own, so that one that fails is named in the JSON and the others go on:

- `scoring`: scores of N x N pairs against float64 on the CPU, beside how far a plain pass is from
  it; scored tokens per second, and the share of the rate that this GPU has in matrix products;
- `round`: one round of co-evolution, with vLLM beside where it is installed: seconds and memory of
  each phase beside what the table predicts, and how far vLLM's log-probabilities are off;
- `step`: a GRPO step with its engine against plain TRL with `use_vllm` (benchmarks/vllm_engine.py);
- `launches`: the same round, without vLLM, under ZeRO-3 and FSDP2 on one device.
"""
