"""Patterns: structure in numbers. Representatives and groups, missing cells, parts, programs that compute the same.

Every estimator keeps scikit-learn's contract without importing it. Rooms, in the order data passes them: `estimator`
(parameters and checked input), `dissimilarity` (where distances come from), `swaps` and `kmedoids`.
"""

from windlass.patterns.kmedoids import KMedoids

__all__ = ["KMedoids"]
