"""Install the package as colcon expects of the build type ``ament_python``."""

from setuptools import setup  # type: ignore[import-untyped,unused-ignore]

setup(
    name="edgevlm_ros",
    version="0.1.0",
    description="A ROS 2 node that asks a vision-language model about the newest image of a camera",
    license="Apache-2.0",
    packages=["edgevlm_ros"],
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/edgevlm_ros"]),
        ("share/edgevlm_ros", ["package.xml"]),
        ("share/edgevlm_ros/config", ["config/large_images.xml", "config/path_is_clear.yaml"]),
    ],
    install_requires=["setuptools"],
    entry_points={"console_scripts": ["watch = edgevlm_ros.node:main"]},
)
