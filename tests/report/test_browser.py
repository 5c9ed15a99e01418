"""The report in a headless Chromium: widths, colours, keyboard, names, and that nothing on it runs or is fetched."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_pspo.report import write_report
from tests.support.chromium import BINARY, MISSING, Browser
from tests.support.report_runs import HOSTILE, example, write_run

pytestmark = pytest.mark.skipif(BINARY is None, reason=MISSING)

CONTRAST = """
(() => {
  const part = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : Math.pow((v + 0.055) / 1.055, 2.4);
  const light = (c) => 0.2126 * part(c[0]) + 0.7152 * part(c[1]) + 0.0722 * part(c[2]);
  const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const ratio = (a, b) => { const x = light(a) + 0.05, y = light(b) + 0.05; return Math.max(x, y) / Math.min(x, y); };
  const low = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !e.getClientRects().length || e.closest("math")) continue;
    const style = getComputedStyle(e);
    const ink = parse(e instanceof SVGElement ? style.fill : style.color);
    const r = ratio(ink, behind(e.closest("svg") ? e.closest("svg").parentElement : e));
    if (r < 4.5) low.push(`${e.tagName}.${e.className.baseVal ?? e.className} ${r.toFixed(2)}`);
  }
  for (const e of document.querySelectorAll(".chart path.line")) {
    const r = ratio(parse(getComputedStyle(e).stroke), behind(e.closest(".chart")));
    if (r < 3) low.push(`line ${e.getAttribute("class")} ${r.toFixed(2)}`);
  }
  return low;
})()
"""

STRUCTURE = """
(() => {
  const wrong = [];
  const all = (s) => [...document.querySelectorAll(s)];
  const words = (id) => id.split(" ").map((i) => document.getElementById(i)?.textContent || "").join("").trim();
  const label = (e) => e.getAttribute("aria-label") || words(e.getAttribute("aria-labelledby") || "");
  const name = (e) => label(e) || e.textContent.trim();
  let level = 0;
  for (const h of all("h1,h2,h3,h4,h5")) {
    const now = +h.tagName[1];
    if (now > level + 1) wrong.push(`${h.tagName} ${h.textContent} after level ${level}`);
    if (!h.textContent.trim()) wrong.push("an empty heading");
    level = now;
  }
  if (all("h1").length !== 1) wrong.push("h1");
  for (const mark of ["main", "nav", "header.top", "footer"]) if (all(mark).length !== 1) wrong.push(mark);
  const ids = all("[id]").map((e) => e.id);
  if (new Set(ids).size !== ids.length) wrong.push("an id twice");
  for (const e of all("[aria-labelledby], [aria-describedby]"))
    for (const id of (e.getAttribute("aria-labelledby") || e.getAttribute("aria-describedby")).split(" "))
      if (!document.getElementById(id)) wrong.push(`no ${id}`);
  for (const e of all("button, a")) if (!name(e)) wrong.push(e.outerHTML.slice(0, 80));
  for (const e of all("[role=img], [role=region], [role=group], nav, section"))
    if (!label(e)) wrong.push(e.outerHTML.slice(0, 80));
  for (const e of all("svg")) if (!e.matches("[aria-hidden=true], [role=img]")) wrong.push("an svg without a role");
  for (const e of all("svg[role=img]")) for (const part of ["title", "desc"])
    if (!e.querySelector(part)?.textContent) wrong.push(`an svg without ${part}`);
  for (const e of all("table")) {
    if (!e.querySelector("caption")?.textContent) wrong.push("a table without caption");
    if ([...e.querySelectorAll("th")].some((h) => !h.scope)) wrong.push("a heading without scope");
  }
  for (const e of all("nav a")) if (!document.querySelector(e.getAttribute("href"))) wrong.push(e.href);
  for (const e of all(".chart .tick")) {
    const box = e.getBoundingClientRect(), outer = e.closest("svg").getBoundingClientRect();
    const cut = box.left < outer.left - 0.5 || box.right > outer.right + 0.5;
    if (box.width && cut) wrong.push(`cut: ${e.textContent}`);
  }
  for (const e of all(".chart")) if (!e.querySelector("details table tbody tr")) wrong.push("a chart without data");
  for (const e of all("button, summary, nav a")) {
    const box = e.getBoundingClientRect();
    if (box.width && box.height < 23.5) wrong.push(`small: ${e.textContent} ${box.height}`);
  }
  for (const e of all(".scroll, .long")) {
    const scrolls = e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1;
    if (scrolls && e.tabIndex < 0) wrong.push(`not reached by keyboard: ${e.className}`);
  }
  if (document.documentElement.lang !== "en") wrong.push("lang");
  return wrong;
})()
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two arms, one of three seeds, with hostile completions and all panels."""
    root = tmp_path_factory.mktemp("runs")
    formula = r"so \(\frac{x^2}{\sqrt{2}}\) and $$\begin{pmatrix}1&2\\3&4\end{pmatrix}$$ \boxed{7}"
    runs = [write_run(root / f"pspo{seed}", seed, completions=[formula, *HOSTILE[:8]]) for seed in (1, 2, 3)]
    clip = {"model": {"surrogate": {"class_path": "Clip" + "x" * 90}}}
    runs.append(write_run(root / "clip", 1, 300, clip, 0.5, ["y" * 500, *HOSTILE[8:]]))
    lines = [{**example(n, text), "rollout": n, "reward": 1.0, "length_tokens": 3} for n, text in enumerate(HOSTILE)]
    (runs[0] / "completions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    names = ("overall_quality", "constraint_adherence", "logical_coherence", "mathematical_soundness", "clarity")
    judged: list[dict[str, Any]] = [{"id": str(n), "scores": dict.fromkeys(names, n)} for n in (2, 4, 5)]
    judged.append({"id": "x", "reason": HOSTILE[0]})
    (runs[0] / "judgements.jsonl").write_text("".join(json.dumps(line) + "\n" for line in judged))
    (runs[0] / "environment.json").write_text('{"python": "3.11", "versions": {"torch": "2"}}')
    return write_report(runs, root / "report.html")


@pytest.mark.parametrize("width", [375, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_is_quiet(browser: Browser, page: Path, width: int, scheme: str) -> None:
    browser.open(page, width, prefers_color_scheme=scheme)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.run("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    assert browser.run(CONTRAST) == []
    assert browser.run(STRUCTURE) == []
    assert browser.problems() == []
    assert browser.requests() == []
    dark = browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] < 60")
    assert dark == (scheme == "dark")


def test_hostile_completions_are_text(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    browser.run("document.querySelectorAll('*').forEach(e => e.dispatchEvent(new Event('mouseover', {bubbles: true})))")
    assert browser.run("typeof window.hit") == "undefined"
    assert browser.run("document.querySelectorAll('script, style, base, iframe, meta').length") == 8
    shown = browser.run("[...document.querySelectorAll('.completion')].map(e => e.textContent).join('\\n')")
    for text in (HOSTILE[0], HOSTILE[1], HOSTILE[3], HOSTILE[4], "{{constructor.constructor", "U+202E", "U+0000"):
        assert text in shown
    assert browser.run("document.querySelectorAll('#content').length") == 1
    inside = browser.run("[...new Set([...document.querySelectorAll('.completion *')].map(e => e.localName))].sort()")
    assert not {"a", "img", "script", "svg", "details"} & set(inside)
    assert {"math", "mfrac", "mtable", "msqrt"} <= set(inside)


def test_injected_markup_would_not_run_either(browser: Browser, page: Path, tmp_path: Path) -> None:
    """The second wall: even a page whose escaping had failed runs no script and asks for nothing."""
    broken = tmp_path / "broken.html"
    attack = (
        "<script>window.hit=1</script><img src=http://127.0.0.1:9/x onerror=window.hit=2><style>body{opacity:0}</style>"
    )
    text = page.read_text(encoding="utf-8")
    assert text.count('<main id="content" tabindex="-1">') == 1
    broken.write_text(text.replace('<main id="content" tabindex="-1">', f'<main id="content" tabindex="-1">{attack}'))
    browser.open(broken)
    assert browser.run("typeof window.hit") == "undefined"
    assert browser.run("getComputedStyle(document.body).opacity") == "1"
    assert len([line for line in browser.problems() if "Content Security Policy" in line]) >= 3


def focused(browser: Browser) -> dict[str, Any]:
    state: dict[str, Any] = browser.run(
        "(() => { const e = document.activeElement, s = getComputedStyle(e);"
        " return {tag: e.localName, kind: e.className, text: e.textContent.slice(0, 40),"
        " ring: s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0, top: e.getBoundingClientRect().top}; })()"
    )
    return state


def test_the_keyboard_reaches_everything(browser: Browser, page: Path) -> None:
    browser.open(page)
    seen = []
    for _ in range(18):
        browser.press("Tab")
        seen.append(focused(browser))
        assert seen[-1]["ring"], seen[-1]
    assert seen[0]["kind"] == "skip"
    assert seen[0]["top"] >= 0
    links = [item["text"] for item in seen if item["tag"] == "a"][1:]
    assert links[:3] == ["Overview", "Learning curves", "Trust region"]
    assert "Judge" in links
    assert [item["text"] for item in seen if item["tag"] == "button"] == ["pspo", "clip"]
    assert "plot" in [item["kind"] for item in seen]
    browser.open(page)
    browser.press("Tab")
    browser.press("Enter")
    assert browser.run("document.activeElement.id") == "content"


def test_toggles_and_values(browser: Browser, page: Path) -> None:
    browser.open(page)
    count = "[...document.querySelectorAll('.chart [data-arm=\"0\"]')].filter(e => e.getClientRects().length).length"
    assert browser.run(count) > 10
    browser.run("document.querySelector('.legend button').focus()")
    browser.press(" ")
    assert browser.run("document.querySelector('.legend button').getAttribute('aria-pressed')") == "false"
    assert browser.run(count) == 0
    browser.press(" ")
    assert browser.run(count) > 10

    browser.run("document.querySelector('.plot').focus()")
    for key in ("End", "ArrowLeft", "ArrowRight"):
        browser.press(key)
    tip = "document.querySelector('.plot .tip')"
    assert browser.run(f"{tip}.innerText").startswith("rollout 299.3")  # the middle of the last bucket
    assert browser.run(f"{tip}.getAttribute('role')") == "status"
    shown = float(browser.run(f"{tip}.querySelector('em').textContent"))
    table = browser.run("document.querySelector('.chart tbody tr:last-child').textContent")
    assert f"{shown:.3g}" in table  # the line's path and the table say the same
    browser.press("Escape")
    assert browser.run(f"{tip}.hidden") is True

    raw = "getComputedStyle(document.querySelector('.formula math')).display"
    assert browser.run(raw) != "none"
    browser.run("document.querySelector('button[data-toggle=raw]').click()")
    assert browser.run(raw) == "none"
    assert browser.problems() == []


def test_screen_readers_get_names(browser: Browser, page: Path) -> None:
    browser.open(page)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    roles: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            name = str(node.get("name", {}).get("value", ""))
            roles.setdefault(str(node.get("role", {}).get("value")), []).append(name)
    images = [name for role in ("image", "img", "graphics-document") for name in roles.get(role, [])]
    assert any("Reward" in name and "pspo" in name for name in images)
    assert {"main", "navigation", "contentinfo", "banner"} <= roles.keys()
    assert all(roles["button"])
    assert "Overview" in roles["region"]
    assert "math" in {role.lower() for role in roles} or "MathMLMath" in roles


def test_without_motion_and_on_paper(browser: Browser, page: Path) -> None:
    browser.open(page, prefers_reduced_motion="reduce")
    assert browser.run("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    browser.open(page, prefers_reduced_motion="no-preference")
    assert browser.run("getComputedStyle(document.documentElement).scrollBehavior") == "smooth"
    pdf = browser.call("Page.printToPDF")["data"]
    assert len(pdf) > 20_000
