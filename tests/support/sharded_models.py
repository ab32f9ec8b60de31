"""What the ranks of a test share that train one model, each on data of its own."""

import torch
from peft_models import batch
from torch.distributed.fsdp import fully_shard

RANK = torch.distributed.get_rank()


def shard(*modules, **options):
    """Each by itself, then what is left."""
    for module in modules:
        fully_shard(module, **options)


def blocks(model):
    inside = model.base_model.model
    return inside.transformer.h if hasattr(inside, "transformer") else inside.model.layers


def lora_layers(model):
    return [layer for layer in model.modules() if hasattr(layer, "lora_A")]


def mine(step):
    return batch(2 * step + RANK)


def both(step):
    """What a single process is given in place of two ranks."""
    first, second = batch(2 * step), batch(2 * step + 1)
    return {name: torch.cat([first[name], second[name]]) for name in first}


def trained(model, data, net=None):
    """The trained parameters of a model after two steps; ``net`` is what is around it."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        (net or model)(**data(step)).loss.backward()
        optimizer.step()
    return list(map(whole, trainable))


def whole(parameter):
    found = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
    return found.detach().float().flatten().tolist()


def placed(model):
    """Which parameters lie in the modules of a model."""
    return [(name, id(parameter)) for name, parameter in model.named_parameters()]
