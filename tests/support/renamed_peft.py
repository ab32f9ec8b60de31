"""Trains an accelerated model and a plain one on a PEFT in which one name is renamed."""

import copy
import json
import re
import sys
from importlib import machinery
from pathlib import Path

import torch


class Loader(machinery.SourceFileLoader):
    """Compiles a module of PEFT with ``old`` replaced by ``new`` in its source."""

    old = new = ""

    def get_code(self, fullname):
        source = Path(self.path).read_text(encoding="utf-8")
        changed = re.sub(rf"\b{self.old}\b", self.new, source)
        if changed == source:
            return super().get_code(fullname)
        return compile(changed, self.path, "exec")


class Finder:
    """Finds the modules of PEFT; a renamed module only by its new name."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        if fullname.split(".")[0] != "peft":
            return None
        if re.search(rf"\b{Loader.old}\b", fullname):
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        kept = re.sub(rf"\b{Loader.new}\b", Loader.old, fullname)
        spec = machinery.PathFinder.find_spec(kept, path)
        if spec is None or not isinstance(spec.loader, machinery.SourceFileLoader):
            return spec
        found = machinery.ModuleSpec(
            fullname, Loader(fullname, spec.origin), origin=spec.origin, is_package=False
        )
        found.submodule_search_locations = spec.submodule_search_locations
        found.has_location = True
        return found


def train(model, batch):
    """Runs three steps; returns their losses and the trained tensors."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    losses = []
    for step in range(3):
        loss = model(**batch(step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return [*losses, *(p.detach() for p in trained)]


def accelerated_beside_peft(**lora):
    """Reports what ``accelerate`` did, and the largest difference of training from PEFT's."""
    from peft_models import batch, fast_calls, llama

    import autolora

    plain = llama(**lora)
    fast = copy.deepcopy(plain)
    report = autolora.accelerate(fast)
    pairs = zip(train(fast, batch), train(plain, batch), strict=True)
    return {
        "taken": len(report.taken),
        "left": sorted({reason for _, reason in report.left}),
        "notes": report.notes,
        "calls": fast_calls(fast),
        "difference": max(float((mine - theirs).abs().max()) for mine, theirs in pairs),
    }


def train_renamed(name):
    """Prints what happened to a model with LoRA and to one with DoRA, as JSON."""
    assert "peft" not in sys.modules
    Loader.old, Loader.new = name, f"{name}_renamed"
    sys.meta_path.insert(0, Finder)
    print(json.dumps([accelerated_beside_peft(use_dora=dora) for dora in (False, True)]))
