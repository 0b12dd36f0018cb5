"""`her2 study NAME`: the folder of a study."""

import pytest
from house import TOP
from ruamel.yaml import YAML

from her2core import study as s
from her2core.config import Study


@pytest.fixture
def compendium(tmp_path, monkeypatch):
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_bytes((TOP / name).read_bytes())
    (tmp_path / "studies/templates").mkdir(parents=True)
    for path in (TOP / "studies/templates").iterdir():
        (tmp_path / "studies/templates" / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["tiny", "my_hospital"])
def test_a_new_study_can_be_opened_and_its_pipeline_writes_its_own_folders(compendium, name, capsys):
    s.main(["study", name])
    assert f"Run it with: dvc repro studies/{name}/dvc.yaml" in capsys.readouterr().out
    assert Study.open(name).name == name
    stages = YAML(typ="safe").load(compendium / f"studies/{name}/dvc.yaml")["stages"]
    assert all("${name}" in str(stage["outs"]) for stage in stages.values())


def test_the_parameters_are_the_users_and_the_pipeline_is_renewed(compendium):
    s.make_study("mine", compendium)
    folder = compendium / "studies/mine"
    text = (folder / "params.yaml").read_text() + "# mine\n"
    (folder / "params.yaml").write_text(text)
    (folder / "dvc.yaml").write_text("stages: {}\n")
    assert s.make_study("mine", compendium) == [folder / "dvc.yaml"]
    assert (folder / "params.yaml").read_text() == text
    assert (folder / "dvc.yaml").read_text() == s.pipeline("mine", compendium)


@pytest.mark.parametrize("name", ["My", "a b", "../x", "templates", ""])
def test_a_name_that_is_no_folder_is_refused(compendium, name):
    with pytest.raises(ValueError, match="expected a name of small letters"):
        s.make_study(name, compendium)


def test_a_study_of_ones_own_table_begins_with_that_table(compendium):
    (compendium / "data").mkdir()
    (compendium / "data/patients.csv").write_text("patient\n")
    s.main(["study", "clinic", "--table", "data/patients.csv"])
    assert Study.open("clinic").section("acquire")["table"] == "data/patients.csv"
    with pytest.raises(SystemExit, match="studies/clinic/params.yaml is there already: set acquire.table in it"):
        s.main(["study", "clinic", "--table", "data/patients.csv"])


def test_a_table_that_is_not_there_makes_no_study(compendium):
    with pytest.raises(SystemExit, match="no table .*data/none.csv; expected a CSV"):
        s.main(["study", "clinic", "--table", "data/none.csv"])
    assert not (compendium / "studies/clinic").exists()


def test_the_top_level_study_has_no_folder(compendium):
    with pytest.raises(ValueError, match="embedded is the top-level study"):
        s.make_study("embedded", compendium)


def test_outside_a_compendium_the_command_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="her2: no params.yaml in"):
        s.main(["study", "x"])


def test_the_sample_is_no_study_to_be_made(compendium):
    with pytest.raises(
        SystemExit, match="her2: study 'sample': expected a name .* and neither templates nor sample"
    ):
        s.main(["study", "sample"])


def test_a_table_outside_the_compendium_makes_no_study(compendium, tmp_path_factory):
    outside = tmp_path_factory.mktemp("elsewhere") / "patients.csv"
    outside.write_text("patient\n")
    with pytest.raises(SystemExit, match="no table .*patients.csv; expected a CSV inside the compendium"):
        s.main(["study", "clinic", "--table", str(outside)])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("data/none.csv", "no table .*/data/none.csv; expected a CSV, or the name of a study that has one"),
        ("embedded", "embedded: its patients come from 'phantom', expected a study with a table of one's own"),
        ("nobody", "no study 'nobody'; there are embedded"),
    ],
)
def test_what_cannot_be_checked_is_told(compendium, table, message):
    with pytest.raises(SystemExit, match=f"^her2: {message}"):
        s.main(["check", table])


def test_an_interrupted_command_says_so_in_one_line(compendium, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(s, "make_study", interrupted)
    with pytest.raises(SystemExit, match="her2: stopped$"):
        s.main(["study", "tiny"])
