"""Install ROS 2 and dora beside the environment that runs this script, for their tests.

Their wheels are on PyPI for some systems only. They go into an environment of their own, ``robots``, inside
this one, since ROS 2 changes the start of every Python process and brings its own NumPy. It sees the packages
of this environment after its own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

PACKAGES = [
    "ros-rclpy==9.1.2",
    "ros-diagnostic-msgs==5.5.1",
    "ros-sensor-msgs==5.5.1",
    "ros-std-msgs==5.5.1",
    "ros-rmw-fastrtps-cpp==9.3.3",
    "ros-fastdds==3.2.3",
    "dora-rs==1.1.0",
    "dora-rs-cli==1.1.0",
    "setuptools<81",
]
ENVIRONMENT = Path(sys.prefix) / "robots"


def main() -> int:
    python = str(ENVIRONMENT / "bin" / "python")
    # Nothing is compiled; empy is Python without a wheel.
    wheels = ["--only-binary", ":all:", "--no-binary", "empy"]
    install = [python, "-m", "pip", "install", "--quiet", *wheels, *PACKAGES]
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
        subprocess.run(install, check=True)
        query = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        packages = subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()
    except subprocess.CalledProcessError as error:
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        print(f"ROS 2 and dora cannot be installed here: {error}", file=sys.stderr)
        return 1
    line = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    (Path(packages) / "zz_environment.pth").write_text(line, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
