"""Check that the repository is ready to publish a version: python scripts/check_release.py [TAG]

The tag must be "v" and the version of the package. The changelog's newest section must have this version and
a date. No fragment may be left in changelog.d/. Without a tag, nothing is checked.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def package_version(repository: Path) -> str:
    """Return `edgevlm.__version__` without importing the package."""
    text = (repository / "edgevlm" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    if found is None:
        raise SystemExit("edgevlm/__init__.py has no line __version__ = ...")
    return found.group(1)


def problems(tag: str, repository: Path = REPOSITORY) -> list[str]:
    """Return what is wrong with publishing `tag`, one sentence each; empty if nothing is."""
    version = package_version(repository)
    found = []
    if tag != f"v{version}":
        found.append(f"the tag is {tag}, but edgevlm.__version__ is {version}: tag v{version}")
    changelog = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## .*$", changelog, re.MULTILINE)
    title = newest.group() if newest else "nothing"
    if not re.fullmatch(rf"## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", title):
        found.append(
            f'CHANGELOG.md begins with "{title}": the release needs "## {version} (YYYY-MM-DD)"'
        )
    folder = repository / "changelog.d"
    left = sorted(path.name for path in folder.iterdir() if path.name != "README.md")
    if left:
        found.append(f"changelog.d/ still has {', '.join(left)}: run towncrier build")
    return found


def main(arguments: list[str]) -> int:
    if len(arguments) > 1:
        raise SystemExit("usage: python scripts/check_release.py [TAG]")
    found = problems(arguments[0]) if arguments else []
    for problem in found:
        print(f"not ready: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
