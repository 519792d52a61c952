"""Settings of the noise and of the loss."""

from dataclasses import dataclass

from .setting import check, require, setting

TIMESTEP_SAMPLINGS = ("logit_normal", "uniform", "shift", "resolution_shift", "mode")
WITH_OFFSET = ("logit_normal", "shift", "resolution_shift")  # which draw a normal number, that an offset moves
LOSSES = ("mse", "huber", "l1", "smooth_l1")
WEIGHTINGS = ("none", "sigma_sqrt", "cosmap", "min_snr", "detail_inv_t")


@dataclass(frozen=True)
class FlowConfig:
    """Rectified flow: x_t = (1 - t) x0 + t eps, target eps - x0."""

    timestep_sampling: str = setting(
        "logit_normal",
        "How t is drawn. logit_normal is the model author's recipe. shift favours noisy steps: composition over detail.",
        choices=TIMESTEP_SAMPLINGS,
    )
    sigmoid_scale: float = setting(1.0, "Width of the logit-normal distribution: t = sigmoid(scale N(0, 1)).", above=0)
    logit_mean: float = setting(
        0.0, "Centre of the logit-normal distribution, as the logit of t: above 0 favours noisy steps.", low=-20, high=20
    )
    mode_scale: float = setting(
        1.29, "Where `flow.timestep_sampling` is mode: how much the middle of t is favoured; 0 is uniform.", low=-1, high=1.75
    )
    shift: float = setting(
        1.0,
        "Where `flow.timestep_sampling` is shift: how far t moves towards noise, as s t / (1 + (s - 1) t).",
        above=0,
    )
    loss: str = setting("mse", "Loss of the velocity: mse unless pictures are faulty.", choices=LOSSES)
    huber_delta: float = setting(0.1, "Error from which the Huber and smooth L1 losses grow linearly.", above=0)
    weighting: str = setting(
        "none",
        "Weight of the loss by t: none is the model author's recipe. min_snr lowers it where there is little noise; "
        "detail_inv_t and, more, sigma_sqrt raise it there; cosmap raises the middle.",
        choices=WEIGHTINGS,
    )
    noise_offset: float = setting(0.0, "Size of the noise that all pixels of a channel share; 0 is off.", low=0)
    ip_noise_gamma: float = setting(
        0.0, "Input perturbation: further noise that only the model's input gets; 0 is off, 0.1 is usual.", low=0
    )
    snr_gamma: float = setting(
        5.0, "Where `flow.weighting` is min_snr: the signal-to-noise ratio above which the loss counts less.", above=0
    )
    multiscale_loss_weight: float = setting(
        0.0,
        "Weight of a second loss at half the resolution, for pictures from 922 px on: composition over detail; 0 is off, 1 "
        "counts it as much as the first.",
        low=0,
    )
    multires_noise_iterations: int = setting(
        0, "Coarser layers that are added to the noise, each two to four times smaller; 0 is off, 6 is usual.", low=0, high=100
    )
    multires_noise_discount: float = setting(
        0.3, "Strength of each coarser layer of `flow.multires_noise_iterations`, relative to the one before.", low=0, high=1
    )
    lowres_scale: float = setting(
        1.0,
        "Faster: noisy draws train on the picture with sides so many times as long, where detail is lost in noise anyway; 1 is "
        "off, 0.75 takes 1024 px to 768.",
        low=0.25,
        high=1,
    )
    lowres_above: float = setting(
        0.65,
        "Where `flow.lowres_scale` is below 1: the t above which a draw trains smaller; 0.5 for a scale of 0.875.",
        low=0,
        high=1,
    )
    lowres_below: float = setting(
        0.95,
        "Where `flow.lowres_scale` is below 1: the t below which a draw trains smaller; 1 for a scale of 0.875.",
        low=0,
        high=1,
    )

    def __post_init__(self) -> None:
        check(self)
        ordered = self.lowres_above < self.lowres_below
        require(ordered, "flow.lowres_above", self.lowres_above, f"must be below `flow.lowres_below`={self.lowres_below}")
