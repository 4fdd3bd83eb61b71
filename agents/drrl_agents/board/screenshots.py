"""Pictures of TensorBoard as a browser shows it: `python -m drrl_agents.board.screenshots runs docs`.

Needs Debian's `chromium` and the Python package `playwright`, which drives it; nothing is looked up outside.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

from playwright.sync_api import Locator, Page, sync_playwright

from drrl_agents.board.sessions import FIRST

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIZE = {"scalars": (1600, 860), "custom-scalars": (1600, 800), "hparams": (1850, 900), "images": (1750, 1400)}
"""Pixels of the window for every picture."""
LOADING = 5_000
"""Milliseconds that a tab is given to fetch and draw, beyond the moment it shows something."""
PATIENCE = 60_000
"""Milliseconds after which a tab that shows nothing is an error."""
SERVER_PATIENCE = 90.0
"""Seconds after which a server that does not answer is an error."""
CHARTED = "^(validation|test)/(normalised_score|relative_error|total_flops_ratio)$"
"""Tags on the picture of the scalars."""
TIDY = ("Enable step selection and data table", "Ignore outliers in chart scaling")
"""Settings of the charts that are switched off for it: tables would hide the charts, and the oracle is an outlier."""
LEGIBLE = r"mean$|oracle|full$|threshold|layer-table"
"""Runs on the picture of the custom scalars: all seeds in one, and some baselines."""
PICTURED = "compare|seed-0|oracle"
"""Runs on the picture of the images."""
DRAWN = "pareto|test/rank"
"""Tags on it."""


def find_chromium() -> str | None:
    """Path of a Chromium, None where there is none."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextmanager
def serve(logdir: Path) -> Iterator[str]:
    """TensorBoard on a free port of the loopback interface; gives its URL.

    Raises:
        ValueError: it does not answer; what it said.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    address = ["--host", "127.0.0.1", "--port", port]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), *address]
    with tempfile.TemporaryFile() as said:
        server = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}/"
            if not _answers(url, server):
                said.seek(0)
                raise ValueError(f"logdir={str(logdir)!r}: TensorBoard does not answer: {said.read().decode()[-500:]}")
            yield url
        finally:
            server.terminate()
            server.wait()


def _answers(url: str, server: subprocess.Popen[bytes]) -> bool:
    """Waits until the server answers, has ended, or has been given enough time."""
    end = time.monotonic() + SERVER_PATIENCE
    while time.monotonic() < end and server.poll() is None:
        if _is_up(url):
            return True
        time.sleep(0.2)
    return False


def _is_up(url: str) -> bool:
    try:
        with urlopen(url + "data/environment", timeout=5):
            return True
    except OSError:
        return False


@contextmanager
def browse() -> Iterator[Page]:
    """A page of a headless Chromium with a profile of its own.

    Raises:
        ValueError: there is no Chromium.
    """
    chromium = find_chromium()
    if chromium is None:
        raise ValueError("chromium: not found; install it, on Debian with apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile, sync_playwright() as play:
        context = play.chromium.launch_persistent_context(
            profile, executable_path=chromium, headless=True, args=list(FLAGS)
        )
        try:
            yield context.new_page()
        finally:
            context.close()


def open_tab(page: Page, url: str, picture: str, fragment: str) -> None:
    """Opens a tab of TensorBoard afresh, in the size of its picture."""
    width, height = SIZE[picture]
    page.set_viewport_size({"width": width, "height": height})
    page.goto("about:blank")
    page.goto(url + fragment)


def open_scalars(page: Page, url: str) -> list[str]:
    """Opens the charts of the final metrics; gives the names of the runs at their side."""
    open_tab(page, url, "scalars", f"?smoothing=0&tagFilter={CHARTED}#timeseries")
    page.locator("scalar-card-component svg").first.wait_for(timeout=PATIENCE)
    for name in TIDY:
        page.get_by_role("checkbox", name=name).uncheck()
    page.get_by_role("button", name="Settings").click()
    page.wait_for_timeout(LOADING)
    return _words(page.locator("runs-data-table"))


def open_custom_scalars(page: Page, url: str, runs: str = LEGIBLE) -> dict[str, int]:
    """Opens the margin charts with some of the runs; gives the number of lines by title of the chart."""
    open_tab(page, url, "custom-scalars", "#custom_scalars")
    cards = page.locator("tf-custom-scalar-margin-chart-card")
    cards.first.wait_for(timeout=PATIENCE)
    board = page.locator("tf-custom-scalar-dashboard")
    board.get_by_role("checkbox", name=TIDY[1]).click()
    board.locator("tf-multi-checkbox input").first.fill(runs)
    page.wait_for_timeout(LOADING)
    return dict(map(_chart, cards.all()))


def _chart(card: Locator) -> tuple[str, int]:
    """Title of a margin chart and how many lines it found."""
    matches = re.search(r"Matches \((\d+)\)", card.get_by_text("Matches (").first.inner_text())
    return card.locator(".heading-label").first.inner_text().strip(), int(matches[1]) if matches else 0


def open_hparams(page: Page, url: str) -> dict[str, list[str]]:
    """Opens the table of hyperparameters and final metrics; gives what stands in the row of each run."""
    open_tab(page, url, "hparams", "#hparams")
    cells = page.locator("tf-hparams-table-view vaadin-grid-cell-content")
    cells.first.wait_for(state="attached", timeout=PATIENCE)
    for box in page.locator("tf-hparams-query-pane .hparam-checkbox").all():
        if box.inner_text().strip() not in FIRST and box.get_attribute("aria-checked") == "true":
            box.click()
    page.wait_for_timeout(LOADING)
    rows: dict[str, list[str]] = {}
    for text in filter(None, (text.strip() for text in cells.all_inner_texts())):
        if text.startswith("DRRL-") and "/" in text:
            rows[text] = []
        elif rows:
            rows[list(rows)[-1]].append(text)
    return rows


def open_images(page: Page, url: str, runs: str = PICTURED) -> list[str]:
    """Opens the pictures of some of the runs; gives the tags of those on the page."""
    open_tab(page, url, "images", "#images")
    board = page.locator("tf-image-dashboard")
    board.locator("tf-image-loader").first.wait_for(timeout=PATIENCE)
    board.locator("tf-multi-checkbox input").first.fill(runs)
    board.locator("tf-tag-filterer input").first.fill(DRAWN)
    board.get_by_role("checkbox", name="Show actual image size").click()
    page.wait_for_timeout(LOADING)
    labels = board.locator("tf-image-loader .heading-label").all_inner_texts()
    return [text.removeprefix("tag: ") for text in labels if text.startswith("tag: ")]


def _words(place: Locator) -> list[str]:
    """What stands in a part of the page, line by line."""
    return [line.strip() for line in place.first.inner_text().splitlines() if line.strip()]


TABS: dict[str, Callable[[Page, str], object]] = {
    "scalars": open_scalars,
    "custom-scalars": open_custom_scalars,
    "hparams": open_hparams,
    "images": open_images,
}
"""Name of a picture to what opens its tab and gives what stands there."""


def take(logdir: Path, folder: Path) -> dict[str, object]:
    """Takes a picture of every tab, `tensorboard-<name>.png`.

    Args:
        logdir: the runs.
        folder: where to.

    Returns:
        What stood on every page, by name of its picture.

    Raises:
        ValueError: TensorBoard does not answer, or there is no Chromium.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = {}
    with serve(logdir) as url, browse() as page:
        for name, opening in TABS.items():
            shown[name] = opening(page, url)
            page.screenshot(path=folder / f"tensorboard-{name}.png")
    return shown


if __name__ == "__main__":
    runs, pictures = map(Path, sys.argv[1:3])
    for each in take(runs, pictures):
        print(pictures / f"tensorboard-{each}.png")
