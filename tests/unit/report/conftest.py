"""A report to be shown."""

import pytest
from made_up_report import Report, seabios_report


@pytest.fixture
def report() -> Report:
    """What SeaBIOS on two CPUs might leave."""
    return seabios_report()
