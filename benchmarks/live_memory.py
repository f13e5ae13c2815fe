"""Measure memory leaks of the tab Live: ``python -m benchmarks.live_memory FOLDER [--minutes 30]``.

It starts ``edgevlm demo`` with the built-in model and opens the tab Live in Chromium, with Chromium's moving
test image as the camera. It samples the memory of the server's process and the page's JavaScript heap. The
result is in FOLDER/live_memory.json. The exit status is 1 if the server grew by more than `ALLOWED_MB` after
the first `WARM_UP` of the time. Other work on the machine has no effect, since only memory is measured.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.files import environment
from edgevlm.evaluation.report import write_json
from edgevlm.runtimes import system
from tests.support import browser

WARM_UP = 1 / 6
"""Share of the time after which the server must not grow any more."""

ALLOWED_MB = 10

SECONDS_BETWEEN_LOOKS = 5


def watch_memory(server: int, address: str, minutes: float) -> list[dict[str, float]]:
    """Sample minutes since the start, answers, and MB of server and page, every few seconds."""
    found: list[dict[str, float]] = []
    answers = 0

    def count(request: Any) -> None:
        nonlocal answers
        answers += '"fn_name":"look"' in (request.post_data or "")

    with browser.chromium() as chromium, browser.visit(chromium, address) as page:
        page.on("requestfinished", count)
        developer = page.context.new_cdp_session(page)
        developer.send("Performance.enable")
        browser.open_tab(page, "Live")
        page.locator("#live-camera").get_by_role("button", name="Start", exact=True).click()
        page.locator("#live .age").get_by_text("old").wait_for()
        start = time.monotonic()
        while (passed := (time.monotonic() - start) / 60) < minutes:
            metrics = developer.send("Performance.getMetrics")["metrics"]
            heap = next(entry["value"] for entry in metrics if entry["name"] == "JSHeapUsedSize")
            resident = system.resident_memory(server)
            if resident is None:
                raise RuntimeError("this system does not report the memory of a process")
            found.append(
                {
                    "minutes": round(passed, 2),
                    "answers": answers,
                    "server_mb": round(resident / 1e6, 1),
                    "page_mb": round(heap / 1e6, 1),
                }
            )
            page.wait_for_timeout(SECONDS_BETWEEN_LOOKS * 1000)
    return found


def summary(found: list[dict[str, float]], minutes: float) -> dict[str, Any]:
    """Return the summary of the samples."""
    warm = [entry for entry in found if entry["minutes"] >= WARM_UP * minutes]
    server = [entry["server_mb"] for entry in warm]
    half = len(server) // 2
    by_minute = {int(entry["minutes"]): entry for entry in reversed(found)}
    return {
        "minutes": minutes,
        "answers": int(found[-1]["answers"]),
        "server_mb": {
            "start": found[0]["server_mb"],
            "after warm-up": server[0],
            "most after warm-up": max(server),
            "end": server[-1],
            "grown": round(max(server) - server[0], 1),
            "median of the second half less that of the first": round(
                median(server[half:]) - median(server[:half]), 1
            ),
        },
        "page_mb": {
            "most": max(entry["page_mb"] for entry in warm),
            "end": warm[-1]["page_mb"],
        },
        "by_minute": [by_minute[minute] for minute in sorted(by_minute)],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    arguments = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    server = subprocess.Popen([sys.executable, "-m", "edgevlm", "demo", "--port", str(port)])
    try:
        for _ in range(120):
            try:
                httpx.get(address)
                break
            except httpx.TransportError:
                time.sleep(1)
        result = summary(watch_memory(server.pid, address, arguments.minutes), arguments.minutes)
    finally:
        server.terminate()
        server.wait()
    print(result["server_mb"])
    about = {name: value for name, value in environment(1).items() if name != "rounds"}
    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_json(arguments.folder / "live_memory.json", about | result)
    return int(result["server_mb"]["grown"] > ALLOWED_MB)


if __name__ == "__main__":
    sys.exit(main())
