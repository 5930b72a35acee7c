"""`python -m coevolve.lm_eval`: the harness's command, knowing our model and our task."""

import sys

from lm_eval.__main__ import cli_evaluate

from coevolve.lm_eval import TASKS

if "--include_path" not in sys.argv and any(text.startswith("--tasks") for text in sys.argv):
    sys.argv += ["--include_path", str(TASKS)]
cli_evaluate()
