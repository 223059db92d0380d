"""Manifests as readable YAML: no anchors, long texts as blocks."""

from collections.abc import Iterable

import yaml

from jobs.manifests.pods import Manifest


class _Dumper(yaml.SafeDumper):
    """Writes repeated values in full instead of as aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


def dump_manifests(manifests: Iterable[Manifest]) -> str:
    """Return the manifests as a stream of documents."""
    return yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, width=120, explicit_start=True)


def dump_operations(operations: list[Manifest]) -> str:
    """Return the operations of a JSON patch as YAML to embed in a manifest."""
    return yaml.dump(operations, Dumper=_Dumper, sort_keys=False)


def dump_mapping(mapping: Manifest) -> str:
    """Return a mapping as YAML to embed in a manifest."""
    return yaml.safe_dump(mapping, sort_keys=False)
