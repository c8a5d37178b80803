"""Pictures that explain a published network: occlusion, Grad-CAM, filters, feature maps, ideal inputs."""
