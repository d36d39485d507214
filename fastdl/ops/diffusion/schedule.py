"""A noise schedule x_t = alpha_t x_0 + sigma_t eps, and its tables of the forward process."""

from __future__ import annotations

import torch
from torch import Tensor

from .table import Table

PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction")
WEIGHTINGS = (None, "snr", "min_snr")


class Schedule:
    """alpha_t and sigma_t of timesteps 0 .. T - 1, fp64 on the host.

    The kind decides what a prediction means: "vp" (alpha^2 + sigma^2 = 1), "ve" (alpha = 1: the model sees
    x / sqrt(sigma^2 + 1)) or "flow" (alpha = 1 - sigma).

    Tables are made at their first use and kept; before torch.compile traces a use of one, make it by calling its
    method (`schedule.adding_noise()`).

    >>> schedule = Schedule.from_betas(torch.tensor([0.1, 0.2]))
    >>> schedule.alpha**2
    tensor([0.9000, 0.7200], dtype=torch.float64)
    """

    def __init__(self, alpha: Tensor, sigma: Tensor, kind: str = "vp") -> None:
        self.alpha, self.sigma, self.kind = alpha.double(), sigma.double(), kind
        self._tables: dict[tuple, Table] = {}

    @classmethod
    def from_betas(cls, betas: Tensor) -> Schedule:
        """Variance preserving: alpha_bar is the cumulative product of 1 - beta."""
        return cls.from_alpha_bar((1 - betas.double()).cumprod(0))

    @classmethod
    def from_alpha_bar(cls, alpha_bar: Tensor) -> Schedule:
        """Variance preserving: alpha = sqrt(alpha_bar), sigma = sqrt(1 - alpha_bar)."""
        return cls(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())

    @classmethod
    def from_sigmas(cls, sigmas: Tensor) -> Schedule:
        """Variance exploding: alpha = 1."""
        return cls(torch.ones_like(sigmas), sigmas, "ve")

    @classmethod
    def flow(cls, sigmas: Tensor) -> Schedule:
        """Flow matching: alpha = 1 - sigma."""
        return cls(1 - sigmas, sigmas, "flow")

    def __len__(self) -> int:
        return len(self.alpha)

    @property
    def alpha_bar(self) -> Tensor:
        return self.alpha**2

    @property
    def snr(self) -> Tensor:
        """alpha^2 / sigma^2."""
        return (self.alpha / self.sigma) ** 2

    def adding_noise(self) -> Table:
        """x_t = alpha x_0 + sigma noise."""
        return self._table("adding_noise")

    def velocity(self) -> Table:
        """v = alpha noise - sigma x_0; of a flow noise - x_0."""
        return self._table("velocity")

    def predicting_x0(self, prediction_type: str) -> Table:
        """x_0 from x_t and what the model predicts."""
        return self._table("predicting_x0", prediction_type)

    def training(self, prediction_type: str, weighting: str | None, gamma: float) -> Table:
        """x_t, the target of `prediction_type` in the place of x_0, and the weight of the loss as the value."""
        return self._table("training", prediction_type, weighting, gamma)

    def _table(self, *key: object) -> Table:
        table = self._tables.get(key)
        if table is None:
            if torch.compiler.is_compiling():
                raise RuntimeError(
                    f"call Schedule.{key[0]}{key[1:]} once before torch.compile traces a use of it"
                )
            table = self._tables[key] = getattr(self, f"_make_{key[0]}")(*key[1:])
        return table

    def _make_adding_noise(self) -> Table:
        return Table(len(self), SAMPLE=self.alpha, NOISE=self.sigma)

    def _make_velocity(self) -> Table:
        of_sample, of_noise = self._target("flow_prediction" if self.kind == "flow" else "v_prediction")
        return Table(len(self), SAMPLE=of_sample, NOISE=of_noise)

    def _make_predicting_x0(self, prediction_type: str) -> Table:
        of_sample, of_model = self.x0_coefficients(prediction_type)
        return Table(len(self), X0_SAMPLE=of_sample, X0_MODEL=of_model)

    def _make_training(self, prediction_type: str, weighting: str | None, gamma: float) -> Table:
        of_sample, of_noise = self._target(prediction_type)
        return Table(
            len(self), SAMPLE=self.alpha, NOISE=self.sigma, X0_SAMPLE=of_sample, X0_NOISE=of_noise,
            VALUE=self.weight(prediction_type, weighting, gamma),
        )  # fmt: skip

    def x0_coefficients(self, prediction_type: str) -> tuple[Tensor, Tensor]:
        """(a, b) of x_0 = a x_t + b model_output."""
        return x0_coefficients(self.alpha, self.sigma, prediction_type, self.kind)

    def weight(self, prediction_type: str, weighting: str | None, gamma: float) -> Tensor | float:
        """Weight of the squared error: 1, alpha^2 / sigma^2, or min-SNR-gamma.

        Source: Hang et al. 2023: min(snr, gamma) for "sample", over snr for "epsilon", over snr + 1 for v. Where snr
        is 0 the first quotient is its limit 1.
        """
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting must be one of {WEIGHTINGS}, got {weighting!r}")
        if weighting is None:
            return 1.0
        snr = self.snr
        if weighting == "snr":
            return snr
        least = snr.clamp(max=gamma)
        if prediction_type == "epsilon":
            return torch.where(snr > 0, least / snr, 1.0)
        return least if prediction_type == "sample" else least / (snr + 1)

    def _target(self, prediction_type: str) -> tuple[Tensor | float, Tensor | float]:
        check_prediction(prediction_type, self.kind)
        if prediction_type == "epsilon":
            return 0.0, 1.0
        if prediction_type == "sample":
            return 1.0, 0.0
        if prediction_type == "flow_prediction":
            return -1.0, 1.0
        scale = (self.alpha**2 + self.sigma**2).sqrt()
        return -self.sigma / scale, self.alpha / scale


def check_prediction(prediction_type: str, kind: str) -> None:
    """ValueError for an unknown prediction, or one that a schedule of this kind does not have."""
    if prediction_type not in PREDICTIONS:
        raise ValueError(f"prediction_type must be one of {PREDICTIONS}, got {prediction_type!r}")
    if (prediction_type == "flow_prediction") != (kind == "flow") and prediction_type in (
        "flow_prediction",
        "v_prediction",
    ):
        raise ValueError(f"prediction_type {prediction_type!r} has no meaning for a {kind} schedule")


def x0_coefficients(
    alpha: Tensor, sigma: Tensor, prediction_type: str, kind: str = "vp"
) -> tuple[Tensor, Tensor]:
    """(a, b) of x_0 = a x_t + b model_output."""
    check_prediction(prediction_type, kind)
    if prediction_type == "epsilon":
        return 1 / alpha, -sigma / alpha
    if prediction_type == "sample":
        return torch.zeros_like(alpha), torch.ones_like(alpha)
    if prediction_type == "flow_prediction":
        return torch.ones_like(alpha), -sigma
    scale = alpha**2 + sigma**2
    return alpha / scale, -sigma / scale.sqrt()


def epsilon_coefficients(alpha: Tensor, sigma: Tensor, prediction_type: str) -> tuple[Tensor, Tensor]:
    """(a, b) of eps = a x_t + b model_output, for a "vp" schedule."""
    if prediction_type == "epsilon":
        return torch.zeros_like(alpha), torch.ones_like(alpha)
    if prediction_type == "sample":
        return 1 / sigma, -alpha / sigma
    return sigma, alpha
