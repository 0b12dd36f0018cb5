"""The command `her2`:  her2 study NAME    makes the folder of a study, or renews its pipeline.
                     her2 check TABLE   says what each patient of a table of one's own would become, and why not.
                     her2 predict CASE  says what a study's networks answer of one examination; research only.
                     her2 export RUN    puts a run's frozen weights into a folder that loads without the study.
                     her2 verify TABLE  puts somebody else's predictions beside the study's and the paper's.

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

from her2core.config import MERGED, OWN, Study, build, read_yaml, root, stages_of, tracked
from her2core.records import whole

_HEADER = "# Made from the top-level dvc.yaml by: her2 study {name}.  Not to be edited.\n"


def pipeline(name: str, top: Path) -> str:
    """The text of studies/`name`/dvc.yaml: the top level's stages, run from the top.

    Each tracks the study's own parameters and those of the top level that they are merged with.
    """
    stages = stages_of(top / "dvc.yaml")
    tour = stages.pop("phantom", {})  # the same in every study
    made = {path for out in tour.get("outs", ()) for path in out}
    for stage, definition in stages.items():
        definition["deps"] = [path for path in definition["deps"] if path not in made]
        keys = tracked(definition)
        common = [key for key in MERGED if key in keys]
        own = {f"studies/{name}/params.yaml": [key for key in (*OWN, *MERGED) if key in keys]}
        stages[stage] = {"wdir": "../.."} | definition | {"params": [*common, own]}
    yaml, text = YAML(), io.StringIO()
    yaml.width = 200
    plots = [{path: {}} if isinstance(path, str) else path for path in read_yaml(top / "dvc.yaml").get("plots", [])]
    shown = {f"../../{path}": how for plot in plots for path, how in plot.items()}  # plots have no wdir
    yaml.dump({"stages": stages, "plots": [shown]}, text)
    return _HEADER.format(name=name) + text.getvalue()


def make_study(name: str, top: Path, table: str | None = None) -> list[Path]:
    """Write a study's parameters, unless they are there, and its pipeline; returns the files written.

    table: of patients of one's own, relative to `top`; their study has other parameters to begin with.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,40}", name) or name in ("templates", "sample"):
        expected = "a name of small letters, digits, _ and -, such as my_hospital, and neither templates nor sample"
        raise ValueError(f"study {name!r}: expected {expected}")
    if name == read_yaml(top / "params.yaml").get("name"):
        raise ValueError(f"{name} is the top-level study: its parameters are params.yaml, its pipeline dvc.yaml")
    folder = top / "studies" / name
    template = top / "studies" / "templates" / f"{'own' if table else 'tiny' if name == 'tiny' else 'new'}.yaml"
    texts = {folder / "dvc.yaml": pipeline(name, top)}
    if not (folder / "params.yaml").is_file():
        text = template.read_text("utf-8").replace("{name}", name)
        texts[folder / "params.yaml"] = text.replace("{table}", table or "")
    elif table:
        raise ValueError(f"{folder / 'params.yaml'} is there already: set acquire.table in it")
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
    study.add_argument("--table", help="a CSV with patients of your own, inside the compendium")
    own = commands.add_parser("check", help="what each patient of a table of one's own would become, and why not")
    own.add_argument("table", metavar="TABLE", help="the CSV, or the name of a study that has one")
    case = commands.add_parser("predict", help="a page and a picture of one examination; research only")
    case.add_argument("case", metavar="CASE", help="folder with dce/ and seg.dcm, mask/ or a box in case.json")
    case.add_argument("--cohort", metavar="STUDY", help="whose networks answer; the top-level study's without it")
    case.add_argument("--model", metavar="FOLDER", help="an exported folder answers instead; no study is needed")
    out = commands.add_parser("export", help="a run's frozen weights as a folder that loads without the study")
    out.add_argument("name", metavar="RUN", help="such as thda-channel_q98-raw or vit")
    out.add_argument("--to", metavar="FOLDER", required=True, help="a new one")
    out.add_argument("--cohort", metavar="STUDY", help="whose run it is; the top-level study's without it")
    out.add_argument("--onnx", action="store_true", help="an ONNX file for each network, too")
    other = commands.add_parser("verify", help="somebody else's predictions beside the study's and the paper's")
    other.add_argument("table", metavar="PREDICTIONS", help="a CSV with columns patient and probability")
    other.add_argument("--cohort", metavar="STUDY", help="whose patients they are, if not the top-level study's")
    study.set_defaults(run=_make)
    own.set_defaults(run=_check)
    case.set_defaults(run=_predict)
    out.set_defaults(run=_export)
    other.set_defaults(run=_verify)
    chosen = vars(parser.parse_args(arguments))
    try:
        if status := chosen.pop("run")(**chosen):
            sys.exit(status)
    except (ValueError, OSError) as error:
        sys.exit(f"her2: {error}")
    except KeyboardInterrupt:
        sys.exit("\nher2: stopped")


def _make(name, table):
    top = root()
    path = (top / (table or "")).resolve()
    if table and not (path.is_file() and path.is_relative_to(top.resolve())):
        raise ValueError(f"no table {path}; expected a CSV inside the compendium, named from its folder")
    for path in make_study(name, top, table):
        print(f"written: {path.relative_to(top)}")
    print(f"Run it with: dvc repro studies/{name}/dvc.yaml")


def _check(table):
    """Exit status 1 where a patient cannot be used."""
    from her2core.cohorts import own  # slow to load

    if Path(table).is_file():
        template = read_yaml(root() / "studies/templates/own.yaml")["acquire"]
        config = build(own.FolderConfig, template | {"table": str(Path(table).resolve())}, "acquire")
        folded = None
    else:
        if not re.fullmatch(r"[\w-]+", table):
            raise ValueError(
                f"no table {Path(table).resolve()}; expected a CSV, or the name of a study that has one"
            )
        study = Study.open(table)
        if (source := study.section("acquire").get("source")) != "folder":
            raise ValueError(
                f"{table}: its patients come from {source!r}, expected a study with a table of one's own"
            )
        config, folded = study.params("acquire", own.FolderConfig), bool(study.section("cohort")["folds"])
    lines, good = own.check_table(config, folded)
    print(*lines, sep="\n")
    return int(not good)


def _predict(case, cohort, model):
    if model and cohort:
        raise ValueError("--cohort and --model: expected one of them")
    if not (Path(case) / "dce").exists():
        raise ValueError(
            f"no {Path(case).resolve() / 'dce'}; expected the images there, and a mask: see her2 predict -h"
        )
    study = None if model else Study.open(cohort)
    from her2core.report import frozen, one_case  # slow to load

    found = one_case.examine(study or frozen.read_model(Path(model)), case)
    print(*one_case.sentences(found), "Research only, not for clinical use.", sep="\n")
    for doubt in found.doubts:
        print(f"- {doubt}")
    for path in one_case.write_case(found, study.results / "cases" if study else Path("cases")):
        print(f"written: {path.relative_to(study.top) if study else path}")


def _export(name, to, cohort, onnx):
    study = Study.open(cohort)
    from her2core.report import export  # slow to load

    written = export.write_model(study, name, Path(to), onnx)
    print(f"written: {to}, networks: {len(written.networks)}; its README.md says how to use them")


def _verify(table, cohort):
    study = Study.open(cohort)
    from her2core.report import verify  # slow to load

    print(*verify.said(study, verify.verified(study, Path(table))), sep="\n")


if __name__ == "__main__":
    main()
