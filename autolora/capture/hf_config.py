"""A Hugging Face configuration: its model on the meta device, and the inputs of a model's forward.

The only module that imports transformers. It reads no weights, runs no code that a configuration
names, and uses no network.
"""

from __future__ import annotations

import inspect
import logging
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from autolora.capture.fakes import Fakes, running
from autolora.capture.forward import eagerly, intercept
from autolora.capture.user_code import summary_of
from autolora.capture.weightless import without_weights
from autolora.errors import AutoloraError
from autolora.nn.adapted import adapted_layers

logger = logging.getLogger("autolora")

CONFIG = "config.json"
LONGEST = 512  # tokens of a sequence unless the model's positions end before
IMAGE = 448  # pixels of each side of an image whose size the configuration does not fix

_AUTO = (
    "AutoModelForImageTextToText",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForMaskedLM",
    "AutoModelForImageClassification",
    "AutoModel",
)
_ENCODER_DECODERS = ("AutoModelForSeq2SeqLM", "AutoModelForSpeechSeq2Seq")


@dataclass(frozen=True, slots=True)
class HFInputs:
    """Makes the inputs of a model of transformers.

    Args:
        model: a ``PreTrainedModel``, with LoRA layers or without.
    """

    model: Any

    @property
    def seq_len(self) -> int:
        """The length of a sequence, unless the user wants another."""
        text = self.model.config.get_text_config()
        for name in ("max_position_embeddings", "n_positions", "max_target_positions"):
            value = getattr(text, name, None)
            if isinstance(value, int) and value > 0:
                return min(value, LONGEST)
        return LONGEST

    @property
    def notes(self) -> list[str]:
        """What the configuration does not say and is assumed."""
        sized = f"its images may have any size: here {IMAGE} × {IMAGE} pixels"
        return [sized] if self._image_size_is_free else []

    @property
    def _image_size_is_free(self) -> bool:
        return "image_grid_thw" in inspect.signature(self.model.forward).parameters

    def batch(self, batch_size: int, seq_len: int) -> dict[str, Tensor]:
        """The arguments of the model's forward; floats are on the meta device.

        Language models get ``batch_size`` sequences of ``seq_len`` tokens, vision models
        ``batch_size`` images, speech models as many spectrograms of full length, or sounds of
        ``seq_len`` frames. Models of text and images get both; the tokens that stand for an image
        are the first of a sequence, which is made longer where they fill it.

        Raises:
            Exception: the configuration does not say what the model gets.
        """
        config, main = self.model.config, self.model.main_input_name
        accepted = inspect.signature(self.model.forward).parameters
        given, standing = {}, 0
        if main == "input_features":
            given[main] = self._empty(
                batch_size, config.num_mel_bins, 2 * config.max_source_positions
            )
        elif main == "input_values" and hasattr(config, "conv_stride"):
            given[main] = self._empty(batch_size, seq_len * math.prod(config.conv_stride))
        elif "pixel_values" in accepted:
            given, standing = self._images(batch_size)
        if "input_ids" in accepted and main in ("input_ids", "pixel_values"):
            words = _words(config, batch_size, max(seq_len - standing, 1))
            marks = words.new_full((batch_size, standing), _image_token(config) or 0)
            given["input_ids"] = torch.cat((marks, words), dim=1)
            if "mm_token_type_ids" in accepted:
                kinds = (torch.ones_like(marks), torch.zeros_like(words))
                given["mm_token_type_ids"] = torch.cat(kinds, dim=1)
        if getattr(config, "is_encoder_decoder", False):
            given["decoder_input_ids"] = _words(config, batch_size, seq_len)
        return given

    def _images(self, batch_size: int) -> tuple[dict[str, Tensor], int]:
        """The images, one for each sequence, and the number of tokens that stand for each.

        None for a model whose images have another form than these.
        """
        config = self.model.config
        vision = getattr(config, "vision_config", getattr(config, "encoder", config))
        image = (getattr(vision, "num_channels", 3), *_image_size(vision))
        if _image_token(config) is None:
            return {"pixel_values": self._empty(batch_size, *image)}, 0
        forms = [
            {"pixel_values": self._empty(batch_size, *image)},
            {"pixel_values": self._empty(batch_size, 1, *image)},
        ]
        if self._image_size_is_free:
            side = IMAGE // vision.patch_size
            side -= side % vision.spatial_merge_size
            numbers = getattr(vision, "in_channels", 3) * vision.patch_size**2
            patches = self._empty(batch_size * side**2, numbers * vision.temporal_patch_size)
            grid = torch.tensor([[1, side, side]] * batch_size)
            forms = [{"pixel_values": patches, "image_grid_thw": grid}]
        for form in forms:
            try:
                rows = self._rows_of_images(form)
            except Exception as error:  # of a model that takes images of another form
                logger.info("no image for %s: %s", type(self.model).__name__, summary_of(error))
                continue
            return form, rows // batch_size
        return {}, 0

    def _rows_of_images(self, images: dict[str, Tensor]) -> int:
        """The number of tokens that stand for images."""
        mode = Fakes()
        with (
            without_weights(self.model, mode),
            eagerly(),
            running(mode, seed=0),
            torch.no_grad(),
        ):
            intercept(adapted_layers(self.model), lambda layer, x: x.dtype)
            seen = self.model.get_image_features(**images)
            features = tree_leaves(getattr(seen, "pooler_output", seen))
            return sum(each.numel() // each.shape[-1] for each in features)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.model.dtype, device="meta")


def hf_inputs_of(model: nn.Module) -> HFInputs | None:
    """The inputs of a model of transformers, in wrappers of PEFT and torch.compile or not."""
    if sys.modules.get("transformers") is None:
        return None
    from transformers import PreTrainedModel

    base = _unwrapped(model)
    return HFInputs(base) if isinstance(base, PreTrainedModel) else None


def _unwrapped(model: Any) -> Any:
    """The model inside the wrappers of PEFT and torch.compile."""
    if "_orig_mod" in model._modules:
        return _unwrapped(model._orig_mod)
    if "peft" in sys.modules:
        from peft import PeftMixedModel, PeftModel
        from peft.tuners.tuners_utils import BaseTuner

        if isinstance(model, (PeftModel, PeftMixedModel)):
            return _unwrapped(model.base_model)
        if isinstance(model, BaseTuner):
            return _unwrapped(model.model)
    return model


def load_config(path: Path, dtype: torch.dtype | None) -> tuple[nn.Module, list[str]]:
    """Builds the model of a ``config.json``, without weights.

    Args:
        path: of the file.
        dtype: of the model; the configuration's own unless given.

    Returns:
        The model on the meta device, and notes on what was ignored.

    Raises:
        AutoloraError: transformers is missing, or the configuration describes no model it knows.
    """
    try:
        import transformers
    except ImportError as error:
        raise AutoloraError(
            f"{path} is a Hugging Face configuration, and transformers is not installed: "
            "pip install 'autolora[peft]'"
        ) from error
    try:
        config = transformers.AutoConfig.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises all kinds for a broken file
        raise AutoloraError(
            f"cannot read {path} as a Hugging Face configuration: {_brief(error)}"
        ) from error
    notes = []
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
        notes.append("its quantisation is set aside: the base weights are taken to be dense")
    dtype = dtype or getattr(config, "dtype", None) or torch.float32
    return _build(transformers, config, dtype, path), notes


def _build(transformers: Any, config: Any, dtype: torch.dtype, path: Path) -> nn.Module:
    named = (config.architectures or [None])[0]
    made = getattr(transformers, named or "", None)
    try:
        if made is None:
            both = getattr(config, "is_encoder_decoder", False)
            for auto in _ENCODER_DECODERS + _AUTO if both else _AUTO:
                kind = getattr(transformers, auto)
                if type(config) in kind._model_mapping:
                    kind._model_mapping[type(config)]  # imported here, not on the meta device
                    with torch.device("meta"):
                        return kind.from_config(config, dtype=dtype)  # type: ignore[no-any-return]
        else:
            with torch.device("meta"):
                return made._from_config(config, dtype=dtype)  # type: ignore[no-any-return]
    except Exception as error:  # sizes that do not go together, for instance
        raise AutoloraError(f"cannot build the model of {path}: {_brief(error)}") from error
    raise AutoloraError(f"{path}: transformers has no model for {type(config).__name__}")


def _image_size(config: Any) -> tuple[int, int]:
    size = getattr(config, "image_size", 224)
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _words(config: Any, batch_size: int, length: int) -> Tensor:
    """Sequences of one and the same token, which is no special token."""
    special = {
        value
        for each in (config, config.get_text_config())
        for name, value in each.to_dict().items()
        if name.endswith(("token_id", "token_index")) and isinstance(value, int)
    }
    word = next(number for number in range(len(special) + 1) if number not in special)
    return torch.full((batch_size, length), word, dtype=torch.long)


def _image_token(config: Any) -> int | None:
    """The token that stands for a part of an image, None if there is none."""
    for name in ("image_token_id", "image_token_index"):
        if isinstance(token := getattr(config, name, None), int):
            return token
    return None


def _brief(error: Exception) -> str:
    return summary_of(error) if not isinstance(error, (OSError, ValueError)) else str(error).strip()
