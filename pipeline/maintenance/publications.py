"""published.json: the catalogs whose tables name files of a run, so that these files are not removed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from pipeline.errors import StorageError
from pipeline.output.json_files import read_json, write_json
from pipeline.output.layout import run_folder
from pipeline.storage.storage import Storage
from pipeline.storage.uris import join

NOTE = "published.json"


@dataclass(frozen=True)
class Publication:
    """A catalog whose tables name the run's files.

    catalog: as it was given, without secrets. published: UTC, ISO 8601. snapshots: by table, the snapshot that added
    the run; empty while it is being published, and when that was interrupted.
    """

    catalog: str
    namespace: str
    published: str
    snapshots: Mapping[str, int] = field(default_factory=dict)

    @property
    def place(self) -> tuple[str, str]:
        """The identity of a publication: catalog and namespace."""
        return self.catalog, self.namespace


def read_publications(storage: Storage, output_uri: str, run: str) -> tuple[Publication, ...]:
    """Read where a run is published; empty when it is not.

    Raises:
        DamagedFileError: published.json is damaged.
        StorageError: it may be of a later version, or storage failed.
    """
    uri = _note_uri(output_uri, run)
    content = read_json(storage, uri) or {}
    try:
        return tuple(Publication(**each) for each in content.get("publications", []))
    except TypeError as error:
        raise StorageError(f"{uri} is damaged, or of a later version of htc ({error}).") from None


def note_publication(storage: Storage, output_uri: str, run: str, publication: Publication) -> None:
    """Record that a run is published, or is being published; an older record of the same place is replaced."""
    others = [each for each in read_publications(storage, output_uri, run) if each.place != publication.place]
    _write(storage, output_uri, run, [*others, publication])


def forget_publication(storage: Storage, output_uri: str, run: str, place: tuple[str, str]) -> None:
    """Record that a run is no longer published in a place."""
    noted = read_publications(storage, output_uri, run)
    others = [each for each in noted if each.place != place]
    if others:
        _write(storage, output_uri, run, others)
    elif noted:
        storage.delete(_note_uri(output_uri, run))


def _write(storage: Storage, output_uri: str, run: str, publications: Sequence[Publication]) -> None:
    write_json(storage, _note_uri(output_uri, run), {"publications": [asdict(each) for each in publications]})


def _note_uri(output_uri: str, run: str) -> str:
    return join(run_folder(output_uri, run), NOTE)
