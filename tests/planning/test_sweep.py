"""The settings of a sweep: what may be written, what each one is called, and what is refused."""

import pytest

from tutelage.errors import ConfigError
from tutelage.planning.sweep import settings_of


def test_values_are_yaml_and_several_fields_make_every_combination():
    found = settings_of(["student.layers=[0,3,6],[0, 2, 4],12,{evenly: 3}", "training.learning_rate=1e-3,3e-4"])
    assert len(found) == 8 and len({one.folder for one in found}) == 8
    assert found[0].overrides == ("student.layers=[0, 3, 6]", "training.learning_rate=0.001")
    assert [one.label for one in found[4:7]] == [
        "layers=12 learning_rate=0.001", "layers=12 learning_rate=0.0003", "layers={evenly: 3} learning_rate=0.001"
    ]  # fmt: skip
    assert found[4].folder == "student.layers=12+training.learning_rate=0.001"


def test_the_folder_of_a_setting_depends_on_nothing_else_of_the_sweep():
    alone = settings_of(["student.layers=12"])[0].folder
    many = settings_of(["student.layers=[12],12,16"])
    assert [one.folder == alone for one in many] == [False, True, False]
    a, b = (settings_of(asked)[0] for asked in (["student=x", "loss=y"], ["loss=y", "student=x"]))
    assert a.folder == b.folder and a.label != b.label
    nasty = settings_of(["student.model=../../a b,'../../a_b',/etc/passwd"])
    assert len({one.folder for one in nasty}) == 3 and not any(set(one.folder) & set("/ *?[]") for one in nasty)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["student.layers=12,12"], "student.layers: 12 stands there twice"),
        (["student.layers=12", "student.layers=16"], "student.layers: given twice; name each field once"),
        (["student.layers=12", "student=x"], r"student: given twice \(beside student.layers\)"),
        (["student.layers="], "student.layers: no value; give two or more"),
        (["student.layers"], "is not section.field=value"),
        (["student.layers=[1,2"], "student.layers: the value is"),
        (["training.tokens=1,2"], "training.tokens: compare decides the length; give --tokens or --hours"),
        (["training.seed=1,2"], "training.seed: compare decides the seeds; give --seeds"),
        (["data.max_length=64,128"], "data.max_length: all settings of a sweep have it in common"),
        (["teacher=a,b"], "teacher: all settings of a sweep have it in common"),
        (["training.threads=1,2"], "training.threads: all settings of a sweep have it in common"),
        (["training={}"], "training: name one field of it"),
    ],
)
def test_what_cannot_be_swept_says_why(sets, message):
    with pytest.raises(ConfigError, match=message):
        settings_of(sets)


def test_a_field_that_the_command_line_sets_for_all_is_not_swept_too():
    with pytest.raises(ConfigError, match=r"loss: given twice \(beside loss.0.weight\)"):
        settings_of(["loss=forward_kl,reverse_kl"], overrides=["loss[0].weight=0.5"])
