"""Pictures that explain a published network: occlusion, Grad-CAM, filters, feature maps, ideal inputs."""

from training.explain.explain import explain
from training.explain.picture import Picture

__all__ = ["Picture", "explain"]
