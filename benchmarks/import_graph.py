"""How deep the import graph is, and which modules import each other in a circle.

    python benchmarks/import_graph.py [--json] [PACKAGE ...]

Counts every import, also those inside functions and those for type checkers only: a circle that is hidden from Python
is a circle for the reader all the same. Depth is the number of nodes on the longest chain of imports, a circle counted
as one node. To measure another commit, check it out into a folder and run this script there.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grimp
import networkx as nx

PACKAGES = ("htc_model", "pipeline", "jobs")


def describe(package: str) -> dict[str, Any]:
    """Describe the import graph of one top-level package.

    Returns:
        modules: number of modules. largest_folder: the folder with most modules, and how many it holds.
        depth: modules on the longest chain of imports. circles: the modules of each circle, sorted.
        chain: the modules of one such longest chain, the importing one first.
        packages, package_depth, package_circles: the same for its sub-packages and top-level modules.
    """
    imports = grimp.build_graph(package, cache_dir=None)
    # A package's `__init__` exports what lies below it, lazily: its arrows are not those of a module.
    modules = {module for module in imports.modules if not imports.find_children(module)}
    edges = [
        (module, imported)
        for module in modules
        for imported in imports.find_modules_directly_imported_by(module)
        if imported in modules
    ]
    packages = {module: ".".join(module.split(".")[:2]) for module in modules}
    between = {(packages[one], packages[other]) for one, other in edges if packages[one] != packages[other]}
    depth, circles, chain = _measure(modules, edges)
    package_depth, package_circles, _ = _measure(set(packages.values()), between)
    folder, count = Counter(module.rpartition(".")[0] for module in modules).most_common(1)[0]
    return {
        "package": package,
        "modules": len(modules),
        "largest_folder": {"name": folder, "modules": count},
        "depth": depth,
        "circles": circles,
        "chain": chain,
        "packages": len(set(packages.values())),
        "package_depth": package_depth,
        "package_circles": package_circles,
    }


def _measure(nodes: set[str], edges: Iterable[tuple[str, str]]) -> tuple[int, list[list[str]], list[str]]:
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(sorted(nodes))
    graph.add_edges_from(sorted(edges))
    circles = sorted(sorted(circle) for circle in nx.strongly_connected_components(graph) if len(circle) > 1)
    condensed = nx.condensation(graph)
    chain = nx.dag_longest_path(condensed)
    return len(chain), circles, [" + ".join(sorted(condensed.nodes[node]["members"])) for node in chain]


def main() -> int:
    """Print what `describe` finds of each package."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("packages", nargs="*", default=PACKAGES)
    parser.add_argument("--json", action="store_true", help="one JSON object per line, with the longest chain")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path.cwd()))
    for package in arguments.packages:
        found = describe(package)
        if arguments.json:
            print(json.dumps(found))
            continue
        largest = found["largest_folder"]
        print(
            f"{package}: {found['modules']} modules, at most {largest['modules']} in one folder ({largest['name']}), "
            f"depth {found['depth']}, {len(found['circles'])} circles; {found['packages']} sub-packages and top-level "
            f"modules, depth {found['package_depth']}, {len(found['package_circles'])} circles"
        )
        for circle in [*found["circles"], *found["package_circles"]]:
            print(f"    circle: {', '.join(circle)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
