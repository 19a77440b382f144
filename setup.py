"""The packages: those in nse_plugin/, and the folder hparams/, installed as nse_plugin.yamls."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["nse_plugin", "nse_plugin.*"]), "nse_plugin.yamls"],
    package_dir={"nse_plugin.yamls": "hparams"},
)
