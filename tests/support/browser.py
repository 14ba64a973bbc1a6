"""A real browser opens a page and answers a question about it: page, JavaScript ─► the value of an expression."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
_WRAPPER = """<!doctype html><body><iframe src="{source}" width="{width}" height="900" style="border: 0"></iframe>
<script>
setTimeout(() => {{
  const page = document.querySelector('iframe').contentWindow, {{document: at}} = page;
  const answer = (() => {{ {script} }})();
  document.body.setAttribute('data-answer', JSON.stringify(answer));
}}, 1500);
</script></body>"""


def dom_of(url: str, folder: Path, *, dark: bool = False) -> str:
    """Return a page's document after five seconds.

    Args:
        url: of the page.
        folder: for the browser's own files.
        dark: the preferred scheme.
    """
    assert BROWSER is not None
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
        f"--user-data-dir={folder / 'profile'}", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--virtual-time-budget=5000", "--dump-dom",
    ]  # fmt: skip
    return subprocess.run(
        [BROWSER, *options, url], capture_output=True, encoding="utf-8", timeout=120, check=True
    ).stdout


def answer(source: Path, script: str, *, width: int = 1280, dark: bool = False) -> Any:
    """Return what a script returns when a page has been open for a second and a half.

    Args:
        source: the page's file; files are put beside it.
        script: the body of a function of `page`, the window, and `at`, its document.
        width: of the window; a browser's own has 500 pixels at least, so the page is in a frame.
        dark: the preferred scheme.
    """
    wrapper = source.with_name(f"wrapper-{width}.html")
    wrapper.write_text(_WRAPPER.format(source=source.name, width=width, script=script), encoding="utf-8")
    (text,) = re.findall(r'data-answer="([^"]*)"', dom_of(wrapper.as_uri(), source.parent, dark=dark))
    return json.loads(html.unescape(text))
