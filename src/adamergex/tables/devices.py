"""Speeds of named devices, for estimates."""

from __future__ import annotations

from typing import NamedTuple


class Device(NamedTuple):
    """Peak: FLOP/s of dense bf16 matrix products (CPU: fp32), from the data sheet. Share: the part reached in practice.

    Full batches of models of 1B parameters and more reach about 0.35 of the peak (PaLM, 2204.02311, Table 3, reports
    0.21 to 0.46). Small models reach far less: give measured tokens per second instead.
    """

    peak: float
    share: float
    about: str

    @property
    def flops(self) -> float:
        return self.peak * self.share


DEVICES = {
    "b200": Device(2250e12, 0.35, "NVIDIA B200"),
    "h200": Device(989e12, 0.35, "NVIDIA H200"),
    "h100": Device(989e12, 0.35, "NVIDIA H100 SXM"),
    "a100": Device(312e12, 0.35, "NVIDIA A100"),
    "l40s": Device(362e12, 0.35, "NVIDIA L40S"),
    "rtx4090": Device(165e12, 0.35, "GeForce RTX 4090"),
    "v100": Device(125e12, 0.25, "NVIDIA V100, fp16"),
    "cpu": Device(1e11, 0.5, "two cores with AVX2 at 3 GHz: 2 × 16 fused multiply-adds a cycle, about half reached"),
}
