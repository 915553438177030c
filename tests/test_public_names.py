"""What `import influence` gives: the public names and no others, at no cost until they are used."""

import subprocess
import sys

import pytest

import influence


def run(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_no_library():
    run("import sys, influence; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)")


@pytest.mark.parametrize("name", influence.__all__)
def test_every_public_name_is_there_and_listed(name):
    assert getattr(influence, name) is not None
    assert name in dir(influence)


def test_recipe_is_a_function_whatever_was_imported_before():
    run("import influence; influence.build; assert influence.recipe('logra').name == 'logra'")
    import influence.recipes as file

    assert influence.recipe("gradcos", seed=3) == file.recipe("gradcos", seed=3)
    assert influence.recipe().name == "whitened"


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = influence.nothing
    assert influence.api.open is influence.open
