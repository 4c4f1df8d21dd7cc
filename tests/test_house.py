"""The checks of the house, on sources that break one limit each."""

from tests.house import CEILINGS, GOALS, Source, excesses, findings

STEPS = """
def {name}({item}, {total}):
    {total} = {total} + {number}
    for {item} in range({total}):
        if {item} % 2:
            {total} -= {item}
    {total} *= {number}
    print("{text}", {total})
    return {total}
"""
ONE = STEPS.format(name="first", item="item", total="total", number=1, text="one")
RENAMED = STEPS.format(name="second", item="row", total="sum_of_rows", number=7, text="two")


def found(name, readme="", **sources):
    house = [Source(f"flows/{path.replace('__', '/')}.py", text) for path, text in sources.items()]
    return findings(house, readme)[name]


def test_eight_lines_of_one_shape_are_found_with_both_places():
    pairs = found("places that share eight lines", a="import os\n" + ONE, b="X = 1\n\n" + RENAMED)
    assert pairs == ["flows/a.py:3-10 and flows/b.py:4-11"]


def test_seven_lines_may_be_alike():
    fewer = [text.replace("    print", "    # print") for text in (ONE, RENAMED)]
    assert found("places that share eight lines", a=fewer[0], b=fewer[1]) == []


def test_another_use_of_the_names_is_another_shape():
    other = RENAMED.replace("sum_of_rows -= row", "row -= sum_of_rows")
    assert found("places that share eight lines", a=ONE, b=other) == []


def test_equal_declarations_are_found_and_those_that_look_alike_are_not():
    fields = "class A:\n" + "".join(f"    field_{i}: int = {i}\n" for i in range(7))
    alike = fields.replace("field", "key")
    assert found("places that share eight lines", a=fields, b=alike) == []
    assert found("places that share eight lines", a=fields, b=fields) == [
        "flows/a.py:1-8 and flows/b.py:1-8"
    ]


def test_a_copy_within_one_file_is_found():
    pairs = found("places that share eight lines", a=ONE + RENAMED)
    assert pairs == ["flows/a.py:2-9 and flows/a.py:11-18"]


def test_imports_inside_functions_are_counted_and_those_above_are_not():
    text = (
        "import os\n\n\ndef work():\n    import sys\n\n    def inner():\n        from os import a\n"
    )
    assert found("imports inside functions", a=text) == ["flows/a.py:5", "flows/a.py:8"]


def test_a_circle_is_found_through_an_import_inside_a_function():
    late = "def work():\n    from flows import a\n"
    sources = {"a": "import flows.b", "b": "from flows.c import work", "c": late, "d": "import a"}
    assert found("modules in import circles", **sources) == [
        "flows/a.py",
        "flows/b.py",
        "flows/c.py",
    ]


def test_a_circle_is_found_through_a_lazy_import():
    sources = {"a": "import flows.b", "b": 'late = lazy("flows.a")'}
    assert found("modules in import circles", **sources) == ["flows/a.py", "flows/b.py"]


def test_long_files_functions_folders_and_readme_are_found():
    body = "def long():\n" + "    x = 1\n" * 60
    assert found("functions longer than 60 lines", a=body) == ["flows/a.py:1 long: 61"]
    assert found("functions longer than 60 lines", a=body.removesuffix("    x = 1\n")) == []
    assert found("files longer than 350 lines", a="#\n" * 351, b="#\n" * 350) == ["flows/a.py: 351"]
    many = {f"in__file_{i}": "" for i in range(17)}
    assert found("folders of more than 16 files", **many) == ["flows/in: 17"]
    sixteen_and_a_door = {f"in__file_{i}": "" for i in range(16)} | {"in____init__": ""}
    assert found("folders of more than 16 files", **sixteen_and_a_door) == []
    assert found("README longer than 149 lines", readme="line\n" * 150) == ["README.md: 150"]
    assert found("README longer than 149 lines", readme="line\n" * 149) == []


def test_what_is_above_its_ceiling_is_told_with_its_places(monkeypatch):
    name = "imports inside functions"
    monkeypatch.setitem(CEILINGS, name, 1)
    assert excesses({name: ["a:1"]}) == []
    assert excesses({name: ["a:1", "b:2"]}) == [f"{name}: 2, at most 1 allowed\n  a:1\n  b:2"]


def test_ceilings_are_above_goals():
    assert all(GOALS[name] < ceiling for name, ceiling in CEILINGS.items())
