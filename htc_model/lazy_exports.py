"""Lazy package exports (PEP 562): a package's public names are imported when they are first used.

So `import pipeline.output` does not import everything that `pipeline.output` may need, and tables are read without
torch.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def attach(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Build a package's `__getattr__`.

    Args:
        package: the package's `__name__`.
        modules: the exported names by the module that defines them, relative to the package, such as
            {"parts": ["Part"]}; a module with a dot is absolute.

    Returns:
        A function from a name to its object. It raises AttributeError for other names.

    `dir()` of the package lists its `__all__`, so that prompts and notebooks complete the names.
    """
    module = sys.modules[package]
    module.__dict__["__dir__"] = lambda: sorted(module.__all__)
    homes = {name: module for module, names in modules.items() for name in names}

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        absolute = home if "." in home else f"{package}.{home}"
        return getattr(import_module(absolute), name)

    return load
