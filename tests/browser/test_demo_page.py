"""The demo page in a real browser: the whole story, on a desktop and on a phone."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from machine import missing
from omnistate.demo import demo

OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
OPTIONS += ["--disable-component-update", "--disable-sync"]


@pytest.fixture
async def browser() -> AsyncIterator[object]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        missing("a browser", "apt-get install chromium")
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(executable_path=chromium, args=OPTIONS)
        yield opened
        await opened.close()


@pytest.fixture
async def page_url() -> AsyncIterator[str]:
    async with demo(0) as (_, _, port):
        yield f"http://127.0.0.1:{port}/"


async def open_page(browser: object, url: str, *, width: int = 1380, height: int = 1000) -> tuple[object, list[str]]:
    page = await browser.new_page(viewport={"width": width, "height": height})  # type: ignore[attr-defined]
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    await page.goto(url)
    await page.wait_for_selector("#status >> text=4 channels live")
    assert all(request.startswith(url.partition("?")[0]) for request in requests), (
        "the page needs nothing from elsewhere"
    )
    return page, errors


async def test_the_whole_story(browser: object, page_url: str, tmp_path: Path) -> None:
    page, errors = await open_page(browser, page_url)
    second, second_errors = await open_page(browser, page_url + "?visitor=" + await page.evaluate("demo.visitor"))  # type: ignore[attr-defined]

    await page.click("[data-add=espresso-cup]")  # type: ignore[attr-defined]
    await page.wait_for_selector(".mobile tr[data-sku=espresso-cup]")  # type: ignore[attr-defined]
    await second.wait_for_selector(".mobile tr[data-sku=espresso-cup]")  # type: ignore[attr-defined]  # without reload

    await page.click("text=Hello, can you help me?")  # type: ignore[attr-defined]
    await page.wait_for_selector(".whatsapp .messages >> text=I can answer simple questions")  # type: ignore[attr-defined]
    await page.click("text=I want to talk to a person")  # type: ignore[attr-defined]
    await page.wait_for_selector("#claim:enabled")  # type: ignore[attr-defined]
    await page.click("#claim")  # type: ignore[attr-defined]
    await page.wait_for_selector(".desk tr[data-sku=espresso-cup]")  # type: ignore[attr-defined]
    told = await page.locator(".desk .messages li:not(.event)").all_inner_texts()  # type: ignore[attr-defined]
    assert len(told) == 4

    await page.fill("[data-compose='agent desk'] input", "Hi Ana, I can see your cart.")  # type: ignore[attr-defined]
    await page.press("[data-compose='agent desk'] input", "Enter")  # type: ignore[attr-defined]
    await page.wait_for_selector(".whatsapp .messages >> text=Hi Ana")  # type: ignore[attr-defined]
    await page.click("#discount")  # type: ignore[attr-defined]
    for where in (page, second):
        await where.wait_for_selector(".web tr.discount")  # type: ignore[attr-defined]
    await second.wait_for_selector(".whatsapp .owner >> text=maria")  # type: ignore[attr-defined]
    await page.fill("[data-compose=whatsapp] input", "Thank you <b>Maria</b>")  # type: ignore[attr-defined]
    await page.press("[data-compose=whatsapp] input", "Enter")  # type: ignore[attr-defined]
    await page.wait_for_selector(".desk .messages >> text=Thank you <b>Maria</b>")  # type: ignore[attr-defined]
    assert errors == []
    assert second_errors == []


async def test_on_a_phone_nothing_is_wider_than_the_screen(browser: object, page_url: str) -> None:
    page, errors = await open_page(browser, page_url, width=390, height=844)
    await page.click("[data-add=moka-pot]")  # type: ignore[attr-defined]
    await page.wait_for_selector(".mobile tr[data-sku=moka-pot]")  # type: ignore[attr-defined]
    assert await page.evaluate("document.documentElement.scrollWidth") <= 390  # type: ignore[attr-defined]
    assert errors == []
