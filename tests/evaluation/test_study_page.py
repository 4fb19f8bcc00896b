"""The reader study in headless Chromium, from the first question to the score."""

import contextlib
import json
import re
import shutil
import socket
import threading

import numpy as np
import pytest
from PIL import Image

from medgen.evaluation.study.design import DESIGNS
from medgen.evaluation.study.scoring import score_study
from medgen.evaluation.study.server import make_server
from tests.evaluation.test_study import key_of, serve, study  # noqa: F401 - fixtures

selenium = pytest.importorskip("selenium", reason="the page of the reader study is tested with selenium")

from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.actions.mouse_button import MouseButton  # noqa: E402
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
]  # fmt: skip
DESKTOP = {"width": 1200, "height": 900, "deviceScaleFactor": 1, "mobile": False}
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}

# Notes in which frames a stored image is in sight. The page keeps its pixels in `panels` until it covers them.
WATCH = """(() => {
  const originals = {};
  window.sightings = {};
  requestAnimationFrame(function look(now) {
    for (const { canvas, context, name, pixels } of panels) {
      originals[name] ??= pixels.data.join();
      const drawn = context.getImageData(0, 0, canvas.width, canvas.height).data.join();
      if (canvas.checkVisibility() && drawn === originals[name]) (window.sightings[name] ??= []).push(now);
    }
    requestAnimationFrame(look);
  });
})()"""


class Page:
    """What a reader does and sees."""

    def __init__(self, browser):
        self.browser = browser

    def js(self, script, *arguments):
        return self.browser.execute_script(f"return {script}", *arguments)

    def cdp(self, command, **arguments):
        return self.browser.execute_cdp_cmd(command, arguments)

    def wait(self, condition):
        return WebDriverWait(self.browser, 30, poll_frequency=0.02).until(
            lambda _: self.js(condition), f"never came true: {condition}"
        )

    def find(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def button(self, text):
        return self.browser.find_element(By.XPATH, f"//button[contains(., '{text}')]")

    def figures(self):
        return self.browser.find_elements(By.CSS_SELECTOR, "figure")

    def open(self, url):
        self.browser.get(url)
        self.wait("['start', 'trial', 'end'].some((id) => $(id).checkVisibility())")

    def begin(self, reader):
        self.find("#reader").send_keys(reader, Keys.ENTER)
        self.ready()

    def ready(self):
        """Wait until a question can be answered or the study is over."""
        self.wait("!busy && ['trial', 'end'].some((id) => $(id).checkVisibility())")

    def press(self, *keys):
        ActionChains(self.browser, duration=0).send_keys(*keys).perform()

    def answer(self, act, *arguments):
        """Do what answers the question, and wait for the next one."""
        before = self.js("trial.trial")
        act(*arguments)
        self.wait(f"!busy && (trial.trial !== {before!r} || $('end').checkVisibility())")

    def images(self):
        return self.js("trial.images")

    def pixels(self, number=0):
        return np.array(
            self.js(
                """(({ canvas }) => [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data])
                (panels[arguments[0]])""",
                number,
            )
        ).reshape(16, 16, 4)

    def box(self, selector):
        """Left, top, width and height on the screen."""
        return np.array(
            self.js(
                "(({ left, top, width, height }) => [left, top, width, height])"
                "(document.querySelector(arguments[0]).getBoundingClientRect())",
                selector,
            )
        )

    def touch(self, *ways):
        """Fingers that go down, each along its way, and up."""
        for step in range(len(ways[0])):
            points = [{"x": way[step][0], "y": way[step][1], "id": i} for i, way in enumerate(ways)]
            self.cdp("Input.dispatchTouchEvent", type="touchMove" if step else "touchStart", touchPoints=points)
        self.cdp("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def errors(self):
        """Errors in the console since the last call."""
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def browser():
    """One Chromium for all tests; each study has a port, and so a memory, of its own."""
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in FLAGS:
        options.add_argument(flag)
    chromium = webdriver.Chrome(options, Service(driver))
    chromium.execute_cdp_cmd("Network.enable", {})
    yield chromium
    chromium.quit()


@pytest.fixture
def page(browser):
    """A desktop page, which must not have logged an error at the end."""
    page = Page(browser)
    page.cdp("Emulation.setDeviceMetricsOverride", **DESKTOP)
    yield page
    assert page.errors() == []


@pytest.fixture
def phone(page):
    """A page on a phone."""
    page.cdp("Emulation.setDeviceMetricsOverride", **PHONE)
    page.cdp("Emulation.setTouchEmulationEnabled", enabled=True)
    yield page
    page.cdp("Emulation.setTouchEmulationEnabled", enabled=False)


@contextlib.contextmanager
def crashing(folder, port=0):
    """Serve, and in the end cut all connections, as when the process dies."""
    server, connections = make_server(folder, port=port), []
    accept = server.get_request

    def get_request():
        connections.append(accept())
        return connections[-1]

    server.get_request = get_request
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        for connection, _ in connections:
            with contextlib.suppress(OSError):  # closed already
                connection.shutdown(socket.SHUT_RDWR)


def lines(folder):
    path = folder / "answers.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def stored(folder, name):
    with Image.open(folder / "images" / f"{name}.png") as picture:
        return np.asarray(picture)


@pytest.mark.slow
def test_two_readers_answer_single_images_by_keyboard_and_are_scored(page, study, serve):  # noqa: F811
    folder = study(trials=8)
    kinds = key_of(folder)
    page.open(serve(folder))
    page.begin("ann")
    mistaken = set()  # ann takes the first image of each kind for the other
    for number in range(1, 9):
        assert page.find("#count").text == f"{number} of 8"
        kind = kinds[page.images()[0]]
        right = kind in mistaken
        mistaken.add(kind)
        page.answer(page.press, "s" if (kind == "synthetic") is right else "r")
        assert len(lines(folder)) == number  # kept as they come
    page.button("Another reader").click()
    page.wait("document.readyState === 'complete' && $('start').checkVisibility()")
    page.begin("bob")
    for _ in range(8):
        page.answer(page.press, "s" if kinds[page.images()[0]] == "synthetic" else "r")
    assert "All questions are answered" in page.find("main").text

    score = score_study(folder)
    ann, bob = score.readers
    assert (ann.reader, ann.fake_identification_rate.value, ann.false_alarm_rate.value) == ("ann", 0.75, 0.25)
    assert (bob.reader, bob.fake_identification_rate.value, bob.false_alarm_rate.value) == ("bob", 1, 0)
    assert score.error_rate.value == 2 / 16
    assert score.error_rate.low < 2 / 16 < score.error_rate.high
    assert score.agreement == pytest.approx(0.5)  # they agree on 6 of 8, and each calls half of them synthetic
    assert 0 < ann.seconds < 20


@pytest.mark.slow
def test_grids_are_answered_with_the_mouse_and_dragging_marks_nothing(page, study, serve):  # noqa: F811
    folder = study("grid", trials=2)
    kinds = key_of(folder)
    page.open(serve(folder))
    page.begin("ann")
    for _ in range(2):
        figures, names = page.figures(), page.images()
        ActionChains(page.browser, duration=0).drag_and_drop_by_offset(figures[0], 40, 20).perform()
        figures[names.index(next(name for name in names if kinds[name] == "real"))].click()
        for figure, name in zip(figures, names, strict=True):
            if kinds[name] == "synthetic" or "chosen" in figure.get_attribute("class"):
                figure.click()  # marks, and takes the mark of the real one back
        page.answer(page.button("Next").click)
    score = score_study(folder)
    assert (score.fake_identification_rate.value, score.error_rate.value) == (1, 0)


def test_grids_are_answered_by_keyboard(page, study, serve):  # noqa: F811
    folder = study("grid", trials=2)
    page.open(serve(folder))
    page.begin("ann")
    names = page.images()
    page.answer(page.press, "1", "4", "6", "4", Keys.ENTER)
    assert lines(folder)[0]["synthetic"] == [names[0], names[5]]


@pytest.mark.slow
def test_pairs_are_answered_by_keyboard_by_button_and_by_clicking_an_image(page, study, serve):  # noqa: F811
    folder = study("pair", trials=4)
    kinds = key_of(folder)
    page.open(serve(folder))
    page.begin("ann")

    def synthetic():
        return [kinds[name] for name in page.images()].index("synthetic")

    page.answer(page.press, "12"[synthetic()])
    page.answer(page.press, "21"[synthetic()])  # the real one
    page.answer(page.button(f"Image {synthetic() + 1}").click)
    page.answer(page.figures()[synthetic()].click)
    assert page.find("#end").is_displayed()
    score = score_study(folder)
    assert (score.fake_identification_rate.value, score.error_rate.value) == (0.75, 0.25)


@pytest.mark.slow
def test_timed_images_are_seen_once_and_for_as_long_as_they_should(page, study, serve):  # noqa: F811
    folder = study("timed", trials=4)
    kinds = key_of(folder)
    page.open(serve(folder))
    page.js(WATCH)

    def right():
        return "s" if kinds[page.images()[0]] == "synthetic" else "r"

    def sightings():
        return page.js("window.sightings[trial.images[0]] ?? []")

    page.find("#reader").send_keys("ann", Keys.ENTER)
    page.wait("$('countdown')?.checkVisibility()")
    page.press("s")  # before there is anything to judge
    assert not sightings()
    page.ready()
    assert not lines(folder)
    page.wait("window.sightings[trial.images[0]]")
    page.answer(page.press, right())  # while it is in sight

    page.wait("window.sightings[trial.images[0]]")
    page.wait("performance.now() - window.sightings[trial.images[0]].at(-1) > 100")  # it is out of sight
    seen = sightings()
    assert 450 < seen[-1] - seen[0] < 2000  # 500 ms; an upper bound for slow machines
    page.press("0")  # resets the view elsewhere, and must not bring the image back
    assert not np.array_equal(page.pixels()[..., 0], stored(folder, page.images()[0]))

    image = page.images()[0]
    page.browser.refresh()
    page.wait("typeof panels !== 'undefined' && panels.length && !busy")
    assert page.images() == [image]
    noise = page.pixels()
    assert not np.array_equal(noise[..., 0], stored(folder, image))
    page.answer(page.press, right())
    for _ in range(2):
        page.answer(page.press, right())
    assert [line["exposure"] for line in lines(folder)] == [500, 500, 500, 470]
    assert score_study(folder).error_rate.value == 0


@pytest.mark.slow
def test_a_study_goes_on_after_a_reload_a_crash_and_in_another_tab(page, study):  # noqa: F811
    folder = study()
    with crashing(folder) as port:
        page.open(f"http://127.0.0.1:{port}")
        page.begin("ann")
        for key in "rs":
            page.answer(page.press, key)
        shown = page.images()
        page.browser.refresh()
        page.wait("typeof panels !== 'undefined' && panels.length && !busy")
        assert page.images() == shown
        assert page.find("#count").text == "3 of 20"
    page.press("s")
    page.wait("$('error').checkVisibility()")
    assert "The server does not answer" in page.find("#error").text
    assert page.images() == shown
    assert all("ERR_CONNECTION" in message for message in page.errors())
    with crashing(folder, port):
        page.answer(page.press, "s")
        assert not page.find("#error").is_displayed()
        assert page.find("#count").text == "4 of 20"
        assert [line["synthetic"] for line in lines(folder)][1:] == [lines(folder)[1]["images"], shown]
        shown, first = page.images(), page.browser.current_window_handle
        page.browser.switch_to.new_window("tab")
        try:
            page.open(f"http://127.0.0.1:{port}")  # asks who reads
            page.begin("bob")
            assert page.find("#count").text == "1 of 20"
            page.button("Not bob?").click()
            page.wait("document.readyState === 'complete' && $('start').checkVisibility()")
            page.begin("ann")
            assert page.images() == shown
        finally:
            page.browser.close()
            page.browser.switch_to.window(first)


@pytest.mark.slow
def test_zoom_and_window_change_what_is_drawn_and_reset_brings_it_back(page, study, serve):  # noqa: F811
    folder = study()
    page.open(serve(folder))
    page.begin("ann")
    truth = stored(folder, page.images()[0])
    assert np.array_equal(page.pixels(), np.stack([truth] * 3 + [np.full_like(truth, 255)], -1))
    whole = page.box("canvas")

    page.find("#width").send_keys(Keys.HOME)  # a window of one grey level around 127.5
    assert np.array_equal(page.pixels()[..., 0], np.where(truth > 127, 255, 0))
    page.find("#level").send_keys(Keys.HOME)
    assert np.array_equal(page.pixels()[..., 0], np.where(truth > 0, 255, 128))  # 0 is the middle of this window
    page.button("Reset view").click()
    assert np.array_equal(page.pixels()[..., 0], truth)
    mouse = ActionChains(page.browser, duration=0).move_to_element(page.find("figure"))
    mouse.w3c_actions.pointer_action.pointer_down(MouseButton.RIGHT)
    mouse.move_by_offset(-whole[2] / 4, 0)
    mouse.w3c_actions.pointer_action.pointer_up(MouseButton.RIGHT)
    mouse.perform()  # a quarter of the frame to the left narrows the window by 50
    expected = np.clip((truth - (127.5 - 205 / 2)) * 255 / 205, 0, 255)
    assert abs(page.pixels()[..., 0] - expected).max() <= 1

    corner = [-int(whole[2] / 4), int(whole[3] / 4)]  # from the middle
    origin = ScrollOrigin.from_element(page.find("figure"), *corner)
    ActionChains(page.browser, duration=0).scroll_from_origin(origin, 0, -400).perform()
    zoomed = page.box("canvas")
    cursor = whole[:2] + whole[2:] / 2 + corner
    assert zoomed[2] > 1.5 * whole[2]
    assert (cursor - zoomed[:2]) / zoomed[2:] == pytest.approx((cursor - whole[:2]) / whole[2:], abs=0.01)
    drag = ActionChains(page.browser, duration=0)
    drag.drag_and_drop_by_offset(page.find("figure"), 30, -20).perform()
    assert page.box("canvas")[:2] - zoomed[:2] == pytest.approx([30, -20], abs=0.1)
    assert page.box("figure") == pytest.approx(whole)

    page.press("0")
    assert page.box("canvas") == pytest.approx(whole)
    assert np.array_equal(page.pixels()[..., 0], truth)
    page.press("+")
    assert page.box("canvas")[2] == pytest.approx(1.25 * whole[2])
    page.answer(page.press, "r")
    assert page.box("canvas") == pytest.approx(whole)  # each question starts with the whole image


@pytest.mark.slow
@pytest.mark.parametrize("design", DESIGNS)
def test_on_a_phone_images_and_answers_fit_without_scrolling(phone, study, serve, design):  # noqa: F811
    folder = study(design, trials=2)
    phone.open(serve(folder))
    phone.begin("Dr. Annabelle Featherstonehaugh")
    width, height = PHONE["width"], PHONE["height"]
    assert phone.js("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
    assert phone.js("document.documentElement.scrollHeight") == height
    for selector in (
        "#question",
        "#count",
        "figure",
        "figure:last-child",
        "#answers",
        "#answers button:last-child",
        "#reset",
    ):
        left, top, wide, high = phone.box(selector)
        assert left >= 0, selector
        assert left + wide <= width, selector
        assert top >= 0, selector
        assert top + high <= height, selector
    for figure in phone.figures():
        assert figure.size["width"] >= (150 if design == "grid" else 300)
    assert phone.box("figure:last-child")[[1, 3]].sum() <= phone.box("#answers")[1]  # one below the other
    tall = 40  # a finger needs about 1 cm
    assert phone.box("#answers button")[3] >= tall

    left, top, wide, high = phone.box("figure:last-child")
    middle = np.array([left + wide / 2, top + high / 2])
    if design == "single":
        near, far = np.array([20, 0]), np.array([60, 0])
        phone.touch([middle - near, middle - far], [middle + near, middle + far])
        assert phone.js("view.zoom") > 2
    if design == "grid":
        phone.touch([middle, middle + 4])  # a finger is never still
        assert phone.js("panels.map((one) => one.chosen)") == [False] * 5 + [True]
    left, top, wide, high = phone.box("#answers button")
    phone.touch([(left + wide / 2, top + high / 2)])
    phone.wait("$('progress').value === 1")
    assert len(lines(folder)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("design", ["single", "pair"])
def test_a_key_held_down_or_a_double_click_answers_one_question(page, study, serve, design):  # noqa: F811
    folder = study(design)
    page.open(serve(folder))
    page.begin("ann")
    key = {"single": "s", "pair": "1"}[design]
    page.answer(page.press, key)
    for _ in range(3):
        page.cdp("Input.dispatchKeyEvent", type="keyDown", key=key, text=key, autoRepeat=True)
    page.cdp("Input.dispatchKeyEvent", type="keyUp", key=key)
    selector = "#answers button" if design == "single" else "figure"
    left, top, wide, high = page.box(selector)
    at = {"x": left + wide / 2, "y": top + high / 2, "button": "left"}

    def click(count):
        for kind in ("mousePressed", "mouseReleased"):
            page.cdp("Input.dispatchMouseEvent", type=kind, clickCount=count, **at)

    page.answer(click, 1)
    click(2)
    page.ready()
    assert len(lines(folder)) == 2
    if design == "single":  # the button has the focus now
        for repeat in (False, True, True):
            page.cdp("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", text="\r",
                     windowsVirtualKeyCode=13, autoRepeat=repeat)  # fmt: skip
            page.ready()
        assert len(lines(folder)) == 3


@pytest.mark.slow
def test_a_question_whose_image_does_not_come_cannot_be_answered(page, study, serve):  # noqa: F811
    folder = study()
    page.open(serve(folder))
    page.begin("ann")
    first = page.images()
    page.cdp("Network.setBlockedURLs", urls=["*/images/*"])
    try:
        for _ in range(2):  # the second time, too, it is the image in sight that is judged
            page.js("$('error').hidden = true")
            page.press("r")
            page.wait("$('error').checkVisibility() && !busy")
            assert "could not be loaded" in page.find("#error").text
    finally:
        page.cdp("Network.setBlockedURLs", urls=[])
    assert [line["images"] for line in lines(folder)] == [first]
    assert all("/images/" in message for message in page.errors())
    page.answer(page.press, "r")
    assert page.find("#count").text == "2 of 20"
    assert len(lines(folder)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("design", ["pair", "timed"])
def test_the_page_asks_this_machine_only_and_never_says_what_an_image_is(page, study, serve, design):  # noqa: F811
    url = serve(study(design, trials=2))
    page.open(url)
    page.begin("ann")
    page.answer(page.find("#answers button").click)
    requested = page.js("performance.getEntries().map((entry) => entry.name)")
    requested = [name for name in requested if ":" in name]  # others are moments, such as first-paint
    allowed = r"/|/study\.(js|css)|/api/(study|next\?reader=ann|answer)|/images/[0-9a-f]{16}\.png"
    assert any("/images/" in name for name in requested)
    for name in requested:
        assert name.startswith(url)
        assert re.fullmatch(allowed, name.removeprefix(url))
    markup = page.js("$('images').outerHTML")
    assert re.findall("<(?!/)[a-z]+", markup).count("<canvas") == len(page.images())
    assert not re.search("real|synth|fake|generat|model|origin|label", markup)
    assert page.js("Object.keys(study).sort()") == ["design", "grey", "size"]
    told = {"done", "total", "trial", "images"} | ({"milliseconds"} if design == "timed" else set())
    assert set(page.js("trial")) == told


def test_not_even_a_script_in_the_page_can_send_answers_elsewhere(page, study, serve):  # noqa: F811
    page.open(serve(study()))
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.settimeout(0.2)
        elsewhere = f"http://127.0.0.1:{other.getsockname()[1]}/"
        assert (
            page.js("fetch(arguments[0], { mode: 'no-cors' }).catch((error) => error.name)", elsewhere) == "TypeError"
        )
        with pytest.raises(TimeoutError):
            other.accept()
    assert all("Content Security Policy" in message for message in page.errors())
