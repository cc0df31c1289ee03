"""The pages of the documentation and a report of `metamtl analyse run=`, in Chromium: `make browser`.

Every page is opened from its file, wide and as narrow as a phone, light and dark. It may request nothing
but files, write no error to the console, show every picture, fit the width, and have readable colors.
The screenshots are in `build/screenshots`. Not part of `make test`, because pip cannot install a browser;
needs `chromium` on the PATH.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "build" / "docs"
SCREENSHOTS = ROOT / "build" / "screenshots"
WIDTHS = {"wide": (1280, 900), "phone": (390, 844)}
FEW = ("validate.times=1", "validate.tasks=20", "select.tasks=20", "test.tasks=20")
TRAININGS = {
    "few_shot": ["steps=30", *FEW],
    "named_tasks": ["experiment=glyphs_multitask", "steps=5", "meta_batch=16", *FEW],
}
TO_LOOK_AT = (
    "index",
    "results",
    "tutorials/few_shot",
    "howto/aggregator",
    "reference/aggregators",
    "report",
)
PAGES = sorted(
    path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in (ROOT / "docs").rglob("*.md")
)

# The smallest contrast of visible text with the nearest background that is not transparent; WCAG 2 asks
# for 4.5 at level AA.
CONTRAST = """() => {
  const channel = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const background = node => {
    for (let at = node; at; at = at.parentElement) {
      const color = rgba(getComputedStyle(at).backgroundColor);
      if (color[3] > 250) return color;
    }
    return [255, 255, 255, 255];
  };
  let worst = {contrast: 21, text: ''};
  for (const node of document.querySelectorAll('p, li, td, th, a, h1, h2, h3, code, pre, pre span')) {
    const box = node.getBoundingClientRect();
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
    if (!own || !box.width) continue;
    if (!node.checkVisibility({visibilityProperty: true, opacityProperty: true})) continue;
    const color = rgba(getComputedStyle(node).color);
    if (color[3] < 250) continue;
    const [high, low] = [luminance(color), luminance(background(node))].sort((a, b) => b - a);
    const contrast = (high + 0.05) / (low + 0.05);
    const text = node.tagName + ': ' + node.textContent.slice(0, 60);
    if (contrast < worst.contrast) worst = {contrast, text};
  }
  return worst;
}"""
OVERFLOWING = """() => {
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= width) return [];
  return [...document.querySelectorAll('body *')]
    .filter(node => node.getBoundingClientRect().right > width + 1)
    .slice(0, 5).map(node => node.tagName + '.' + node.className + ': ' + node.textContent.slice(0, 60));
}"""
HIDDEN_PICTURES = """() => [...document.images]
  .filter(image => !(image.complete && image.naturalWidth > 0 && image.getBoundingClientRect().width > 100))
  .map(image => image.src.slice(0, 80))"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("google-chrome")
    assert path, "no `chromium` or `google-chrome` is on the PATH"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session", params=TRAININGS)
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a short training."""
    folder = tmp_path_factory.mktemp(request.param)
    train = ["experiments.train", *TRAININGS[request.param], f"hydra.run.dir={folder}"]
    analyse = ["experiments.analyse", f"run={folder}", f"hydra.run.dir={folder / 'analysis'}"]
    for arguments in (train, analyse):
        subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, check=True, capture_output=True)
    return folder / "analysis" / "report.html"


def check(browser: Browser, path: Path, name: str, size: str, scheme: Any) -> None:
    """Open a page and assert all that the module's docstring says."""
    width, height = WIDTHS[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    errors: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.append(f"failed: {request.url}"))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    load_pictures(page)
    if name in TO_LOOK_AT or name.startswith("report"):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        place = SCREENSHOTS / f"{name.replace('/', '_')}_{size}_{scheme}.png"
        page.screenshot(path=place, full_page=name.startswith("report"))
    assert errors == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert page.evaluate(HIDDEN_PICTURES) == []
    assert page.evaluate(OVERFLOWING) == []
    worst = page.evaluate(CONTRAST)
    assert worst["contrast"] >= 4.5, worst
    context.close()


def load_pictures(page: Page) -> None:
    """Those, too, that a browser would load when they come into view."""
    page.evaluate("document.querySelectorAll('img').forEach(image => { image.loading = 'eager'; })")
    page.wait_for_load_state("networkidle")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_of_the_documentation(browser: Browser, name: str, size: str, scheme: str) -> None:
    check(browser, SITE / f"{name}.html", name, size, scheme)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", WIDTHS)
def test_a_report(browser: Browser, report: Path, size: str, scheme: str) -> None:
    check(browser, report, f"report_of_{report.parents[1].name.rstrip('0123456789')}", size, scheme)
