"""A small real study for the tests that run one."""

from tests.study.conftest import study_file  # noqa: F401  (a fixture)
