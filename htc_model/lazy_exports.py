"""Names that a package exports and imports only when they are used (PEP 562).

So `import pipeline.output` costs nothing of what `pipeline.output` may need, and the tables are read without torch.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def attach(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Make a package's `__getattr__`.

    Args:
        package: the package's `__name__`.
        modules: the exported names by the module that defines them, relative to the package, such as
            {"parts": ["Part"]}; or absolute, where it holds a dot.

    Returns:
        A function from a name to what it stands for. It raises AttributeError for other names.
    """
    homes = {name: module for module, names in modules.items() for name in names}

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = homes[name]
        absolute = module if "." in module else f"{package}.{module}"
        return getattr(import_module(absolute), name)

    return load
