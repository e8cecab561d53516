"""The web page in a real browser, on a cluster of real peers."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from peer.cluster import free_base_port

pytest.importorskip("playwright", reason="the page is tried with Playwright: pip install --group dev")

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

BROWSER = os.environ.get("MINIDFS_E2E_BROWSER") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.once,
    pytest.mark.timeout(180),
    pytest.mark.skipif(BROWSER is None, reason="there is no browser: apt-get install chromium, or MINIDFS_E2E_BROWSER"),
]

NODES = 3
WAIT_S = 30.0
HOSTILE = "<img src=x onerror=alert(1)>.txt"

expect.set_options(timeout=WAIT_S * 1000)


class Cluster:
    """A local cluster and orders to it."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.facade_port = free_base_port(NODES + 1)
        self.client = httpx.Client(trust_env=False, timeout=WAIT_S)

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "peer", "cluster", *words, "--data", str(self.data)]

    def order(self, *words: str) -> None:
        subprocess.run(self.command(*words), check=True, capture_output=True, timeout=WAIT_S)

    def url(self, number: int) -> str:
        return f"http://127.0.0.1:{self.facade_port + number}"

    def wait_ready(self, number: int) -> None:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            with suppress(httpx.HTTPError):
                nodes = self.client.get(f"{self.url(number)}/nodes").json()
                if isinstance(nodes, list) and [node["status"] for node in nodes] == ["UP"] * NODES:
                    return
            time.sleep(0.1)
        raise AssertionError(f"node-{number} does not come up")

    def put(self, key: str, content: bytes, name: str) -> None:
        answer = self.client.put(f"{self.url(1)}/files/{key}", params={"filename": name}, content=content)
        assert answer.status_code == 200, answer.text


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("page") / "cluster")
    ports = ["--base-port", str(made.facade_port + 1), "--facade-port", str(made.facade_port), "--nodes", str(NODES)]
    process = subprocess.Popen(made.command(*ports), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for number in range(1, NODES + 1):
            made.wait_ready(number)
        yield made
    finally:
        process.terminate()
        process.wait(WAIT_S)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Root has no sandbox, and containers have little shared memory.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        started = playwright.chromium.launch(executable_path=BROWSER, args=options)
        yield started
        started.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context(accept_downloads=True, locale="en-GB")
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext, cluster: Cluster) -> Iterator[Page]:
    """The page of node-1; nothing may go wrong in its scripts."""
    made = context.new_page()
    failures: list[str] = []
    made.on("pageerror", lambda error: failures.append(str(error)))
    made.on("dialog", lambda dialog: failures.append(f"a dialog of the browser: {dialog.message}"))
    made.on("console", lambda said: failures.append(said.text) if "Content Security Policy" in said.text else None)
    made.goto(cluster.url(1))
    expect(made.locator(".card")).to_have_count(NODES)
    yield made
    assert failures == []


def row_of(page: Page, name: str) -> Locator:
    return page.locator("#rows tr").filter(has=page.get_by_role("link", name=name, exact=True))


def upload_of(page: Page, name: str) -> Locator:
    return page.locator("#uploads li").filter(has_text=name)


def test_files_go_up_by_the_button_and_come_down_as_they_were(page: Page, tmp_path: Path) -> None:
    contents = {"report.bin": os.urandom(300_000), "notes.txt": b"hello", "empty.txt": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    page.set_input_files("#chosen", [tmp_path / name for name in contents])
    for name, content in contents.items():
        expect(upload_of(page, name)).to_contain_text("stored, on node-1, node-2, node-3")
        expect(row_of(page, name).get_by_role("img")).to_have_attribute("aria-label", "on node-1, on node-2, on node-3")
        with page.expect_download() as downloading:
            row_of(page, name).get_by_role("link").click()
        assert downloading.value.path().read_bytes() == content
        assert downloading.value.suggested_filename == name
    expect(page.locator("#events")).to_contain_text("report.bin was uploaded through node-1")
    upload_of(page, "notes.txt").get_by_role("button", name="Remove").click()
    expect(upload_of(page, "notes.txt")).to_have_count(0)


def test_files_are_dropped_on_the_page_whatever_their_names_are(page: Page) -> None:
    transfer = page.evaluate_handle(
        """(name) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File(["dropped"], name, { type: "text/plain" }));
            return transfer;
        }""",
        HOSTILE,
    )
    page.locator("#drop").dispatch_event("dragover", {"dataTransfer": transfer})
    expect(page.locator("#drop")).to_have_class(re.compile("over"))
    page.locator("#drop").dispatch_event("drop", {"dataTransfer": transfer})
    expect(upload_of(page, HOSTILE)).to_contain_text("stored")
    expect(row_of(page, HOSTILE)).to_have_count(1)
    expect(page.locator("#events")).to_contain_text(HOSTILE)
    row_of(page, HOSTILE).get_by_role("button", name="Details").click()
    expect(page.locator("#details")).to_contain_text(hashlib.sha256(b"dropped").hexdigest())
    expect(page.locator("#details")).to_contain_text("curl -o")
    page.locator("#details").get_by_role("button", name="Close").click()
    assert page.locator("img").count() == 0


def test_an_upload_shows_how_far_it_is_and_can_be_cancelled_and_tried_again(page: Page, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "slow.bin").write_bytes(content)
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 300_000}
    network.send("Network.emulateNetworkConditions", slow)
    page.set_input_files("#chosen", tmp_path / "slow.bin")
    expect(upload_of(page, "slow.bin")).to_contain_text(re.compile(r"\d+ KiB/s"))
    upload_of(page, "slow.bin").get_by_role("button", name="Cancel").click()
    expect(upload_of(page, "slow.bin")).to_contain_text("cancelled")
    expect(row_of(page, "slow.bin")).to_have_count(0)
    network.send("Network.emulateNetworkConditions", {**slow, "uploadThroughput": -1})
    upload_of(page, "slow.bin").get_by_role("button", name="Try again").click()
    expect(upload_of(page, "slow.bin")).to_contain_text("stored")
    expect(row_of(page, "slow.bin")).to_have_count(1)


def test_a_file_is_deleted_once_that_is_confirmed(page: Page, cluster: Cluster) -> None:
    cluster.put("going", b"content", "going.txt")
    expect(row_of(page, "going.txt")).to_have_count(1)
    row_of(page, "going.txt").get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Keep it").click()
    expect(row_of(page, "going.txt")).to_have_count(1)
    row_of(page, "going.txt").get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Delete it").click()
    expect(page.locator("#said")).to_have_text("going.txt: deleted on 3 of 3.")
    expect(row_of(page, "going.txt")).to_have_count(0)


def test_a_thousand_files_are_searched_sorted_and_paged_through(page: Page, cluster: Cluster) -> None:
    for number in range(1000):
        cluster.put(f"many-{number}", b"x" * (number + 1), f"many {number:04}.txt")
    page.get_by_label("Name begins with").fill("many 0")
    page.get_by_role("button", name="Search").click()
    rows = page.locator("#rows tr")
    expect(page.locator("#shown")).to_have_text("100 of 1000 files")
    for shown in (200, 300):
        page.get_by_role("button", name="Show more files").click()
        expect(rows).to_have_count(shown)
    page.get_by_role("button", name="Sort by name").click()
    expect(rows.first).to_contain_text("many 0700.txt")
    expect(page.get_by_role("columnheader", name="Name")).to_have_attribute("aria-sort", "ascending")
    page.get_by_role("button", name="Sort by size").click()
    expect(rows.first).to_contain_text("many 0999.txt")
    page.get_by_label("Name begins with").fill("many 0123")
    page.get_by_role("button", name="Search").click()
    expect(rows).to_have_count(1)


def test_the_page_outlives_its_peer_and_sees_the_cluster_recover(page: Page, cluster: Cluster, tmp_path: Path) -> None:
    cluster.order("kill", "node-1")
    try:
        expect(page.locator("#moved")).to_contain_text("does not answer; it goes on through")
        card = page.locator(".card").filter(has_text="node-1")
        expect(card).to_contain_text(re.compile(r"down since \d"))
        expect(page.locator("#sentence")).to_contain_text("node-1")
        (tmp_path / "meanwhile.txt").write_bytes(b"meanwhile")
        page.set_input_files("#chosen", tmp_path / "meanwhile.txt")
        expect(upload_of(page, "meanwhile.txt")).to_contain_text("stored, on node-2, node-3")
        expect(page.locator("#sentence")).to_contain_text("1 copy is missing; node-1 will fetch it when back.")
        expect(row_of(page, "meanwhile.txt").get_by_role("img")).to_have_attribute(
            "aria-label", "on node-2, on node-3, missing on node-1"
        )
        expect(page.locator("#queue")).to_contain_text("meanwhile.txt")
    finally:
        cluster.order("start", "node-1")
    expect(page.locator("#events")).to_contain_text("node-1 is up")
    expect(page.locator("#sentence")).to_contain_text("where they should be, on 3 of 3 nodes")
    expect(row_of(page, "meanwhile.txt").get_by_role("img")).to_have_attribute(
        "aria-label", "on node-1, on node-2, on node-3"
    )
    page.get_by_role("button", name="Make node-1 fetch what it lacks now").click()
    expect(page.locator("#said")).to_have_text("node-1 lacks nothing.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(page: Page, cluster: Cluster, scheme: str) -> None:
    cluster.put("seen", b"content", "seen.txt")
    expect(row_of(page, "seen.txt")).to_have_count(1)
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    row_of(page, "seen.txt").get_by_role("button", name="Details").click()
    assert violations(page) == []
    page.keyboard.press("Escape")
    row_of(page, "seen.txt").get_by_role("button", name="Delete").click()
    assert violations(page) == []
    page.keyboard.press("Escape")
    expect(page.locator("#confirm")).not_to_be_visible()
    assert violations(page) == []
    # By keyboard alone: to the search, a letter, return.
    page.get_by_label("Name begins with").focus()
    page.keyboard.type("seen")
    page.keyboard.press("Enter")
    expect(page.locator("#rows tr")).to_have_count(1)
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert violations(page) == []


def violations(page: Page) -> list[str]:
    """What axe-core finds wrong."""
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found]


def test_without_scripts_it_lists_and_gives_files(browser: Browser, cluster: Cluster) -> None:
    cluster.put("plain", b"plain content", "plain.txt")
    context = browser.new_context(java_script_enabled=False, accept_downloads=True)
    page = context.new_page()
    page.goto(f"{cluster.url(2)}/?name=plain")
    expect(page.get_by_role("button", name="Choose files")).to_have_count(0)
    with page.expect_download() as downloading:
        page.get_by_role("link", name="plain.txt").click()
    assert downloading.value.path().read_bytes() == b"plain content"
    context.close()
