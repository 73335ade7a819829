"""The page in a real browser."""

import shutil
from itertools import pairwise

import pytest

from amends.report.unlearning import render_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
FOCUSABLE = "a[href], summary, [tabindex='0'], button, input"


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'amends[dev]'")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(run, beside, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render_report(run, beside), encoding="utf-8")
    return file


@pytest.fixture
def show(browser, file):
    opened = []

    def show(width=1280, **settings):
        page = browser.new_page(viewport={"width": width, "height": 800}, **settings)
        opened.append(page)
        page.told, page.asked = [], []
        page.on("console", lambda message: page.told.append(message.text))
        page.on("pageerror", lambda error: page.told.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(file.as_uri())
        return page

    yield show
    for page in opened:
        page.close()


def test_the_page_is_quiet_and_asks_for_nothing_else(show, file):
    page = show()
    page.wait_for_timeout(200)
    assert page.told == []
    assert [url for url in page.asked if not url.startswith("data:")] == [file.as_uri()]


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_the_page_never_scrolls_sideways(width, show):
    page = show(width)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    out = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll table, svg, .sr, .skip')
        && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(out) == []


def test_a_wide_table_scrolls_by_keyboard(show):
    page = show(320)
    region = page.locator(".scroll")
    assert region.get_attribute("role") == "region" and region.get_attribute("aria-labelledby")
    region.focus()
    for _ in range(50):  # scrolling is smooth; wait_for_function would need eval, which the page's policy forbids
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(100)
        if region.evaluate("e => e.scrollLeft"):
            break
    assert region.evaluate("e => e.scrollLeft") > 0


def test_on_a_wide_screen_the_names_of_the_models_stay_in_view(show):
    page = show(1280)
    page.evaluate("scrollTo(0, document.querySelector('tbody:last-of-type').getBoundingClientRect().top)")
    assert page.evaluate("document.querySelector('thead th').getBoundingClientRect().top") == 0


def test_on_a_phone_before_and_after_are_seen_together_and_the_meanings_are_below(show):
    page = show(390)
    right = page.evaluate("document.querySelector('td.after').getBoundingClientRect().right")
    assert right <= 390
    assert not page.locator(".meaning").first.is_visible()
    page.locator("summary", has_text="What the metrics mean").click()
    assert page.locator("details.narrow dd").first.is_visible()


def test_tab_reaches_everything_in_order_and_focus_can_be_seen(show):
    page = show()
    number = page.evaluate(
        """selector => { const all = [...document.querySelectorAll(selector)].filter(e => e.checkVisibility());
        all.forEach((e, k) => e.dataset.k = k); return all.length }""",
        FOCUSABLE,
    )
    reached = []
    for _ in range(number):
        page.keyboard.press("Tab")
        k, outline = page.evaluate(
            "[document.activeElement.dataset.k, getComputedStyle(document.activeElement).outlineStyle]"
        )
        reached.append(int(k))
        assert outline == "solid"
    assert reached == list(range(number)) and number > 10


def test_the_skip_link_shows_on_focus_and_leads_to_the_report(show):
    page = show()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("Enter")
    page.wait_for_url("**#main")  # the click of the key goes through the browser's own queue


def test_headings_go_down_one_level_at_a_time_and_landmarks_are_there(show):
    page = show()
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(h => +h.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in pairwise(levels))
    for landmark in ("header", "nav", "main", "footer"):
        assert page.locator(f"body > {landmark}, body > header > {landmark}").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast(scheme, show):
    page = show(color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    low = page.evaluate(
        """() => {
        const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
        const over = (colour, under) => { canvas.fillStyle = `rgb(${under})`; canvas.fillRect(0, 0, 1, 1);
            canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3) };
        const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
        const lum = c => { const [r, g, b] = c.map(v => linear(v / 255));
            return .2126 * r + .7152 * g + .0722 * b };
        const back = e => over(getComputedStyle(e).backgroundColor,
            e.parentElement ? back(e.parentElement) : [255, 255, 255]);
        const found = new Set();
        for (const e of document.querySelectorAll('body *:not(svg *)')) {
            if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
            const under = back(e);
            const pair = [lum(over(getComputedStyle(e).color, under)), lum(under)].sort((a, b) => b - a);
            const ratio = (pair[0] + .05) / (pair[1] + .05);
            if (ratio < 4.5) found.add(`${e.tagName}.${e.className} ${ratio.toFixed(2)}`);
        }
        return [...found] }"""
    )
    assert low == []


def test_on_paper_all_answers_are_there_and_nothing_is_dark(show):
    page = show(color_scheme="dark")
    hidden = page.locator("details:not([open]) .answers li").first
    assert not hidden.is_visible()
    page.emulate_media(media="print")
    assert hidden.is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()


def test_the_page_prints(show):
    pdf = show().pdf(format="A4")
    assert pdf.startswith(b"%PDF-") and len(pdf) > 20_000
