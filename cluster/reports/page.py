"""One HTML file that holds all it shows: no script, no request, readable on a phone, in the reader's colours."""

import base64
import html
from collections.abc import Sequence

from cluster.reports.figures import Picture

# The policy lets a browser load nothing at all, so a mistake here can't tell anyone who reads the report.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --paper: #ffffff; --faint: #d9dde3; --soft: #5b6470; --mark: #eef3f8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --paper: #15181c; --faint: #3a4048; --soft: #9aa3ae; --mark: #1f262e }
}
body { margin: 0 auto; padding: 1rem; max-width: 62rem; font: 1rem/1.5 system-ui, sans-serif;
  color: var(--ink); background: var(--paper) }
h1 { font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
p { margin: .5rem 0 } .soft, figcaption { color: var(--soft); font-size: .875rem }
.lead { padding: .75rem 1rem; background: var(--mark); border-radius: .5rem }
.pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)) }
figure { margin: 0 } figure img { width: 100%; height: auto; display: block }
.scroll { overflow-x: auto } .scroll img { width: auto; max-width: none }
.wide { grid-column: 1 / -1; min-width: 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } tr { border-bottom: 1px solid var(--faint) }
th, td { padding: .3rem .75rem .3rem 0; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left } th { font-weight: 600; color: var(--soft) }
pre { overflow-x: auto; font-size: .8rem; padding: .75rem; background: var(--mark); border-radius: .5rem }
summary { cursor: pointer }
""".strip()


def page(title: str, sections: Sequence[str]) -> str:
    """The whole document."""
    body = "\n".join(sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{html.escape(title)}</title>
<style>
{STYLE}
</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{body}
</body>
</html>
"""


def section(title: str, *parts: str) -> str:
    return "\n".join(["<section>", f"<h2>{html.escape(title)}</h2>", *parts, "</section>"])


def paragraph(text: str, kind: str = "") -> str:
    """Plain text; `kind` is `lead` for the first sentence of the page and `soft` for remarks."""
    return f'<p class="{kind}">{html.escape(text)}</p>' if kind else f"<p>{html.escape(text)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column is text, the others are numbers; wide tables scroll within themselves."""
    top = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def pictures(shown: Sequence[Picture]) -> str:
    """Side by side where there is room."""
    return "\n".join(['<div class="pictures">', *(_figure(picture) for picture in shown), "</div>"])


def details(title: str, text: str) -> str:
    """Long text that is folded until it is asked for."""
    return f"<details><summary>{html.escape(title)}</summary><pre>{html.escape(text)}</pre></details>"


def _figure(picture: Picture) -> str:
    image = (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_data(picture.dark)}">'
        f'<img alt="{html.escape(picture.caption)}" src="{_data(picture.light)}"></picture>'
    )
    if picture.wide:
        image = f'<div class="scroll">{image}</div>'
    kind = ' class="wide"' if picture.wide else ""
    return f"<figure{kind}>{image}<figcaption>{html.escape(picture.caption)}</figcaption></figure>"


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
