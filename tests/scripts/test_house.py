"""`scripts/house.py`: every rule names what breaks it."""

import ast

import house as house_script
import house_copies
import house_names
import pytest

LIMITS = {"vague_names": 0.0, "long_files": []}


@pytest.fixture
def house(tmp_path):
    """`house({"influence/a.py": "x = 1"})`: a house of these files."""

    def make(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return house_script.House(tmp_path)

    return make


def test_three_files_that_import_one_another_are_named_and_two_or_type_checking_are_not(house):
    files = {
        "influence/__init__.py": "",
        "influence/a.py": "from influence import b",
        "influence/b.py": "def late():\n    from influence.c import x",
        "influence/c.py": "import influence.a\nx = 1",
        "influence/d.py": "import influence.e",
        "influence/e.py": "import influence.d",
        "index/f.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import index.g",
        "index/g.py": "import index.h",
        "index/h.py": "import index.f",
    }
    (line,) = house_script.broken_rules(house(files), LIMITS)
    assert line.endswith("influence.a, influence.b, influence.c")


def test_a_long_file_a_full_room_and_a_vague_name_are_named(house):
    files = {f"influence/room/f{number}.py": "" for number in range(26)} | {"index/long.py": "x = 1\n" * 301}
    full = house({**files, "index/names.py": "def count(rows):\n    found = rows\n    return found\n"})
    room, long, vague = house_script.broken_rules(full, LIMITS)
    assert "influence/room/ has 26 files" in room
    assert "index/long.py has 301 lines" in long
    assert "25.00 % of bound names" in vague
    assert full.vague == (4, ["index/names.py:2: found"])
    assert house_script.broken_rules(full, {"vague_names": 25.0, "long_files": ["index/long.py"]}) == [room]


def test_whole_participles_and_pronouns_are_vague_and_terms_and_sides_are_not():
    source = "def rank(left, right, held, /, _told=1, *, stored_rows, expected):\n    for what, hit in held: pass\n"
    assert house_names.vague_names(ast.parse(source)) == (9, [(1, "held"), (1, "told"), (2, "what")])


def test_what_exists_twice_is_named(house):
    body = "def f(task, k):\n    try: ...\n    except E as error:\n        raise type(error)(f'{task.name}: {error}')\n"
    best = "import os\ndef best(x, k):\n    os.replace('a', 'b')\n    return x[np.lexsort((x,))[:k]]\n"
    names = house_copies.copies(house({"index/a.py": body, "index/b.py": best}))
    assert names['copies of `raise type(error)(f"{task.name}: …")`'] == ["a.f"]
    assert names["top-k keepers"] == names["mechanisms that write a file whole"] == ["b.best"]
    assert names["task dataclasses"] == []
