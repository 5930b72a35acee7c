"""vLLM, where it writes for a model that is trained, under TRL's names."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from coevolve.recipe.section import Positive, Section

Share = Annotated[float, Field(gt=0, le=1)]


class Vllm(Section):
    """Whether vLLM generates, and how."""

    use_vllm: bool = False
    """Generate with vLLM, which must be installed; for the connector, outside RL, too."""
    vllm_mode: Literal["colocate", "server"] = "colocate"
    """In the training processes, or by a server (`vllm serve`) that sees the run's folder."""
    vllm_server_base_url: str | None = None
    """For `server`, for example http://localhost:8000."""
    vllm_max_model_length: Positive | None = None
    """Tokens of a prompt and its completion that it has room for; None is `model.max_length` and
    the longest completion.
    """
    vllm_gpu_memory_utilization: Share = 0.3
    """For `colocate`: the share of each GPU's memory that vLLM may take."""
    vllm_tensor_parallel_size: Positive = 1
    """For `colocate`: over how many GPUs one copy of the model is spread."""
    vllm_enable_sleep_mode: bool = False
    """For `colocate`: let it give the GPU's memory to training between two generations."""

    @model_validator(mode="after")
    def _server_has_an_address(self) -> "Vllm":
        if self.use_vllm and self.vllm_mode == "server" and not self.vllm_server_base_url:
            raise ValueError(
                "vllm_mode: server needs vllm_server_base_url: http://localhost:8000, say"
            )
        return self
