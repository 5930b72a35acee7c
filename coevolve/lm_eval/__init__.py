"""The estimator as a model of EleutherAI's lm-evaluation-harness (`pip install lm-eval`).

The harness finds models that have registered themselves, and has no way to ask other packages for
theirs. Two ways to have `coevolve` among them:

    python -m coevolve.lm_eval --model coevolve --model_args pretrained=DIR \\
        --tasks coevolve_roleplay ...
    lm_eval --model coevolve --model_args pretrained=DIR --tasks PATH/roleplay.yaml ...

The first is the harness's own command with the model and the task added. The second is the harness
itself: a task that is given as a file is read before the model is made, and this one registers it;
PATH is the folder of this package.
"""

import importlib.util
from pathlib import Path

if importlib.util.find_spec("lm_eval") is None:
    raise ModuleNotFoundError("coevolve.lm_eval needs EleutherAI's harness: pip install lm-eval")

from coevolve.lm_eval.model import EstimatorLM

TASKS = Path(__file__).parent

__all__ = ["TASKS", "EstimatorLM"]
