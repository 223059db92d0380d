"""Google Cloud Storage and Azure on their emulators: pages, inputs and large objects."""

from collections.abc import Iterator

import pytest

from pipeline.inputs.listing import list_images
from pipeline.inputs.read import read_image
from pipeline.job_spec.job import InputSection
from pipeline.storage import listing_gcs_azure as other_listing
from pipeline.storage.uris import join
from tests.support.servers.object_servers import Place, make_bucket

pytestmark = pytest.mark.xdist_group("other-stores")


@pytest.fixture(params=["gs", "az"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    open_storage = request.getfixturevalue({"gs": "open_gcs", "az": "open_azure"}[request.param])
    with make_bucket(request.param, open_storage, request.node.nodeid) as found:
        yield found


def test_a_listing_of_many_pages_is_complete_and_in_order(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(other_listing, "PAGE_KEYS", 4)
    # fake-gcs-server repeats all folders of a level on every page, which Google's does not: there, only files.
    folders = ("a/", "a-", "b/c/", "b/d/") if place.root.startswith("az:") else ("b/d/",)
    names = [f"{folder}{number:02d}.jpg" for folder in folders for number in range(11)]
    for name in names:
        place.storage.write(join(place.root, "in", name), b"x")
    listed = [each.uri.removeprefix(join(place.root, "in", "")) for each in place.storage.list(join(place.root, "in"))]
    assert listed == sorted(names)
    (found,) = [
        each.uri for each in place.storage.list(join(place.root, "in"), "b/**/10.jpg", after=f"{place.root}/in/b/d")
    ]
    assert found == join(place.root, "in/b/d/10.jpg")


def test_inputs_are_listed_and_read(place: Place) -> None:
    for name in ("1.jpg", "d/2.png"):
        place.storage.write(join(place.root, "in", name), name.encode())
    place.storage.write(join(place.root, "in/some.txt"), f"d/2.png\n{place.root}/in/1.jpg\n".encode())

    def payloads(uri: str) -> list[bytes]:
        return [
            read_image(ref, place.storage)
            for ref in list_images(InputSection(uri=join(place.root, uri)), place.storage)
        ]

    assert payloads("in") == payloads("in/**/*.*g") == [b"1.jpg", b"d/2.png"]
    assert payloads("in/some.txt") == [b"d/2.png", b"1.jpg"]


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_what_is_written_in_pieces_reads_back(place: Place) -> None:
    # From 50 MiB gcsfs uploads in pieces.
    large = bytes(range(256)) * 4096 * 52
    place.storage.write(join(place.root, "large"), large)
    assert place.storage.read(join(place.root, "large")) == large
