"""Inception-v3 as it was ported from TensorFlow in 2015: the features that FID means.

torch-fidelity's inception-v3-compat, layer 2048, with its bilinear resize to 299 x 299 that repeats TensorFlow 1's.
With any other weights the distance is an fd, not a fid (fgm.evaluation.protocols).
"""

from torch import Tensor

from fgm.evaluation.features.extractor import NetworkExtractor, three_channels
from fgm.evaluation.features.states import harmless
from fgm.utils.errors import UserError
from fgm.utils.pretrained import hash_of_checkpoint, inception_weights
from fgm.utils.validation import validated

LAYERS = ["2048", "logits_unbiased"]


@validated
class Inception(NetworkExtractor):
    """Images of any size -> 2048 features and 1008 logits.

    Args:
        weights: path of the state dict; None looks for the published name in $TORCH_HOME/hub/checkpoints.
        device: auto, cpu or cuda.
    """

    def __init__(self, weights: str | None = None, device: str = "auto") -> None:
        file = inception_weights(weights)
        state = harmless(file)
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # seconds to import

        try:
            net = FeatureExtractorInceptionV3("inception-v3-compat", LAYERS, feature_extractor_weights_path=state)
        except RuntimeError as error:
            raise UserError(
                f"{file} does not fill Inception-v3: give torch-fidelity's weights-inception file"
            ) from error
        super().__init__("inception", hash_of_checkpoint(file), 2048, net, device, "bilinear as TensorFlow 1")

    def run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(three_channels(images))
