"""Files that describe the package agree with setup.cfg."""

import configparser

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def setup_cfg():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def requirements(text):
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [Requirement(line) for line in lines if line]


@pytest.mark.parametrize("python", ["3.11", "3.13"])
def test_every_requirement_has_one_tested_version(setup_cfg, python):
    environment = {"python_version": python}
    tested = [
        (canonicalize_name(pin.name), next(iter(pin.specifier)).version)
        for pin in requirements((ROOT / "constraints.txt").read_text())
        if pin.marker is None or pin.marker.evaluate(environment)
    ]
    versions = dict(tested)
    assert len(versions) == len(tested)
    extras = setup_cfg["options.extras_require"]
    texts = [setup_cfg["options"]["install_requires"], *(extras[name] for name in ("transfer", "bench", "app", "dev"))]
    for requirement in requirements("\n".join(texts)):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def test_the_citation_has_the_version_and_licence_of_the_package(setup_cfg):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (
        setup_cfg["metadata"]["version"],
        setup_cfg["metadata"]["license"],
    )
