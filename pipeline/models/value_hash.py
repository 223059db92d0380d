"""Hashes a function with the values that it holds, the same in each process that runs the same code.

Pickled bytes are no such hash: they depend on the order of sets and on which of two equal texts is one object. A value
is hashed by its content instead: numbers, texts, paths, containers, arrays, tensors, classes, functions with their
closure and defaults, and any other object by its attributes. What has none and cannot be pickled, such as a lock or an
open file, counts by its type.
"""

import functools
import hashlib
import importlib.util
import pickle
import sys
import types
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

from pipeline.models.identity import code_version

_MAIN = "__main__"


def hash_value(value: object) -> str:
    """Return the sha256 of a value's content, 64 hex digits."""
    return _Hasher().digest(value).hex()


def code_of(module: str) -> str:
    """Return the version of a module's code as `identity.code_version`; "" of one without a file, as in a notebook."""
    if module.partition(".")[0] in sys.stdlib_module_names and module != _MAIN:
        return f"Python {sys.version_info.major}.{sys.version_info.minor}"
    try:
        if module == _MAIN:
            return _code_of_script(sys.modules[_MAIN])
        return "" if importlib.util.find_spec(module.partition(".")[0]) is None else code_version(f"{module}:")
    except (ValueError, OSError):
        # A module that was made by hand has no spec.
        return ""


def _code_of_script(main: types.ModuleType) -> str:
    file = getattr(main, "__file__", None)
    if not file:
        return ""
    name = main.__spec__.name if main.__spec__ else Path(file).stem
    found = importlib.util.find_spec(name.partition(".")[0]) if name.isidentifier() else None
    if main.__spec__ or (found and found.origin and Path(found.origin).resolve() == Path(file).resolve()):
        # As a module, with what it imports from its folder.
        return code_version(f"{name}:")
    return f"source {hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]}"


class _Hasher:
    """Digests of values; `_known` has those of the objects that were met, by id, and ends cycles."""

    def __init__(self) -> None:
        self._known: dict[int, bytes] = {}
        self._codes: dict[str, str] = {}
        # Ids are of living objects only.
        self._kept: list[object] = []

    def digest(self, value: object) -> bytes:
        if id(value) in self._known:
            return self._known[id(value)]
        self._kept.append(value)
        self._known[id(value)] = b"cycle"
        found = self._known[id(value)] = self._compute(value)
        return found

    def _compute(self, value: Any) -> bytes:
        for kinds, parts in _KINDS:
            if isinstance(value, kinds):
                return self._joined(type(value).__qualname__, *parts(self, value))
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(value, torch.Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1)
            return self._joined(
                "tensor", str(value.dtype), str(tuple(value.shape)), flat.view(torch.uint8).numpy().tobytes()
            )
        if hasattr(value, "dtype") and hasattr(value, "tobytes"):
            is_flat = not getattr(value.dtype, "hasobject", False)
            content = value.tobytes() if is_flat else value.tolist()
            return self._joined("array", str(value.dtype), str(getattr(value, "shape", "")), content)
        return self._joined("object", type(value), *self._state(value))

    def _joined(self, kind: str, *parts: Any) -> bytes:
        found = hashlib.sha256(kind.encode())
        for part in parts:
            found.update(hashlib.sha256(part).digest() if isinstance(part, bytes) else self.digest(part))
        return found.digest()

    def _state(self, value: object) -> tuple[object, ...]:
        if hasattr(value, "__dict__"):
            return (vars(value),)
        try:
            return (pickle.dumps(value, protocol=4),)
        except Exception:  # noqa: BLE001 - objects raise what they like; the type is hashed then
            return ()

    def code(self, module: str) -> str:
        if module not in self._codes:
            self._codes[module] = code_of(module)
        return self._codes[module]

    def plain(self, value: object) -> list[bytes]:
        return [repr(value).encode()]

    def mapping(self, value: Mapping[object, object]) -> list[bytes]:
        return sorted(self.digest(key) + self.digest(each) for key, each in value.items())

    def function(self, value: types.FunctionType) -> list[Any]:
        name = f"{value.__module__}:{value.__qualname__}"
        held = [_content(cell) for cell in value.__closure__ or ()]
        return [name, self._code(value), value.__defaults__, value.__kwdefaults__, held]

    def _code(self, function: types.FunctionType) -> object:
        code, version = function.__code__, self.code(function.__module__ or "")
        if version:
            # Two lambdas of one module have one name.
            return [version, code.co_firstlineno, sorted(code.co_names)]
        return self._without_file(code, function.__globals__)

    def _without_file(self, code: types.CodeType, names: Mapping[str, object]) -> list[Any]:
        """Return what a function of a notebook does: its instructions, and what it names of the notebook's own."""
        inner = [
            self._without_file(each, names) if isinstance(each, types.CodeType) else each for each in code.co_consts
        ]
        own = [names[name] for name in code.co_names if name in names]
        return [code.co_code, code.co_names, inner, own]

    def type(self, value: type) -> list[Any]:
        name = f"{value.__module__}:{value.__qualname__}"
        if value.__module__ == "builtins":
            return [name]
        version = self.code(value.__module__)
        if version:
            return [name, version]
        own = {key: each for key, each in vars(value).items() if isinstance(each, _METHODS) or _is_constant(key, each)}
        return [name, own, list(value.__bases__)]


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return "empty"


def _is_constant(name: str, value: object) -> bool:
    return not name.startswith("__") and isinstance(value, bool | int | float | str | tuple | list | dict)


_METHODS = (types.FunctionType, staticmethod, classmethod, property)
# The first that fits; bool is an int, and an Enum may be a str.
_KINDS: list[tuple[Any, Callable[[_Hasher, Any], Any]]] = [
    (Enum, lambda hasher, value: [type(value), value.name]),
    ((bool, int, float, complex, str, bytes, type(None), PurePath), _Hasher.plain),
    ((tuple, list), lambda hasher, value: [hasher.digest(each) for each in value]),
    ((set, frozenset), lambda hasher, value: sorted(hasher.digest(each) for each in value)),
    (Mapping, _Hasher.mapping),
    (functools.partial, lambda hasher, value: [value.func, value.args, value.keywords]),
    (types.MethodType, lambda hasher, value: [value.__func__, value.__self__]),
    (types.FunctionType, _Hasher.function),
    ((staticmethod, classmethod), lambda hasher, value: [value.__func__]),
    (property, lambda hasher, value: [value.fget]),
    (types.ModuleType, lambda hasher, value: [value.__name__, hasher.code(value.__name__)]),
    (type, _Hasher.type),
    (types.BuiltinFunctionType, lambda hasher, value: [f"{value.__module__}:{value.__qualname__}"]),
]
