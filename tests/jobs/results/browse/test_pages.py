"""What the pages and values hold."""

import html
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from htc_model.masks.rle import decode_rle
from jobs.results.browse.tables import MAX_CELL_CHARS, Tables
from jobs.results.browse.work import Job, TimeLimitError
from pipeline.storage.config import StorageSection
from pipeline.storage.storage import Storage
from tests.jobs.results.browse.conftest import OpenApp
from tests.support.builders.browsed_outputs import (
    IMAGE_NAME,
    PLAIN,
    SCRIPT_CATEGORY,
    Found,
    write_many,
    write_photos,
    write_run,
)
from tests.support.servers.s3_server import S3Server


def names_in(page: str) -> list[str]:
    """The file names of the cards of a gallery."""
    return [html.unescape(name) for name in re.findall(r'<span class="name" title="[^"]*">(.*?)</span>', page)]


def links_in(page: str, start: str) -> list[str]:
    return [html.unescape(link) for link in re.findall(r'(?:href|src)="([^"]*)"', page) if link.startswith(start)]


def problem_in(page: str) -> str:
    found = re.search(r'class="notice is-bad"[^>]*><p>(.*?)</p>', page, re.DOTALL)
    return html.unescape(found[1]) if found else ""


def pixels_of(payload: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(payload)).convert("RGB")).astype(int)


def tile_words(answer: Any) -> str:
    """The sentence on a grey tile; "" for a picture."""
    if answer.headers["content-type"] != "image/svg+xml":
        return ""
    root = ElementTree.fromstring(answer.content)
    return " ".join(each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}text"))


def test_the_gallery_shows_the_newest_run(open_app: OpenApp, two_runs: Path) -> None:
    page = open_app(two_runs).get("/").text
    assert len(names_in(page)) == 5
    assert ">tuesday</option>" in page
    assert "unreadable" in page
    assert "&lt;b&gt;empty&lt;/b&gt;" in page


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("category=cat", ["z last.png"]),
        ("category=cat&category=dog&run=monday", 4),
        ("min_score=0.89", 3),
        # 0.9 is a 32-bit number in the tables.
        ("min_score=0.9&max_score=0.9&run=monday", 4),
        ("max_score=0.15", 0),
        ("min_area=601", []),
        ("max_area=600&min_score=0.85&name=PLAIN", ["a plain one.png"]),
        ("status=unreadable", ["broken.png"]),
        ("status=failed", []),
        ("status=unreadable&category=dog", []),
        ("name=last", ["z last.png"]),
        ("name=%25", []),
        ("where=score+BETWEEN+0.87+AND+0.885", ["a plain one.png"]),
        ("where=mask_area(mask)+>+599+--+a+comment&category=cat", ["z last.png"]),
        ("order=least&run=monday&name=last", ["z last.png"]),
        ("order=instances&category=cat", ["z last.png"]),
        ("run=current&status=ok&name=z", ["z last.png"]),
    ],
)
def test_a_search_finds_the_images(open_app: OpenApp, two_runs: Path, query: str, names: list[str] | int) -> None:
    answer = open_app(two_runs).get(f"/?{query}")
    assert answer.status_code == 200, problem_in(answer.text)
    found = names_in(answer.text)
    assert (found if isinstance(names, list) else len(found)) == names


def test_each_condition_is_shown_and_can_be_left_out(open_app: OpenApp, two_runs: Path) -> None:
    client = open_app(two_runs)
    page = client.get("/?run=monday&category=dog&category=cat&min_score=0.1&name=z&where=area+>+1&order=score").text
    chips = re.search(r'<ul class="chips".*?</ul>', page, re.DOTALL)
    assert chips is not None
    words = [html.unescape(each) for each in re.findall(r"<span>(.*?)</span>", chips[0])]
    assert words == ["dog", "cat", "score from 0.1", "name contains z", "area > 1"]
    for number, link in enumerate(links_in(chips[0], "/?")):
        left = client.get(link)
        assert left.status_code == 200
        assert left.text.count("leave out</span>") == 4, number
        assert parse_qs(urlsplit(link).query)["order"] == ["score"]


@pytest.mark.parametrize("order", ["name", "instances", "score", "least"])
@pytest.mark.parametrize("query", ["", "category=frequent", "category=rare&max_score=0.9"])
def test_pages_follow_each_other_there_and_back(open_app: OpenApp, many: Path, order: str, query: str) -> None:
    client = open_app(many)
    address, there = f"/?{query}&order={order}", []
    while address and len(there) < 4:
        page = client.get(address).text
        there.append(names_in(page))
        address = next(iter(re.findall(r'rel="next" href="([^"]*)"', page)), None)
        address = html.unescape(address) if address else None
    flat = [name for names in there for name in names]
    assert len(flat) == len(set(flat)) > 48
    back = []
    while previous := re.findall(r'rel="prev" href="([^"]*)"', page):
        page = client.get(html.unescape(previous[0])).text
        back.append(names_in(page))
    assert back == there[-2::-1]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("many") / "out"
    write_many(output, 30_000)
    return output


def test_facets_count_under_the_other_conditions(open_app: OpenApp, many: Path) -> None:
    client = open_app(many)
    page = client.get("/facets?category=rare&min_score=0.5").text
    count = re.search(r'data-count="([^"]*)"', page)
    assert count is not None
    rare = sum(number % 100 == 50 and np.float32(number % 997 / 997) >= 0.5 for number in range(30_000))
    assert count[1] == f"{rare:,} images"
    values = dict(re.findall(r'value="(\w+)"[^>]*>.*?<span class="quiet">([\d,]+)</span>', page))
    assert values["rare"] == f"{rare:,}"
    assert int(values["frequent"].replace(",", "")) > 10_000
    assert (values["ok"], values["failed"]) == ("29,970", "30")
    bins = [int(count.replace(",", "")) for count in re.findall(r"to \d\.\d: ([\d,]+) instances?</span>", page)]
    assert sum(bins) == 300


@pytest.mark.slow
def test_a_million_rows(open_app: OpenApp, tmp_path: Path) -> None:
    write_many(tmp_path / "out", 1_000_000, parts=40)
    client = open_app(tmp_path / "out")
    page = client.get("/").text
    assert names_in(page)[0] == "000000000.jpg"
    last = client.get("/?after=s3://bucket/000999990.jpg").text
    assert names_in(last) == [f"{number:09d}.jpg" for number in range(999_991, 1_000_000)]
    middle = client.get("/?category=rare&after=s3://bucket/000500000.jpg").text
    assert names_in(middle)[:2] == ["000500050.jpg", "000500150.jpg"]
    assert "1,000,000 images" in client.get("/facets").text
    # Only the row groups of the page are read.
    files = sorted((tmp_path / "out" / "images").rglob("*.parquet"))
    for file in files[2:]:
        payload = bytearray(file.read_bytes())
        payload[4 : len(payload) // 2] = bytes(len(payload) // 2 - 4)
        file.write_bytes(bytes(payload))
    assert names_in(open_app(tmp_path / "out").get("/").text)[0] == "000000000.jpg"


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("run=mondy", 404, "did you mean monday?"),
        ("run=zzzzzz", 404, "the newest is tuesday"),
        ("min_score=2", 400, "from 0 to 1"),
        ("min_score=nan", 400, "from 0 to 1"),
        ("min_score=0.9&max_score=0.1", 400, "more than max_score"),
        ("min_area=-1", 400, "whole number"),
        ("status=okay", 400, "did you mean ok?"),
        ("order=size", 400, "order is one of"),
        ("where=scor+>+1", 400, "scor"),
        ("where=uri", 400, "no condition"),
        ("where=score>0.5)+OR+(1=1", 400, "syntax error"),
        ("where=true)+FROM+images;+DROP+VIEW+images;--", 400, "syntax error"),
        ("order=score&after=abc", 400, "another order"),
        (f"name={'x' * 20_000}", 400, "longer than"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_sentence(
    open_app: OpenApp, two_runs: Path, query: str, status: int, words: str
) -> None:
    client = open_app(two_runs)
    for path in ("/", "/facets"):
        answer = client.get(f"{path}?{query}")
        # Facets have no place.
        if "after=" in query and path == "/facets":
            continue
        assert answer.status_code == status
        assert words in problem_in(answer.text)
    assert client.get("/").status_code == 200


def test_sql_is_answered_with_pictures_of_the_images_that_it_names(open_app: OpenApp, two_runs: Path) -> None:
    client = open_app(two_runs)
    sql = "SELECT uri, run, instance, score, mask FROM instances WHERE category = 'cat'"
    part = client.get("/sql/answer", params={"sql": sql}).text
    assert "1 row" in part
    assert "z last.png" in part
    (picture,) = links_in(part, "/picture")
    (image,) = links_in(part, "/image")
    assert image.endswith("&instance=1")
    assert tile_words(client.get(picture)) == ""
    page = client.get("/sql", params={"sql": sql, "answer": "page"}).text
    assert "z last.png" in page
    assert "mask_polygons" in page
    assert "weights_sha256" in page


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELECT nope FROM images", 'Referenced column "nope" not found'),
        ("SELEC 1", "syntax error"),
        ("", "no statement"),
        ("SELECT 1; SELECT 2", "one statement"),
        ("DROP VIEW images", "Only statements that read"),
        ("CREATE TABLE x AS SELECT 1", "Only statements that read"),
        ("WITH x AS (INSERT INTO runs SELECT * FROM runs RETURNING run) SELECT * FROM x", "read-only"),
        ("SET memory_limit = '1GB'", "Only statements that read"),
        ("ATTACH '/tmp/x.db'", "Only statements that read"),
        ("COPY images TO '/tmp/x.csv'", "Only statements that read"),
        ("SELECT * FROM read_text('/etc/passwd')", "this output's tables only"),
        ("SELECT * FROM read_csv('/etc/passwd')", "this output's tables only"),
        ("SELECT * FROM glob('/*')", "this output's tables only"),
        ("SELECT * FROM read_parquet('s3://bucket/x.parquet')", "this output's tables only"),
        ("SELECT mask_area({'size': [1, 1], 'counts': '~~'}::STRUCT(size INTEGER[], counts VARCHAR))", "mask_area"),
        ("SELECT \ud800", "text"),
    ],
)
def test_wrong_sql_gets_duckdbs_words(open_app: OpenApp, two_runs: Path, sql: str, words: str) -> None:
    client = open_app(two_runs)
    answer = client.get("/sql/answer", params={"sql": sql} if sql.isprintable() else None)
    if not sql.isprintable():
        # An address cannot hold it: the bytes are replaced.
        answer = client.get("/sql/answer?sql=SELECT+%ED%A0%80")
        assert answer.status_code == 200
        return
    assert answer.status_code == 200
    assert words in problem_in(answer.text)
    assert "Traceback" not in answer.text
    assert client.get("/").status_code == 200


def test_the_place_of_an_error_is_shown(open_app: OpenApp, two_runs: Path) -> None:
    part = open_app(two_runs).get("/sql/answer", params={"sql": "SELECT 1,\n  nope FROM images"}).text
    assert re.search(r"<pre>LINE 2:   nope FROM images\n +\^", html.unescape(part))


def test_an_answer_has_a_limit_of_rows_and_of_text(open_app: OpenApp, two_runs: Path) -> None:
    client = open_app(two_runs)
    part = client.get("/sql/answer", params={"sql": "SELECT * FROM range(10000000)"}).text
    assert "1,000 rows; there are more" in part
    long = "SELECT repeat('x', 1000000) FROM range(100)"
    part = client.get("/sql/answer", params={"sql": long}).text
    assert len(part) < 1_000_000
    assert "100 rows" in part
    wide = f"SELECT {', '.join(['range'] * 1000)} FROM range(1000)"
    assert "200 rows; there are more" in client.get("/sql/answer", params={"sql": wide}).text


@pytest.mark.parametrize(
    ("sql", "begin"),
    [
        ("SELECT range(1000000) FROM range(20); -- of all; ü", "[0, 1, 2"),
        ("SELECT list(mask) || list(mask) FROM instances", "[{'size': ["),
        ("SELECT {'a': range(1000000), 'of \"b': [range(1000000)], 'c': NULL}", "{'a': [0, 1, 2"),
        ("SELECT map(range(100000), range(100000))", "{0=0, 1=1"),
        ("SELECT repeat('x', 1000000)::BLOB AS a, 'ü' AS a", "xxx"),
        ("SELECT [repeat('x', 1000000)]", "[xxx"),
        ("SELECT [[NULL::STRUCT(a INTEGER[])]]", "[[NULL]]"),
        ("SELECT array_value(1, 2)", "[1, 2]"),
        ("SELECT INTERVAL 10000000 YEARS", "10000000 years"),
        ("EXPLAIN SELECT 1", "physical_plan"),
        ("SUMMARIZE images", "image_id"),
        ("SELECT * FROM runs ORDER BY run", "monday"),
    ],
)
def test_values_of_any_size_are_cut_by_duckdb(two_runs: Path, sql: str, begin: str) -> None:
    answer = Tables(str(two_runs), Storage()).ask_freely(sql, job=Job(), rows=1000)
    assert str(answer.rows[0][0]).startswith(begin)
    assert not [cell for row in answer.rows for cell in row if isinstance(cell, list | dict | bytes)]
    assert max(len(str(cell)) for row in answer.rows for cell in row) <= MAX_CELL_CHARS


def test_a_stopped_question_gives_no_answer(two_runs: Path) -> None:
    job = Job()
    job.cancel()
    with pytest.raises(TimeLimitError):
        Tables(str(two_runs), Storage()).ask_freely("SELECT * FROM range(100000)", job=job, rows=1000)


def test_a_question_has_a_limit_of_time(open_app: OpenApp, two_runs: Path) -> None:
    client = open_app(two_runs, tables_s=0.6)
    endless = "SELECT count(*) FROM range(10000000000) AS a, range(10000000000) AS b"
    assert "longer than 0.6 s" in problem_in(client.get("/sql/answer", params={"sql": endless}).text)
    answer = client.get("/", params={"where": "(SELECT count(*) FROM range(10000000000), range(10000000000)) > 1"})
    assert answer.status_code == 504
    assert "was stopped" in problem_in(answer.text)


def image_address(client: Any, name: str, query: str = "") -> str:
    page = client.get(f"/?{query}").text
    uris = {link: parse_qs(urlsplit(link).query)["uri"][0] for link in links_in(page, "/image?")}
    return next(link for link, uri in uris.items() if uri.endswith(f"/{name}"))


def test_an_image_has_its_instances_with_masks_as_they_are(open_app: OpenApp, two_runs: Path) -> None:
    client = open_app(two_runs)
    address = image_address(client, "z last.png")
    assert client.get(address).status_code == 200
    item = client.get(address.replace("/image?", "/api/image?")).json()
    assert (item["name"], item["width"], item["height"], item["note"]) == ("z last.png", 80, 60, "")
    assert [each["category"] for each in item["instances"]] == ["person", "cat"]
    assert decode_rle(item["instances"][0]["mask"]).sum() == 600
    colours = [each[name] for each in item["instances"] for name in ("colour", "ownColour")]
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours)
    assert len(set(colours)) > 2
    picture = client.get(item["image"])
    assert picture.headers["content-type"] == "image/png"
    assert pixels_of(picture.content).shape == (60, 80, 3)


def test_an_address_of_an_image_works_with_its_name_alone(open_app: OpenApp, two_runs: Path) -> None:
    client = open_app(two_runs)
    uri = str(two_runs.parent / "photos" / "z last.png")
    for more in ({}, {"run": "monday"}, {"run": "current"}, {"shard": "1"}, {"shard": "7"}):
        item = client.get("/api/image", params={"uri": uri, **more}).json()
        assert item["name"] == "z last.png"
    assert client.get("/api/image", params={"uri": "nothing"}).status_code == 404
    assert "no image nothing" in client.get("/api/image", params={"uri": "nothing"}).json()["problem"]
    assert client.get("/image").status_code == 400


def test_steps_lead_to_the_neighbours_in_the_view(open_app: OpenApp, two_runs: Path) -> None:
    client = open_app(two_runs)
    names = names_in(client.get("/?status=ok").text)
    address = image_address(client, names[1], "status=ok")
    page = client.get(address).text
    place = html.unescape(re.findall(r'data-place="([^"]*)"', page)[0])
    step = html.unescape(re.findall(r'data-step="([^"]*)"', page)[0])
    for side, name in (("before", names[0]), ("after", names[2])):
        address = client.get(f"{step}&{urlencode({side: place})}").json()["address"]
        assert parse_qs(urlsplit(address).query)["uri"][0].endswith(f"/{name}")
    last = client.get(image_address(client, names[-1], "status=ok")).text
    place = html.unescape(re.findall(r'data-place="([^"]*)"', last)[0])
    assert client.get("/api/step", params={"status": "ok", "after": place}).json() == {"address": None}


def test_thumbnails_show_the_masks_of_the_view(open_app: OpenApp, two_runs: Path) -> None:
    client = open_app(two_runs)
    (drawn,) = links_in(client.get("/?name=z+last").text, "/picture")
    (plain,) = links_in(client.get("/?name=z+last&masks=0").text, "/picture")
    (cats,) = links_in(client.get("/?name=z+last&category=cat").text, "/picture")
    pictures = [pixels_of(client.get(address).content) for address in (drawn, plain, cats)]
    assert [picture.shape for picture in pictures] == [(240, 320, 3)] * 3
    changed = [(np.abs(pictures[0] - other).max(axis=2) > 15).mean() for other in pictures[1:]]
    assert all(share > 0.05 for share in changed)


def test_names_and_categories_are_text(open_app: OpenApp, two_runs: Path) -> None:
    client = open_app(two_runs)
    sql = f"SELECT '{SCRIPT_CATEGORY}' AS \"<b>x</b>\", uri, run FROM images"
    pages = [
        *("/", "/facets", "/failures", "/compare?all=1", "/runs", "/run"),
        *(f"/?name={SCRIPT_CATEGORY}", f"/?run={SCRIPT_CATEGORY}", f"/?category={SCRIPT_CATEGORY}&run=monday"),
        *(f"/sql/answer?sql={sql}", f"/sql?sql={SCRIPT_CATEGORY}", f"/{SCRIPT_CATEGORY}"),
        *("/compare/whole?a=monday&b=tuesday", f"/compare/image?a=monday&b=tuesday&uri={SCRIPT_CATEGORY}"),
        image_address(client, IMAGE_NAME),
    ]
    for page in pages:
        text = client.get(page).text
        for code in ("<script>alert", "<img src=x", "<b>x</b>", "<b>empty"):
            assert code not in text, page


def test_the_value_of_an_image_ends_no_script(open_app: OpenApp, two_runs: Path) -> None:
    client = open_app(two_runs)
    answer = client.get(image_address(client, "a plain one.png", "run=monday").replace("/image?", "/api/image?"))
    assert answer.headers["content-type"] == "application/json"
    assert SCRIPT_CATEGORY in {each["category"] for each in json.loads(answer.text)["instances"]}


def test_failed_images_are_listed_by_reason(open_app: OpenApp, two_runs: Path, many: Path) -> None:
    page = open_app(two_runs).get("/failures").text
    assert "broken.png" in page
    assert "the file is &lt;b&gt;empty&lt;/b&gt;" in page
    client = open_app(many)
    page = client.get("/failures?reason=it+took+too+long").text
    assert page.count(">s3://bucket/000000999.jpg<") == 1
    assert ">30<" in page
    assert "000000999.jpg" not in client.get("/failures?reason=another").text
    assert client.get("/failures?after=s3://bucket/000028999.jpg").text.count("/image?") == 1


def test_two_runs_are_compared(open_app: OpenApp, two_runs: Path) -> None:
    client = open_app(two_runs)
    page = client.get("/compare").text
    assert ">monday</option>" in page
    assert "1 moved" in page
    assert "class changed" in page
    assert "vanished" in page
    assert len(links_in(page, "/compare/image")) == 2
    uri = str(two_runs.parent / "photos" / "a plain one.png")
    changes = client.get("/api/changes", params={"a": "monday", "b": "tuesday", "uri": uri}).json()["changes"]
    assert {change["kind"] for change in changes} == {"moved", "vanished"}
    whole = client.get("/compare/whole?a=monday&b=tuesday").text
    assert "confident instances" in whole
    assert "does not differ from itself" in client.get("/compare?a=monday&b=monday").text
    assert client.get("/compare/image?a=monday&b=monday&uri=x").status_code == 400
    assert client.get("/compare?a=mondy").status_code == 404
    assert client.get("/compare/image?a=monday&b=tuesday&uri=x").status_code == 404


def test_one_run_has_nothing_to_compare_with(open_app: OpenApp, many: Path) -> None:
    assert "one run, many" in open_app(many).get("/compare").text


def test_runs_say_what_ran(open_app: OpenApp, two_runs: Path) -> None:
    client = open_app(two_runs)
    page = client.get("/runs").text
    assert page.index("tuesday") < page.index("monday")
    assert "complete" in page
    facts = client.get("/run?run=monday").text
    assert "5 of 5 have their row" in facts
    assert "SHA-256 aaaaaaaaaaaaaaaa" in facts
    assert client.get("/run?run=current").headers["location"] == "/runs"


def test_images_that_are_gone_or_changed_are_grey_and_have_no_masks(open_app: OpenApp, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    write_run(photos, tmp_path / "out", "night")
    Image.new("RGB", (80, 60), (255, 0, 0)).save(photos / "a plain one.png")
    (photos / "z last.png").unlink()
    client = open_app(tmp_path / "out")
    for name, words in (("a plain one.png", "changed since the run"), ("z last.png", "does not exist")):
        (thumbnail,) = links_in(client.get(f"/?name={name}").text, "/picture")
        assert words in tile_words(client.get(thumbnail))
        item = client.get(image_address(client, name).replace("/image?", "/api/image?")).json()
        assert item["image"] is None
        assert words in item["note"]
        assert len(item["instances"]) == len(PLAIN)


def test_a_picture_never_fails(open_app: OpenApp, two_runs: Path) -> None:
    client = open_app(two_runs)
    for query in ("", "?uri=nothing", "?uri=x&run=nothing", "?uri=x&min_score=7", "?uri=x&shard=99999999999"):
        answer = client.get(f"/picture{query}")
        assert answer.status_code == 200
        assert tile_words(answer)
    answer = client.get("/picture", params={"uri": f"{SCRIPT_CATEGORY}]]>&amp;" + "x" * 500})
    assert "<script>" not in answer.text
    assert SCRIPT_CATEGORY in tile_words(answer)


def test_a_damaged_mask_is_named_and_the_others_are_drawn(open_app: OpenApp, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", ["one.png"])
    found = (Found("person", 0.9), Found("dog", 0.8, (5, 5, 10, 10), is_damaged=True))
    write_run(photos, tmp_path / "out", "night", {"one.png": found})
    client = open_app(tmp_path / "out")
    item = client.get(image_address(client, "one.png").replace("/image?", "/api/image?")).json()
    assert [bool(each["mask"]) for each in item["instances"]] == [True, False]
    assert "cannot be read" in item["instances"][1]["problem"]
    assert client.get(links_in(client.get("/").text, "/picture")[0]).headers["content-type"] == "image/jpeg"
    part = client.get("/sql/answer", params={"sql": "SELECT mask_area(mask) FROM instances"}).text
    assert "mask_area" in problem_in(part)


def test_a_run_in_progress_grows(open_app: OpenApp, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    write_run(photos, tmp_path / "out", "night", only_shards=1)
    client = open_app(tmp_path / "out")
    assert len(names_in(client.get("/").text)) == 2
    assert "2 of 5 have their row" in client.get("/run").text
    assert "complete" not in client.get("/runs").text.replace("incomplete", "")
    write_run(photos, tmp_path / "other", "night")
    for table in ("instances", "images"):
        shutil.copytree(tmp_path / "other" / table, tmp_path / "out" / table, dirs_exist_ok=True)
    assert len(names_in(client.get("/").text)) == 2
    assert client.post("/refresh", headers={"Origin": "http://127.0.0.1:8484"}).status_code == 303
    assert len(names_in(client.get("/").text)) == 5


def test_a_run_without_rows_is_shown_as_such(open_app: OpenApp, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    write_run(photos, tmp_path / "out", "night", only_shards=0)
    client = open_app(tmp_path / "out")
    assert "no committed images yet" in client.get("/").text
    assert "0 images" in client.get("/facets").text
    for page in ("/failures", "/compare", "/runs", "/run", "/?category=a", "/?order=least", "/?where=true"):
        assert client.get(page).status_code == 200, page
    part = client.get("/sql/answer", params={"sql": "SELECT count(*) FROM current_instances"}).text
    assert ">0<" in part


def test_a_compaction_meanwhile_is_no_error(open_app: OpenApp, tmp_path: Path) -> None:
    from pipeline.maintenance.compaction import compact_run

    photos = write_photos(tmp_path / "photos")
    write_run(photos, tmp_path / "out", "night")
    client = open_app(tmp_path / "out")
    address = image_address(client, "z last.png")
    compact_run(Storage(), str(tmp_path / "out"), "night", target_bytes=1 << 20, check=lambda: None)
    assert len(names_in(client.get("/").text)) == 5
    assert client.get(address.replace("/image?", "/api/image?")).json()["name"] == "z last.png"
    assert "5 rows" in client.get("/sql/answer", params={"sql": "SELECT * FROM images"}).text


def test_a_damaged_part_is_named(open_app: OpenApp, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    write_run(photos, tmp_path / "out", "night")
    client = open_app(tmp_path / "out")
    part = sorted((tmp_path / "out" / "images").rglob("*.parquet"))[0]
    part.write_bytes(part.read_bytes()[:-20])
    answer = client.get("/")
    assert answer.status_code >= 400
    assert part.name in answer.text
    assert "Traceback" not in answer.text


@pytest.mark.slow
@pytest.mark.xdist_group("s3")
def test_an_output_and_its_images_in_a_bucket(
    open_app: OpenApp, s3_bucket: str, s3_server: S3Server, tmp_path: Path
) -> None:
    storage = Storage(StorageSection(endpoint_url=s3_server.endpoint_url))
    for photo in write_photos(tmp_path / "photos", ["one.png", "two.png", "three.png"]).iterdir():
        storage.write(f"{s3_bucket}/photos/{photo.name}", photo.read_bytes())
    write_run(f"{s3_bucket}/photos/", f"{s3_bucket}/out", "night", storage=storage)
    client = open_app(f"{s3_bucket}/out", storage=storage)
    page = client.get("/?category=person").text
    assert names_in(page) == ["one.png", "three.png", "two.png"]
    assert "3 images" in client.get("/facets").text
    for address in links_in(page, "/picture"):
        assert tile_words(client.get(address)) == ""
    storage.delete(f"{s3_bucket}/photos/two.png")
    item = client.get(image_address(client, "two.png").replace("/image?", "/api/image?")).json()
    assert item["image"] is None
    assert "does not exist" in item["note"]


def test_a_slow_store_holds_up_pictures_only(
    open_app: OpenApp, two_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    from jobs.results.drawing import ImageReader

    is_over = threading.Event()

    def read(self: ImageReader, image: object) -> object:
        is_over.wait(20)
        raise AssertionError(image)

    monkeypatch.setattr(ImageReader, "read", read)
    client = open_app(two_runs, picture_s=0.3)
    page = client.get("/").text
    for address in links_in(page, "/picture"):
        assert "slow" in tile_words(client.get(address))
    assert client.get("/failures").status_code == 200
    item = client.get(image_address(client, "z last.png").replace("/image?", "/api/image?")).json()
    assert item["image"] is None
    assert "did not answer" in item["note"]
    is_over.set()
