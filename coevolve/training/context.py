"""What a run works with: services and data that are the same from its first stage to its last."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from coevolve.data.example import Example
from coevolve.preflight.dialogues import Dialogues
from coevolve.preflight.training import Responses
from coevolve.recipe import Recipe
from coevolve.scoring.by_form import ByForm
from coevolve.scoring.estimator import ProbabilityEstimator
from coevolve.scoring.roles import Roles
from coevolve.training.checkpoints import CheckpointWriter
from coevolve.training.distributed.estimator import DistributedEstimator
from coevolve.training.distributed.processes import Processes
from coevolve.training.generation import Engines
from coevolve.training.known_truth import KnownTruth
from coevolve.training.record.record import Record
from coevolve.training.run_folder import RunFolder
from coevolve.training.setup import Origins
from coevolve.training.tracing import Tracer


@dataclass(frozen=True)
class Context:
    """The services of one run. What changes from stage to stage is in its `RunState`.

    Attributes:
        train, traces: the training examples that have a trace, and the teacher's reasonings.
        estimator: for work that differs from process to process, as rewards do. The weights in it
            are those that the state says.
        distributed: the same models, for work that all processes share.
        judge: an estimator apart, of a role-playing model's responses.
        responses: of the models to be judged, by name and sample_ID.
        engines: where a recipe has vLLM generate.
    """

    recipe: Recipe
    data: Dialogues
    train: Sequence[Example]
    traces: Sequence[str]
    origins: Origins
    estimator: ProbabilityEstimator
    distributed: DistributedEstimator
    record: Record
    processes: Processes
    folder: RunFolder
    checkpoints: CheckpointWriter
    tracer: Tracer
    judge: ByForm | None = None
    truth: KnownTruth | None = None
    responses: Responses = field(default_factory=dict)
    engines: Engines | None = None

    @property
    def roles(self) -> Roles:
        """The models to train."""
        return self.estimator.roles
