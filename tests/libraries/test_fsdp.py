"""FSDP2 of torch, on one process over gloo: all that is reached is there, used and given back."""

import re
from importlib import import_module

import pytest
import torch
import torch.distributed as dist
from library_runs import gone
from torch.distributed import _composable_state
from torch.distributed.fsdp import FSDPModule, fully_shard

from coevolve.errors import LibraryError
from coevolve.libraries import fsdp

contract = import_module("torch.distributed._composable.contract")


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory):
    store = tmp_path_factory.mktemp("store") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def divided():
    """A model after two steps."""
    torch.manual_seed(0)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):
        model(torch.ones(3, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_a_model_is_whole_for_a_while_and_plain_in_the_end():
    model = divided()
    fsdp.check(model)
    with fsdp.whole(model):
        inside = model(torch.ones(1, 4))
        weights = {name: value.clone() for name, value in model.state_dict().items()}
    assert all(type(value) is torch.Tensor for value in weights.values())
    assert len(fsdp.divided_modules(model)) == 2
    known = len(_composable_state._module_state_mapping)
    fsdp.release(model)
    assert len(_composable_state._module_state_mapping) == known - 2
    for module in model.modules():
        assert not isinstance(module, FSDPModule) and type(module) in (
            torch.nn.Sequential,
            torch.nn.Linear,
        )
        assert not {contract.STATE_KEY, contract.REGISTRY_KEY} & set(vars(module))
        for kind in ("_forward_pre_hooks", "_forward_hooks", "_state_dict_pre_hooks"):
            assert not getattr(module, kind)
        assert not module._load_state_dict_pre_hooks and not module._load_state_dict_post_hooks
    assert torch.equal(model(torch.ones(1, 4)), inside)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    fully_shard(model)  # torch takes it again


PLACES = {
    **dict.fromkeys(fsdp.MODULE, lambda model: FSDPModule),
    **dict.fromkeys(fsdp.STATE, lambda model: model[0]._get_fsdp_state()),
    **dict.fromkeys(fsdp.GROUP, lambda model: model[0]._get_fsdp_state()._fsdp_param_groups[0]),
    **dict.fromkeys(
        fsdp.PARAMETER,
        lambda model: model[0]._get_fsdp_state()._fsdp_param_groups[0].fsdp_params[0],
    ),
    **dict.fromkeys(fsdp.TORCH[:2], lambda model: contract),
    fsdp.TORCH[2]: lambda model: _composable_state,
}


@pytest.mark.parametrize("hook", PLACES, ids=str)
def test_each_that_is_gone_is_named(hook):
    model = divided()
    with (
        gone(hook, PLACES[hook](model)),
        pytest.raises(LibraryError, match=re.escape(f"{hook}, by which {hook.purpose}, is miss")),
    ):
        fsdp.check(model)
