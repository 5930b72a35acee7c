"""coevolve: co-evolving reinforcement learning of a model of role-play responses, and R-EMID."""

__version__ = "0.3.0"
__all__ = ["Example", "ProbabilityEstimator", "__version__"]


def __getattr__(name: str):
    # Imported when asked for, so that reading a recipe or computing a measure does not load torch.
    if name == "ProbabilityEstimator":
        from coevolve.scoring.estimator import ProbabilityEstimator

        return ProbabilityEstimator
    if name == "Example":
        from coevolve.data.example import Example

        return Example
    raise AttributeError(f"module 'coevolve' has no attribute {name!r}")
