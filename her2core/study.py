"""The command `her2`:  her2 study NAME   makes the folder of a study, or renews its pipeline.

studies/NAME/params.yaml holds what differs from the top level's; it is written once, from studies/templates/, and
then belongs to the user.  studies/NAME/dvc.yaml is the top level's pipeline with that study's parameters; it is
written anew every time.
"""

import argparse
import io
import re
import sys
from pathlib import Path

from ruamel.yaml import YAML

from her2core.config import MERGED, OWN, read_yaml, root, stages_of, tracked
from her2core.records import whole

_HEADER = "# Made from the top-level dvc.yaml by: her2 study {name}.  Not to be edited.\n"


def pipeline(name: str, top: Path) -> str:
    """The text of studies/`name`/dvc.yaml: the top level's stages, run from the top.

    Each tracks the study's own parameters and those of the top level that they are merged with.
    """
    stages = stages_of(top / "dvc.yaml")
    stages.pop("phantom", None)  # its tour is the same in every study
    for stage, definition in stages.items():
        keys = tracked(definition)
        common = [key for key in MERGED if key in keys]
        own = {f"studies/{name}/params.yaml": [key for key in (*OWN, *MERGED) if key in keys]}
        stages[stage] = {"wdir": "../.."} | definition | {"params": [*common, own]}
    yaml, text = YAML(), io.StringIO()
    yaml.width = 200
    yaml.dump({"stages": stages}, text)
    return _HEADER.format(name=name) + text.getvalue()


def make_study(name: str, top: Path) -> list[Path]:
    """Write a study's parameters, unless they are there, and its pipeline; returns the files written."""
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,40}", name) or name == "templates":
        raise ValueError(f"study {name!r}: expected a name of small letters, digits, _ and -, such as my_hospital")
    if name == read_yaml(top / "params.yaml").get("name"):
        raise ValueError(f"{name} is the top-level study: its parameters are params.yaml, its pipeline dvc.yaml")
    folder = top / "studies" / name
    template = top / "studies" / "templates" / (f"{name}.yaml" if name == "tiny" else "new.yaml")
    texts = {folder / "dvc.yaml": pipeline(name, top)}
    if not (folder / "params.yaml").is_file():
        texts[folder / "params.yaml"] = template.read_text("utf-8").replace("{name}", name)
    for path, text in texts.items():
        with whole(path) as part:
            part.write_text(text, "utf-8")
    return sorted(texts)


def main(arguments: list[str] | None = None) -> None:
    """The console script."""
    parser = argparse.ArgumentParser(prog="her2", description="Studies of HER2 on breast DCE-MRI.")
    commands = parser.add_subparsers(required=True)
    study = commands.add_parser("study", help="make studies/NAME, or renew its dvc.yaml")
    study.add_argument("name", metavar="NAME")
    chosen = parser.parse_args(arguments)
    try:
        top = root()
        written = make_study(chosen.name, top)
    except (ValueError, OSError) as error:
        sys.exit(f"her2 study: {error}")
    for path in written:
        print(f"written: {path.relative_to(top)}")
    print(f"Run it with: dvc repro studies/{chosen.name}/dvc.yaml")


if __name__ == "__main__":
    main()
