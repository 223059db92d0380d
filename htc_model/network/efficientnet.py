"""EfficientNet-Lite0 backbone from timm."""

import warnings
from typing import Any

from torch import Tensor, nn

# tf_efficientnet_lite0's feature channels at strides 4, 8, 16, 32 (timm's feature_info of that model).
CHANNELS = (24, 40, 112, 320)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (no squeeze-excite, ReLU6), randomly initialised.

    timm is imported only when a model is built. Its modules are registered here directly, so that the keys are
    `backbone.conv_stem.weight` and so on, without another level.
    """

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            # timm uses torch APIs that torch has deprecated; callers cannot change that.
            warnings.simplefilter("ignore")
            import timm

            extractor: Any = timm.create_model(
                "tf_efficientnet_lite0", features_only=True, pretrained=False, out_indices=(1, 2, 3, 4)
            )
        self.conv_stem = extractor.conv_stem
        self.bn1 = extractor.bn1
        self.blocks = extractor.blocks
        self.channels = CHANNELS

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Map [B, 3, H, W] to C2..C5 of 24, 40, 112 and 320 channels at strides 4, 8, 16 and 32."""
        x = self.bn1(self.conv_stem(pixels))  # bn1 includes the ReLU6
        features = []
        for index, stage in enumerate(self.blocks):
            x = stage(x)
            # Seven stages of strides 2, 4, 8, 16, 16, 32, 32: those before the next halving are kept.
            if index in (1, 2, 4, 6):
                features.append(x)
        return features
