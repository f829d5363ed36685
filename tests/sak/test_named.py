import sys

import pytest

from sak.errors import SakError, demo_weights, module_named
from sak.teachers import TEACHERS, build_teacher, weights_available


@pytest.fixture
def _sak_alone(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "pipeline"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pipeline", None)


@pytest.mark.usefixtures("_sak_alone")
@pytest.mark.parametrize(
    "wanted",
    [
        lambda: build_teacher("demo/clip"),
        lambda: demo_weights("clip"),
        lambda: weights_available(TEACHERS["demo-clip"]),
    ],
)
def test_sak_alone_says_in_one_line_that_the_demo_is_not_installed(wanted):
    with pytest.raises(
        SakError, match=r"^demo/clip comes with the package pipeline, which is not installed beside sak$"
    ):
        wanted()


@pytest.mark.usefixtures("_sak_alone")
def test_sak_alone_lists_the_demo_teachers_all_the_same():
    assert {"demo-dino", "demo-clip", "demo-sam", "demo-stem"} <= set(TEACHERS)


def test_what_a_named_module_lacks_is_not_taken_for_the_module_itself(tmp_path, monkeypatch):
    (tmp_path / "named_for_a_test.py").write_text("import there_is_no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_module"):
        module_named("named_for_a_test", "a test")
