"""Patterns: structure in numbers. Representatives and groups, missing cells, parts, programs that compute the same.

Every estimator keeps scikit-learn's contract without importing it. Rooms, in the order data passes them: `estimator`
(parameters and checked input), `dissimilarity` (where distances come from), `swaps`, `kmedoids`, `sampled_kmedoids`
and `choose_k`.
"""

from windlass.patterns.choose_k import choose_k
from windlass.patterns.kmedoids import KMedoids
from windlass.patterns.sampled_kmedoids import SampledKMedoids

__all__ = ["KMedoids", "SampledKMedoids", "choose_k"]
