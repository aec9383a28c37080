"""constraints.txt, environment.yml and what the documents say of versions agree with pyproject.toml, the one list."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [Requirement(line) for group in (PROJECT["dependencies"], *EXTRAS.values()) for line in group]
DIRECT = {canonicalize_name(each.name): each for each in REQUIREMENTS if each.name != PROJECT["name"]}


def pins() -> dict[str, str]:
    """The version that constraints.txt pins each package to, by canonical name."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines())
    found: dict[str, str] = {}
    for line in filter(None, lines):
        name, equals, version = line.partition("==")
        assert equals, f"constraints.txt: {line!r} pins no exact version"
        assert str(Version(version)) == version
        assert canonicalize_name(name) not in found, f"constraints.txt: {name} stands twice"
        found[canonicalize_name(name)] = version
    return found


def pip_lines() -> list[str]:
    """What environment.yml hands to pip."""
    content = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (lines,) = (entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict))
    return lines


@pytest.mark.parametrize("name", sorted(DIRECT))
def test_each_dependency_is_pinned_to_a_version_that_it_allows(name: str) -> None:
    pin = pins().get(name)
    assert pin is not None, f"{name} is in pyproject.toml but not in constraints.txt"
    assert DIRECT[name].specifier.contains(pin), (
        f"constraints.txt pins {name}=={pin}, pyproject.toml asks {DIRECT[name]}"
    )


def test_extras_that_contain_other_extras_name_real_ones() -> None:
    for requirement in REQUIREMENTS:
        if requirement.name == PROJECT["name"]:
            assert requirement.extras <= EXTRAS.keys()


def test_the_environment_takes_a_python_that_the_project_supports() -> None:
    content = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert content["name"] == PROJECT["name"]
    (python,) = (
        entry for entry in content["dependencies"] if isinstance(entry, str) and entry.partition("=")[0] == "python"
    )
    version = python.partition("=")[2]
    assert version == "3.11"
    assert SpecifierSet(PROJECT["requires-python"]).contains(version)


def test_the_environment_installs_the_project_and_nothing_besides() -> None:
    content = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    by_conda = {entry.partition("=")[0] for entry in content["dependencies"] if isinstance(entry, str)}
    assert by_conda == {"python", "pip"}
    constraint, project = pip_lines()
    assert constraint == "-c constraints.txt"
    match = re.fullmatch(r"-e \.\[([a-z,]+)\]", project)
    assert match is not None
    assert set(match[1].split(",")) == {"notebook", "test"} <= EXTRAS.keys()


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_documents_install_with_real_extras_and_the_constraints(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    commands = re.findall(r"pip install -e [^\n`&]+", text)
    assert commands
    for command in commands:
        assert command.strip().endswith("-c constraints.txt"), f"{document}: {command!r} leaves the versions open"
        extras = re.search(r"\.\[([a-z,]+)\]", command)
        assert extras is None or set(extras[1].split(",")) <= EXTRAS.keys()


def test_the_least_versions_of_the_security_page_are_those_of_the_project() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"`([a-z_]+)>=([0-9.]+)`", text))
    assert stated.keys() >= {"torch", "transformers", "filelock", "safetensors"}
    for name, version in stated.items():
        assert f">={version}" in str(DIRECT[canonicalize_name(name)].specifier).split(",")
