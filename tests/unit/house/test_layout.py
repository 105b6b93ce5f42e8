"""Where things lie, and the traps of where they must not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

from servewright_api import __version__
from support.tree import ROOT, project_files, text_of

TOP = {
    *("pyproject.toml", "setup.py", "README.md", "operator", "runtime", "csrc", "charts", "tests"),
    *("docs", "examples", "bench", "hack", "Makefile", "LICENSE", "CHANGELOG.md"),
    *("CONTRIBUTING.md", "requirements.lock"),
}
MAX_MODULE_LINES = 600
# Of our images, where no other is given: its public name, whichever registry it is fetched from.
DEFAULT_BASE = "docker.io/library/python"


def run_python(code: str, *arguments: str) -> str:
    """What a fresh interpreter in the root prints."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.strip()


def test_operator_stays_the_name_of_the_standard_librarys_module() -> None:
    traps = [
        path
        for path in project_files()
        if path.name == "operator.py" or path.parts[-2:] == ("operator", "__init__.py")
    ]
    assert traps == []
    found = run_python("import operator; print(operator.__file__)")
    assert Path(found) == Path(sysconfig.get_path("stdlib")) / "operator.py"


def test_no_test_folder_is_a_package() -> None:
    assert [p for p in project_files() if p.parts[0] == "tests" and p.name == "__init__.py"] == []


def test_the_top_level_holds_only_what_the_readme_maps() -> None:
    entries = {path.parts[0] for path in project_files()}
    assert {name for name in entries if not name.startswith(".")} <= TOP


def test_no_module_outgrows_one_noun() -> None:
    long = {
        str(path): lines
        for path in project_files()
        if path.suffix in (".py", ".cpp", ".h")
        and (lines := text_of(path).count("\n")) > MAX_MODULE_LINES
    }
    assert long == {}


def test_nothing_names_a_machine_or_a_registry() -> None:
    homes = "|".join(("root", "Users", "work", "mnt"))
    hosts = "|".join(("pypi", "pythonhosted", "debian", "npmjs", "docker"))
    named = re.compile(rf"(?<![\w.~$)}}/-])/({homes})/\w|\b({hosts})\.(org|com|io)\b")
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in project_files()
        for number, line in enumerate(text_of(path).splitlines(), start=1)
        if named.search(line.replace(DEFAULT_BASE, ""))
    ]
    assert found == []


def test_there_is_one_version() -> None:
    assert metadata.version("servewright") == __version__
    changelog = text_of(Path("CHANGELOG.md"))
    newest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    assert newest is not None
    assert newest[1] == __version__


def test_the_wheel_holds_every_module_and_nothing_else() -> None:
    code = """
import json, sys
from setuptools import Distribution
distribution = Distribution({"script_name": "setup.py"})
distribution.parse_config_files(["pyproject.toml"])
command = distribution.get_command_obj("build_py")
command.ensure_finalized()
packaged = [module[-1] for module in command.find_all_modules()]
packaged += [f"{source}/{name}" for _, source, _, names in command.data_files for name in names]
print(json.dumps(packaged))
"""
    packaged = {Path(name) for name in json.loads(run_python(code))}
    wanted = {
        path
        for path in project_files()
        if path.parts[0] in ("operator", "runtime")
        and (path.suffix in (".py", ".pyi") or path.name == "py.typed")
    }
    assert packaged == wanted


def test_requirements_are_versions_and_name_no_place() -> None:
    lines = [
        line for line in text_of(Path("requirements.lock")).splitlines() if not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[a-z0-9-]+==[A-Za-z0-9.!]+", line) for line in lines)
    assert "torch==2.13.0" in lines
