"""What is installed: the same packages with and without hashes, from no place in particular."""

import re

import pytest
from house import TOP


def requirements(name):
    """{requirement with version and marker: its hashes} of a list of packages."""
    found = {}
    for line in (TOP / name).read_text().splitlines():
        if re.match(r"\w", line):
            last = found[line.rstrip(" \\")] = []
        elif digest := re.fullmatch(r"    --hash=sha256:([0-9a-f]{64})(?: \\)?", line):
            last.append(digest[1])
        else:
            assert re.match(r" +#", line), f"{name}: {line!r}"
    return found


def test_both_lists_have_the_same_names_versions_and_markers():
    assert list(requirements("requirements.lock")) == list(requirements("requirements.txt"))


@pytest.mark.parametrize("name", ["requirements.lock", "requirements.uv.lock"])
def test_every_package_is_held_to_one_version_by_hashes(name):
    found = requirements(name)
    assert [r for r, hashes in found.items() if "==" not in r or not hashes] == []
    assert all(len(set(hashes)) == len(hashes) for hashes in found.values())


def test_make_installs_nothing_without_a_hash_and_conda_has_the_list_without():
    makefile = (TOP / "Makefile").read_text()
    recipe = re.search(r"^\.venv/ok:(.*)\n((?:\t.*\n)+)", makefile, flags=re.M)
    assert recipe[1].split() == ["requirements.lock", "requirements.uv.lock", "pyproject.toml"]
    installs = [line for line in recipe[2].replace("\\\n", "").splitlines() if "pip install" in line]
    assert len(installs) == 3
    assert all("--require-hashes" in line or "--no-deps -e ." in line for line in installs)
    assert all("--build-constraint requirements.lock" in line for line in installs if "/uv" in line)
    assert list(requirements("requirements.uv.lock"))[0].startswith("uv==")
    assert "--hash" not in (TOP / "requirements.txt").read_text()
