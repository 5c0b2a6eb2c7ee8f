"""A run of all recipes that is reported on."""

import pytest

from result_folders import one, write_eval


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_eval(tmp_path_factory.mktemp("results") / "eval-a", reasonings=("none", "thinking"), count=20)


@pytest.fixture(scope="module")
def run(folder):
    return one(folder)
