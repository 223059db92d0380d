"""How deep the import graph is, and which modules import each other in a circle.

    python benchmarks/import_graph.py [--json] [PACKAGE ...]

Counts every import, also those inside functions and those for type checkers only: a circle that is hidden from Python
is a circle for the reader all the same. Depth is the number of modules on the longest chain of imports, a circle
counted as one module. To compare with another commit, check it out into a folder and run this script there.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import grimp
import networkx as nx

PACKAGES = ("htc_model", "pipeline", "jobs")


def describe(package: str) -> dict[str, Any]:
    """Describe the import graph of one top-level package.

    Returns:
        modules: number of modules that hold code. largest_folder: the folder with most modules, and how many.
        depth: modules on the longest chain of imports. circles: the modules of each circle, sorted.
        chain: the modules of one such longest chain, the importing one first.
    """
    imports = grimp.build_graph(package, cache_dir=None)
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(imports.modules)
    for module in imports.modules:
        graph.add_edges_from((module, imported) for imported in imports.find_modules_directly_imported_by(module))
    # An `__init__` is a folder here, unless somebody imports names from it.
    graph.remove_nodes_from(
        [module for module in imports.modules if imports.find_children(module) and not graph.degree(module)]
    )
    circles = [sorted(circle) for circle in nx.strongly_connected_components(graph) if len(circle) > 1]
    condensed = nx.condensation(graph)
    chain = nx.dag_longest_path(condensed)
    folders = Counter(module.rpartition(".")[0] or module for module in graph.nodes)
    folder, count = folders.most_common(1)[0]
    return {
        "package": package,
        "modules": graph.number_of_nodes(),
        "largest_folder": {"name": folder, "modules": count},
        "depth": len(chain),
        "circles": sorted(circles),
        "chain": [" + ".join(sorted(condensed.nodes[node]["members"])) for node in chain],
    }


def main() -> int:
    """Print what `describe` finds of each package."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
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
            f"depth {found['depth']}, {len(found['circles'])} circles"
        )
        for circle in found["circles"]:
            print(f"    circle: {', '.join(circle)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
