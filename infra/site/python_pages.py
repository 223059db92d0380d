"""A page for each package that others import from: its exported names with their docstrings, for mkdocstrings."""

import ast
from pathlib import Path


def python_pages(root: Path) -> dict[str, str]:
    """Return the pages as Markdown, by their place in the site: `htc_batch`, then the packages below it.

    Args:
        root: the repository.
    """
    pages = {}
    for top in ("htc_batch", "pipeline", "htc_model"):
        for door in sorted((root / top).rglob("__init__.py")):
            package = ".".join(door.parent.relative_to(root).parts)
            module = ast.parse(door.read_text(encoding="utf-8"))
            names = _exported(module)
            if names:
                parts = [
                    f"# `{package}`",
                    ast.get_docstring(module) or "",
                    *(f"::: {package}.{name}" for name in names),
                ]
                pages[f"reference/python/{package}.md"] = "\n\n".join(parts) + "\n"
    return pages


def _exported(module: ast.Module) -> list[str]:
    for node in module.body:
        if isinstance(node, ast.Assign) and any(isinstance(at, ast.Name) and at.id == "__all__" for at in node.targets):
            return list(ast.literal_eval(node.value))
    return []
