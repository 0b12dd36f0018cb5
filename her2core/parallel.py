"""One function over many patients: on all cores, with a progress bar, in the order given."""

from joblib import Parallel, delayed, parallel_config
from tqdm import tqdm


def each(function, items, jobs, label, unit="patient"):
    """[function(item) for item in items] on `jobs` processes (-1: one per core), one thread in each.

    The first exception stops everything and is raised here.
    """
    items = list(items)
    with parallel_config(backend="loky", inner_max_num_threads=1):
        results = Parallel(n_jobs=jobs, return_as="generator")(delayed(function)(item) for item in items)
        return list(tqdm(results, total=len(items), desc=label, unit=unit))
