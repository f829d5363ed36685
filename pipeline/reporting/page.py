"""The page: headings, styles for light and dark, and nothing that is fetched from anywhere."""

import time
from collections.abc import Sequence

from pipeline.reporting.html import Markup, escape, joined

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1b2430;--faint:#5a6675;--line:#d8dee6;--soft:#f3f5f8;--cell:#1d4ed8;
--over:#fff;--shade:#0004;--c0:#1d4ed8;--c1:#b91c1c;--c2:#15803d;--c3:#a16207;--c4:#7e22ce;--c5:#0e7490;--c6:#be185d;--c7:#475569}
@media (prefers-color-scheme:dark){:root{--paper:#12161c;--ink:#e6ebf1;--faint:#9aa7b6;--line:#313a46;--soft:#1b212a;
--cell:#60a5fa;--over:#0b1220;--shade:#fff4;--c0:#60a5fa;--c1:#f87171;--c2:#4ade80;--c3:#fbbf24;--c4:#c084fc;--c5:#22d3ee;--c6:#f472b6;
--c7:#94a3b8}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
main,header{max-width:72rem;margin:0 auto;padding:0 1.1rem}
header{padding-top:1.6rem}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .3rem}
h2{font-size:1.2rem;margin:2.6rem 0 .5rem;padding-top:.9rem;border-top:1px solid var(--line)}
p{max-width:48rem;margin:.5rem 0 .9rem}
.faint,figcaption,.missing,caption{color:var(--faint)}
nav ul{display:flex;flex-wrap:wrap;gap:.3rem 1rem;list-style:none;margin:1rem 0 0;padding:0}
a{color:var(--c0)}
a:focus-visible,.scroll:focus-visible,summary:focus-visible{outline:3px solid var(--c0);outline-offset:2px}
.missing{border-left:3px solid var(--line);padding-left:.8rem}
.scroll{overflow-x:auto;margin:.8rem 0;
background:linear-gradient(to right,var(--paper) 1rem,transparent) left/2rem 100% no-repeat local,
linear-gradient(to left,var(--paper) 1rem,transparent) right/2rem 100% no-repeat local,
linear-gradient(to right,var(--shade),transparent) left/.8rem 100% no-repeat scroll,
linear-gradient(to left,var(--shade),transparent) right/.8rem 100% no-repeat scroll}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding-bottom:.35rem}
caption span{display:inline-block;position:sticky;left:0;max-width:min(100%,calc(100vw - 2.3rem))}
th,td{padding:.3rem .75rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--line)}
th{font-weight:600}
thead th{background:var(--soft)}
th[scope=row],th.text,td.text,thead th:first-child{text-align:left}
details{margin:.4rem 0}
summary{cursor:pointer}
figure{margin:1.1rem 0}
figcaption{font-size:.88rem;max-width:46rem}
svg{max-width:100%;height:auto;display:block}
img{max-width:none;height:auto;display:block;border-radius:3px}
.scroll>img{max-width:max(100%,44rem)}
img.pixels{image-rendering:pixelated}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,27rem),1fr));gap:0 1.6rem}
svg .grid{stroke:var(--line)} svg .axis{stroke:var(--faint)} svg .ring{fill:none;stroke:var(--line)}
svg text{font-family:inherit} svg .tick,svg .label{fill:var(--faint);font-size:12px} svg .label{fill:var(--ink)}
svg .cell{fill:var(--cell)} svg .under{fill:var(--ink);font-size:12px} svg .over{fill:var(--over);font-size:12px}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1rem;list-style:none;margin:.1rem 0 .3rem;padding:0;font-size:.85rem}
.legend li{overflow-wrap:anywhere}
.swatch{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.4em}
.maps td,.maps th{border:0;padding:.2rem .35rem;text-align:left;vertical-align:middle}
.maps img{margin:0}
.note{font-size:.8rem;color:var(--faint)}
@media (min-width:64rem){td.text{white-space:normal}}
@media (max-width:40rem){th,td{padding:.25rem .5rem}
th[scope=row]{white-space:normal;min-width:7rem;overflow-wrap:anywhere}
.maps td,.maps th{padding:.1rem .15rem}.maps th[scope=row]{min-width:0;font-size:.75rem}.maps img{width:68px}}
footer{max-width:72rem;margin:3rem auto 2rem;padding:0 1.1rem;color:var(--faint);font-size:.85rem}
"""


def page(title: str, summary: str, sections: Sequence[tuple[str, str, Markup]], version: str) -> str:
    """The whole document; a section is its identifier, its name in the list at the top, and its content."""
    there = [(identifier, name, content) for identifier, name, content in sections if content.text]
    links = "".join(f'<li><a href="#{escape(identifier)}">{escape(name)}</a></li>' for identifier, name, _ in there)
    body = joined(*(content for _, _, content in there)).text
    made = time.strftime("%Y-%m-%d %H:%M")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{STYLE}</style></head><body>'
        f'<header><h1>{escape(title)}</h1><p class="faint">{escape(summary)}</p>'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header><main>{body}</main>'
        f"<footer>Made by sak-cli report {escape(version)} on {escape(made)}. The page needs no network.</footer>"
        "</body></html>\n"
    )
