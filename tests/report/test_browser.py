"""The page in a browser, as a reader has it: at desk and phone width, by mouse and by keyboard.

Needs the extra `browser` and a Chromium, of the system or of `playwright install chromium`.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install halfstep[browser]"
)

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WORDS = "Once upon a time <script>alert('sample')</script> there was one"
PAUSE_MS = 700
"""Between two steps of a sample that has few."""
WIDTHS = {"desk": 1280, "phone": 390}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    found = os.environ.get("HALFSTEP_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with sync_api.sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("no Chromium is found: install one, or name it in HALFSTEP_CHROMIUM")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(params=[(width, scheme) for width in WIDTHS for scheme in ("light", "dark")], ids=" ".join)
def page(request: pytest.FixtureRequest, chromium: Any, report: Path) -> Iterator[Any]:
    """The report, opened from its file; any message in the console, error or request fails the test."""
    width, scheme = request.param
    context = chromium.new_context(viewport={"width": WIDTHS[width], "height": 844}, color_scheme=scheme, offline=True)
    page = context.new_page()
    page.clock.install()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda made: None if made.url.startswith(("data:", "file:")) else problems.append(made.url))
    page.goto((report / "index.html").resolve().as_uri())
    yield page
    context.close()
    assert problems == []


def shown(page: Any, side: int = 0) -> str:
    """The text of a pane without what is still masked."""
    pieces = page.locator(".pane").nth(side).locator(".text span:not(.masked)").all_text_contents()
    return "".join(pieces)


def to_start(page: Any) -> None:
    """Nothing is unmasked yet."""
    page.locator(".panes").press("Home")


def test_nothing_is_wider_than_the_page_and_every_figure_is_drawn(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.locator("figure img").count() == 9
    for image in page.locator("figure img").all():
        assert image.evaluate("image => image.complete && image.naturalWidth > 300 && image.alt.length > 20")
    is_dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    inverts = page.locator("figure img").first.evaluate("image => getComputedStyle(image).filter.includes('invert')")
    assert inverts == is_dark


def test_the_first_screen_has_the_answer_and_its_figure(page: Any) -> None:
    height = page.viewport_size["height"]
    answer, figure = page.locator(".answer").bounding_box(), page.locator("figure img").first.bounding_box()
    assert answer["y"] + answer["height"] < height
    assert figure["y"] + figure["height"] < height
    assert "network evaluations" in page.locator(".answer").text_content()


def test_a_sample_unmasks_step_by_step(page: Any) -> None:
    # Of eight tokens two unmask in each of four steps.
    assert shown(page) == WORDS
    to_start(page)
    assert shown(page) == ""
    assert page.locator(".pane").first.locator(".masked").count() == 8
    page.get_by_label("next step").click()
    assert shown(page) == "Once upon"
    assert page.locator(".pane").first.locator(".new").count() == 2
    assert "1 of 4 steps: 2 new, 6 masked" in page.locator(".pane .count").first.text_content()
    assert page.get_by_role("status").text_content() == "Step 1 of 4."
    page.get_by_label("previous step").click()
    assert shown(page) == ""
    page.locator(".panes").press("End")
    assert shown(page) == WORDS
    assert page.get_by_label("next step").is_disabled()


def test_the_keyboard_does_all_that_the_mouse_does(page: Any) -> None:
    page.locator(".panes").focus()
    page.keyboard.press("Home")
    assert shown(page) == ""
    for text in ("Once upon", "Once upon a time"):
        page.keyboard.press("ArrowRight")
        assert shown(page) == text
    page.keyboard.press("ArrowLeft")
    assert shown(page) == "Once upon"
    page.keyboard.press("Home")
    page.keyboard.press("Space")
    page.clock.run_for(10_000)
    assert shown(page) == WORDS
    page.get_by_label("step", exact=True).focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator(".pane").first.locator(".masked").count() == 2


def test_playing_goes_through_every_step_and_pauses(page: Any) -> None:
    play, position = page.locator("#play-toggle"), page.locator("#play-position")
    play.click()
    assert "Pause" in play.text_content()
    assert position.input_value() == "0"
    page.clock.run_for(PAUSE_MS)
    assert position.input_value() == "1"
    play.click()
    assert "Play" in play.text_content()
    page.clock.run_for(10 * PAUSE_MS)
    assert position.input_value() == "1"
    play.click()
    page.clock.run_for(2 * PAUSE_MS)
    assert position.input_value() == "3"
    page.clock.run_for(PAUSE_MS)
    assert "Play" in play.text_content()
    assert page.get_by_role("status").text_content() == "Step 4 of 4."


def test_round_steps_and_prompt_are_chosen(page: Any) -> None:
    assert page.locator("#play-model-0 option").all_text_contents() == [
        "teacher",
        "round 1",
        "round 2",
        "autoregressive",
    ]
    assert page.locator("#play-setting-0 option").all_text_contents() == ["4 steps", "16 steps"]
    page.locator("#play-model-0").select_option(label="round 1")
    page.locator("#play-setting-0").select_option(label="16 steps")
    page.locator("#play-prompt").select_option(label="continue “Once upon”")
    assert page.locator(".pane h3").first.text_content() == "round 1"
    assert "16 of 16 steps" in page.locator(".pane .count").first.text_content()
    to_start(page)
    assert shown(page) == "Once upon"
    assert page.locator(".pane").first.locator(".given").count() == 2
    # The autoregressive model has its own number of steps, one token in each.
    page.locator("#play-model-1").select_option(label="autoregressive")
    to_start(page)
    page.get_by_label("next step").click()
    assert page.locator(".pane").nth(1).locator(".new").count() == 1
    assert "of 6 tokens" in page.locator(".pane .count").nth(1).text_content()


def test_one_model_is_shown_beside_itself_drawn_in_two_ways(page: Any) -> None:
    for side, steps in enumerate(("4", "16")):
        page.locator(f"#play-model-{side}").select_option(label="round 1")
        page.locator(f"#play-setting-{side}").select_option(label=f"{steps} steps")
    counts = page.locator(".pane .count").all_text_contents()
    assert [count.partition(":")[0] for count in counts] == ["4 of 4 steps", "16 of 16 steps"]


def test_hostile_text_runs_nothing(chromium: Any, hostile_report: Path, hostile: str) -> None:
    """In samples, parameters and names; played through, with every choice made once."""
    context = chromium.new_context(offline=True)
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    page.goto((hostile_report / "index.html").resolve().as_uri())
    for choice in ("#play-model-0", "#play-setting-0", "#play-prompt"):
        for index in range(page.locator(f"{choice} option").count()):
            page.locator(choice).select_option(index=index)
    assert hostile in shown(page)
    page.locator("#measured summary").click()
    assert "window.ran" in page.locator("pre").text_content()
    assert page.evaluate("window.ran") is None
    context.close()
    assert problems == []
