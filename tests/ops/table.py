"""`CASES`: for every primitive, how it is tested."""

from . import elementwise_cases, nn_cases, other_cases, reduction_cases, sequence_cases, shape_cases
from .cases import Case

CASES: dict[str, list[Case]] = {
    **elementwise_cases.CASES,
    **shape_cases.CASES,
    **reduction_cases.CASES,
    **other_cases.CASES,
    **nn_cases.CASES,
    **sequence_cases.CASES,
}
