"""What metrics need of the extractor, the reference and the number of samples; said before anything is measured."""

from fgm.evaluation.features import FeatureExtractor
from fgm.evaluation.infinity import fewest
from fgm.evaluation.metrics import KS, METRICS, MOMENTS_SUFFICE, READING
from fgm.evaluation.references import Reference
from fgm.utils.errors import UserError, hint


def fewest_samples(metric: str, dim: int) -> int:
    """That a metric can be computed from."""
    if metric in KS:
        return max(KS.values()) + 1
    return {"fd": dim + 1, "fd_infinity": fewest(dim), "kid": 2, "diversity": 2}.get(metric, 1)


def known_metrics(metrics: tuple[str, ...], extractor: FeatureExtractor, moments_alone: bool) -> tuple[str, ...]:
    """The metrics, where this extractor and reference can serve them.

    Raises:
        UserError: they cannot.
    """
    where = "evaluation.suite.metrics"
    for metric in metrics:
        if metric not in METRICS:
            raise UserError(f"{where}: there is no metric {metric!r}; {hint(metric, METRICS)}")
        if metric in READING and not extractor.reads_labels:
            raise UserError(f"{where}: {extractor.id} does not read the data's labels: leave {metric} out")
        if moments_alone and metric not in (*MOMENTS_SUFFICE, "accuracy"):
            raise UserError(
                f"{where}: {metric} compares features one by one and evaluation.suite.reference holds moments alone: "
                f"give evaluation.suite.data, or metrics from {', '.join(MOMENTS_SUFFICE)}"
            )
    return tuple(metrics)


def large_enough(reference: Reference, metrics: tuple[str, ...]) -> Reference:
    """The reference, where a covariance over its real images is not singular or none is needed.

    Raises:
        UserError: it is.
    """
    n, dim = reference.moments.n, len(reference.moments.mean)
    if n is not None and n <= dim and set(MOMENTS_SUFFICE) & set(metrics):
        raise UserError(
            f"fd against {reference.name}: {n} real images cannot fill a covariance of {dim} features; "
            "take a larger reference, or evaluation.suite.metrics=[kid]"
        )
    return reference
