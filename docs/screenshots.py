"""The pictures of the playground under docs/images: `python docs/screenshots.py runs/quickstart`.

They are of a trained model, in Chromium, on a laptop (light and dark) and on a phone.
"""

import argparse
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
PROMPT = "The file object is"
LAPTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="folder of a run")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder for the pictures")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "mu_sota", "playground", arguments.model, "--no-browser", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = next(word for line in server.stdout for word in line.split() if word.startswith("http://"))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=_chromium(), args=["--no-sandbox"])
            for name, size, scheme in (
                ("playground", LAPTOP, "light"),
                ("playground-dark", LAPTOP, "dark"),
                ("playground-phone", PHONE, "light"),
            ):
                page = _used(browser, address, size, scheme)
                _save(page.screenshot(full_page=True), arguments.out / f"{name}.png")
                if name == "playground":
                    _save(page.locator("#mu-inside").screenshot(), arguments.out / "playground-inside.png")
    finally:
        server.terminate()
        server.wait()


def _save(picture: bytes, path: Path) -> None:
    few_colours = (
        Image.open(BytesIO(picture)).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    )
    few_colours.save(path, optimize=True)


def _chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        sys.exit("no Chromium was found; install it (on Debian: apt install chromium)")
    return found


def _used(browser: Browser, address: str, size: dict[str, int], scheme: str) -> Page:
    """The page after a text was written, a token chosen and two blocks switched off."""
    page = browser.new_page(viewport=size, color_scheme=scheme)
    page.goto(address, wait_until="domcontentloaded")
    page.get_by_label("Prompt").fill(PROMPT)
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_role("status").filter(has_text="Wrote").wait_for()
    page.locator("button.mu-token").nth(6).click()
    page.get_by_text("Token 7:").wait_for()
    for name in ("I", "C1"):
        page.locator(f"#mu-switches input[name='{name}']").uncheck()
    page.get_by_role("heading", name="Without I, C1").wait_for()
    page.locator("body").click(position={"x": 2, "y": 2})  # no focus ring where the last click was
    page.wait_for_timeout(500)
    return page


if __name__ == "__main__":
    main()
