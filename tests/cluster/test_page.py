"""The page stands alone: nothing in it makes a browser ask anybody for anything."""

import base64
import html.parser
import re
from pathlib import Path

import pytest
from handmade import empty_run, whole_run

from cluster.reports.figures import Picture
from cluster.reports.page import details, page, paragraph, pictures, section, table
from cluster.reports.report import write_report

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
LOADING = ("src", "srcset", "href", "action", "data", "poster", "background", "formaction", "ping", "xlink:href")


class Reader(html.parser.HTMLParser):
    """Collects what a browser would load, and checks that elements are closed in order."""

    VOID = ("meta", "link", "img", "source", "br", "hr")

    def __init__(self, text: str):
        super().__init__()
        self.loaded: list[str] = []
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loaded += [value for name, value in attrs if name in LOADING]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def requests(text: str) -> list[str]:
    """Everything in a page that would be asked for from elsewhere."""
    reader = Reader(text)
    found = [address for address in reader.loaded if not address.startswith("data:")]
    found += re.findall(r"url\(|@import|https?:|//[a-z]", re.sub(r"data:[^\"]*", "", text))
    return found + [tag for tag in ("script", "iframe", "object", "embed", "form", "base") if tag in reader.tags]


@pytest.mark.parametrize("make", [empty_run, whole_run])
def test_report_makes_no_request(tmp_path: Path, make):
    assert requests(write_report(make(tmp_path / "run")).read_text()) == []


@pytest.mark.parametrize(
    "planted",
    [
        '<img src="https://example.org/a.png">',
        '<img src="picture.png">',
        '<link rel="stylesheet" href="//example.org/a.css">',
        "<style>body { background: url(a.png) }</style>",
        "<style>@import 'a.css'</style>",
        "<script>1</script>",
    ],
)
def test_planted_request_is_found(planted):
    """Negative control of the checker."""
    assert requests(page("title", [planted])) != []


def test_browser_is_forbidden_to_load_anything():
    text = page("title", [])
    assert "default-src 'none'" in text and text.index("Content-Security-Policy") < text.index("<style>")


def test_page_fits_a_phone_and_follows_the_readers_colours():
    text = page("title", [])
    assert 'name="viewport" content="width=device-width' in text
    assert "prefers-color-scheme: dark" in text


def test_pictures_are_in_the_page_for_both_colours():
    text = page("title", [pictures([Picture("name", "a caption", PNG, PNG[::-1])])])
    light, dark = (f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in (PNG, PNG[::-1]))
    assert f'<img alt="a caption" src="{light}">' in text
    assert f'media="(prefers-color-scheme: dark)" srcset="{dark}"' in text
    assert "<figcaption>a caption</figcaption>" in text


def test_wide_picture_scrolls_by_itself():
    wide = pictures([Picture("name", "caption", PNG, PNG, wide=True)])
    assert '<div class="scroll"><picture>' in wide
    assert "scroll" not in pictures([Picture("name", "caption", PNG, PNG)])


def test_text_of_others_is_not_markup():
    """A run may be called anything."""
    bad = '<script>alert("1")</script>&'
    text = page(bad, [section(bad, paragraph(bad, "soft"), table([bad], [[bad]]), details(bad, bad))])
    text += pictures([Picture("name", bad, PNG, PNG)])
    assert "script" not in Reader(text).tags
    assert text.count("&lt;script&gt;") == 10


def test_tables_have_a_head_and_all_rows():
    text = table(["policy", "return"], [["a", "1"], ["b", "2"]])
    assert text.count("<th ") == 2 and text.count("<tr>") == 3
    assert "<tr><td>b</td><td>2</td></tr>" in text
