"""How a run ended, as a process status."""

import pytest

from vmm.errors import ExitStatus
from vmm.run.outcome import Outcome, Reason


@pytest.mark.parametrize("reason", Reason)
def test_a_run_that_missed_its_until_is_never_a_success(reason: Reason) -> None:
    missed = Outcome(reason, 1.0, "", missed_until="Shell>")
    if reason is not Reason.UNTIL:
        assert missed.exit_status != ExitStatus.OK
        assert not missed.reached
    no_fault = {Reason.UNTIL, Reason.POWER_OFF, Reason.SUSPENDED, Reason.STOPPED}
    assert Outcome(reason, 1.0, "").reached == (reason in no_fault)
