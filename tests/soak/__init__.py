"""A run of many rounds under faults that strike at random moments, compared with one that nobody
disturbed.

    python -m tests.soak --rounds 200 --faults 100      about 40 minutes on one busy core
    python -m tests.soak --rounds 10 --faults 6 --seed 1

Three runs of one tiny recipe, every phase a single update, by the command that users give:

- `whole`, without any fault, whose memory and open files are watched;
- `alone`, on one process all the time: SIGKILL, SIGTERM and SIGUSR1, a disk that is really full (a
  small tmpfs where mounting is allowed, else a limit on the size of files), a teacher at a real
  endpoint that is slow, busy, broken or gone, a W&B server that is not there or goes away. It must
  end with the bits of `whole`, its record line for line, and W&B with each step once, in order;
- `shared`, on one process and on two in turn (gloo), of which one or both are killed or asked to
  stop. It must have every line of the record once, and weights within 1e-6.

With `--vllm` the engine generates, in the process, for adapters: `whole`, and an `alone` that is
killed only. In vLLM's environment:

    python -m tests.soak --vllm --rounds 12 --faults 24     10 minutes on one busy core

`world` is the recipe and its data, `servers` the teacher and W&B, `sitting` a process or two that
train until something strikes, `faults` what strikes and when, `compare` what must be the same. The
runs' processes are forked from one that has loaded the libraries, which spares each half a minute.
A defect that it finds gets a narrow test of its own beside the code.
"""
