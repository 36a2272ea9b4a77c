"""The ablations: every arm is a recipe, a stopped study goes on, and the report's figures are those of a calculation by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from recipes.ablations import __main__ as command
from recipes.ablations.arms import ALIGNED, REFERENCE, SPEECH_ARMS, TEXT_ARMS, Arm, Steps, arm_recipe
from recipes.ablations.checkpoint import word_tokenizer
from recipes.ablations.data import text_lines
from recipes.ablations.report import Judged, as_csv, table
from speech_xl.config_file import load_config
from training.loop import Loop
from training.recipe import Recipe

STEPS = Steps(base=3, memory=2, alignment=1, answering=1)
SIZES = command.Sizes(text=12, held=3, clips=10, speech=3, held_speech=2)


def arm(name: str) -> Arm:
    return next(one for one in (*TEXT_ARMS, *SPEECH_ARMS) if one.name == name)


def without_change(recipe: Recipe, one: Arm) -> Recipe:
    """The recipe of `one` without what it changes."""
    return arm_recipe(Arm(one.name, one.claim, alignment=one.alignment), STEPS, recipe.seed)


@pytest.mark.parametrize("one", [*TEXT_ARMS, *SPEECH_ARMS], ids=lambda one: one.name)
def test_an_arm_is_the_reference_but_for_its_change(one: Arm) -> None:
    recipe, plain = arm_recipe(one, STEPS, 5), without_change(arm_recipe(one, STEPS, 5), one)
    assert recipe.seed == 5 and sum(stage.steps for stage in recipe.stages) == (4 if one.alignment is not None else 2)
    differs = recipe.stages != plain.stages or recipe.sst != plain.sst
    assert differs == (one not in (REFERENCE, *SPEECH_ARMS))
    assert [stage.batch for stage in recipe.stages] == [stage.batch for stage in plain.stages]


def test_every_word_of_the_study_is_a_token() -> None:
    tokenizer = word_tokenizer()
    for line in text_lines(50, (1, 3), seed=3):
        for text in (line["heard"], line["question"], line["answer"]):
            assert "<|unknown|>" not in tokenizer.encode(text).tokens


def test_questions_have_the_answers_of_what_is_said() -> None:
    lines = list(text_lines(30, (2, 3), seed=1))
    assert {line["kind"] for line in lines} == {"said", "absent"}
    for line in lines:
        assert line["answer"] == "not mentioned" if line["kind"] == "absent" else line["answer"] in line["heard"]
    assert lines == list(text_lines(30, (2, 3), seed=1)) != list(text_lines(30, (2, 3), seed=2))


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("study")
    study = command.Study(output, STEPS, SIZES)
    judged = study.run([1, 2], [REFERENCE, arm("appended"), arm("shared projections")])
    assert [(one.arm, one.seed) for one in judged[:2]] == [("reference", 1), ("appended", 1)]
    return output


def test_arms_are_checkpoints_of_their_own_kind(studied: Path) -> None:
    def config(name: str):
        return load_config(studied / "runs" / name / "model")

    assert config("appended-1").sst.appended and not config("reference-1").sst.appended
    assert not config("shared-projections-2").sst.own_projections


def test_a_study_that_is_done_trains_and_judges_nothing(studied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p: p.read_bytes() for p in studied.glob("re*.*")}
    monkeypatch.setattr(Loop, "_train", lambda *_: pytest.fail("a stage was trained again"))
    monkeypatch.setattr(command, "judge", lambda *_: pytest.fail("an arm was judged again"))
    command.Study(studied, STEPS, SIZES).run([1, 2], [REFERENCE, arm("appended"), arm("shared projections")])
    assert {p: p.read_bytes() for p in studied.glob("re*.*")} == before and len(before) == 3


def test_a_killed_study_has_the_figures_of_one_that_was_not(
    studied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(command, "judge", kill)
        with pytest.raises(Killed):
            command.Study(tmp_path, STEPS, SIZES).run([1], [REFERENCE])
    (tmp_path / "results.jsonl").write_text('{"arm": "refer')  # cut short
    command.Study(tmp_path, STEPS, SIZES).run([1], [REFERENCE])
    whole = (studied / "results.jsonl").read_text().splitlines()[0]
    assert (tmp_path / "results.jsonl").read_text().splitlines() == [whole]


@pytest.mark.skipif(not (shutil.which("espeak-ng") and shutil.which("flite")), reason="needs espeak-ng and flite")
def test_the_arms_about_the_adapter_hear_speech(tmp_path: Path) -> None:
    study = command.Study(tmp_path, STEPS, SIZES)
    judged = study.run([1], list(SPEECH_ARMS))
    assert [one.arm for one in judged] == ["aligned", "not aligned"]
    assert 0 <= judged[0].share("8") <= 1 and {k for k, _ in judged[0].counts} <= {"said", "absent", "transcript"}
    assert {p.name.split("-")[0] for p in (tmp_path / "runs" / "speech" / "stages").iterdir()} == {
        "alignment",
        "answers",
        "memory",
    }
    assert load_config(tmp_path / "runs" / "speech" / "model").adapter is not None


def test_the_report_is_what_a_calculation_by_hand_gives() -> None:
    def judged(name: str, seed: int, right: int) -> Judged:
        counts = {("said", ratio): (right, 10) for ratio in ("raw", "2", "4", "8", "16")}
        return Judged(name, seed, counts | {("absent", "8"): (1, 4)})

    found = [judged("reference", 1, 5), judged("reference", 2, 7), judged("appended", 1, 4), judged("appended", 2, 2)]
    rows = table(TEXT_ARMS, REFERENCE, found).splitlines()
    assert rows[0] == "| arm | raw | 2 | 4 | 8 | 16 |" and len(rows) == 4
    assert rows[2] == "| reference (2) |" + " 0.60 (0.50 to 0.70) |" * 5
    assert rows[3] == "| appended (2) |" + " 0.30 (0.20 to 0.40); -0.30 (-0.50 to -0.10) |" * 5
    assert as_csv(found[:1]).splitlines()[:2] == ["arm,seed,kind,ratio,right,of", "reference,1,absent,8,1,4"]
    assert ALIGNED.name not in table(TEXT_ARMS, REFERENCE, found)


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.jsonl").write_text("{}\n")
    assert command.main(["--output", str(tmp_path), "--seeds", "1", "--arms", "reference"]) == 2
    assert "results.jsonl is damaged" in capsys.readouterr().err
    file = tmp_path / "file"
    file.write_text("")
    assert command.main(["--output", str(file), "--arms", "reference"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert command.main(["--output", str(tmp_path / "new"), "--memory-steps", "0", "--arms", "reference"]) == 2
    assert "steps must be a whole number from 1" in capsys.readouterr().err
