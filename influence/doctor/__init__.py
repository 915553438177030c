"""Does the capture work here, on this model and these rows? Each check measures one identity that every row rests on.

A row's gradient may depend on nothing but the row: not on padding, not on its batch; its scored tokens add up to it;
and an ordinary backward pass finds the same. Where a model breaks one of these, every score of a run is wrong, and
nothing else shows it. Errors are relative: |a − b| / |b|, the worst of the rows.

Examples are ten rows of the user's data, captured alone, in the run's own dtype.
"""

from influence.doctor.check import Check
from influence.doctor.examine import examine, examine_run

__all__ = ["Check", "examine", "examine_run"]
