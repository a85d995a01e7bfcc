"""Pellucid trains a vision model from one recipe, shows what is inside it, and proves every number it reports."""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Measurement", "Recipe", "Run", "__version__", "compare", "inside", "load_recipe", "resume", "train", "train_seeds", "verify"]

_HOMES = {
    "Measurement": ("pellucid.run", "Measurement"),
    "Recipe": ("pellucid.recipe", "Recipe"),
    "Run": ("pellucid.run", "Run"),
    "compare": ("pellucid.compare", "compare"),
    "inside": ("pellucid.inside", ""),
    "load_recipe": ("pellucid.recipe", "load"),
    "resume": ("pellucid.train", "resume"),
    "train": ("pellucid.train", "train"),
    "train_seeds": ("pellucid.train", "train_seeds"),
    "verify": ("pellucid.verify", "verify"),
}

if TYPE_CHECKING:
    from pellucid import inside
    from pellucid.compare import compare
    from pellucid.recipe import Recipe
    from pellucid.recipe import load as load_recipe
    from pellucid.run import Measurement, Run
    from pellucid.train import resume, train, train_seeds
    from pellucid.verify import verify


class _Package(types.ModuleType):
    """The package with its public names imported when first used: `import pellucid` must not cost a second of torch.

    Three functions share the name of their module. A property on the type comes before what the import system sets on
    the instance, so `pellucid.train` is the function whoever imported the module before.
    """

    train = property(lambda self: _public("train"), lambda self, module: None)
    compare = property(lambda self: _public("compare"), lambda self, module: None)
    verify = property(lambda self: _public("verify"), lambda self, module: None)

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'pellucid' has no attribute {name!r}")
        return _public(name)


def _public(name: str) -> Any:
    module, attribute = _HOMES[name]
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


sys.modules[__name__].__class__ = _Package
