"""Checks of the capture in this environment, on this model and these rows, one identity per check.

A row's gradient depends on the row only: not on padding and not on the batch. It is the sum over its scored tokens, and
it equals that of an ordinary backward pass. If a model violates one of these, every score of a run is wrong, and no
other check detects it. Errors are relative: |a − b| / |b|, the maximum over the rows.

The examples are ten rows of the user's data, captured alone, in the run's dtype.
"""

from influence.doctor.check import Check
from influence.doctor.examine import examine, examine_run

__all__ = ["Check", "examine", "examine_run"]
