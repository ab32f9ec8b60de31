"""A Hugging Face ``config.json``: its model on the meta device, and the input of its forward.

The only room that imports transformers. It reads the configuration, never weights, runs no code
that a configuration names, and asks no network.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autolora.errors import AutoloraError
from autolora.tuning.model_file import one_line

logger = logging.getLogger("autolora")

CONFIG = "config.json"

_AUTO = (
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForMaskedLM",
    "AutoModelForImageClassification",
    "AutoModel",
)


@dataclass(frozen=True, slots=True)
class ConfigModel:
    """The model of a configuration.

    Args:
        model: on the meta device, without weights.
        longest: the most tokens that its positions allow, None where it does not say.
        notes: what was set aside.
    """

    model: Any
    longest: int | None
    notes: list[str]

    def inputs(self, batch_size: int, seq_len: int) -> dict[str, Tensor]:
        """The arguments of its forward for a batch, on the meta device.

        Language models get ``batch_size`` sequences of ``seq_len`` tokens, vision models
        ``batch_size`` images, speech models as many spectrograms of full length.
        """
        config, main = self.model.config, self.model.main_input_name
        tokens = torch.empty(batch_size, seq_len, dtype=torch.long, device="meta")
        if main == "pixel_values":
            height, width = _image_size(config)
            shape: tuple[int, ...] = (batch_size, getattr(config, "num_channels", 3), height, width)
            given = {main: torch.empty(shape, dtype=self.model.dtype, device="meta")}
        elif main == "input_features":
            shape = (batch_size, config.num_mel_bins, 2 * config.max_source_positions)
            given = {main: torch.empty(shape, dtype=self.model.dtype, device="meta")}
        else:
            given = {main: tokens}
        if getattr(config, "is_encoder_decoder", False):
            given["decoder_input_ids"] = tokens
        return given


def load_config(path: Path, dtype: torch.dtype | None) -> ConfigModel:
    """Builds the model of a ``config.json``, without weights.

    Args:
        path: of the file.
        dtype: of the model; the configuration's own unless given.

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
    except Exception as error:  # whatever transformers makes of a file that the user wrote
        raise AutoloraError(
            f"cannot read {path} as a Hugging Face configuration: {_brief(error)}"
        ) from error
    notes = []
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
        notes.append("its quantisation is set aside: the base weights are taken to be dense")
    dtype = dtype or getattr(config, "dtype", None) or torch.float32
    return ConfigModel(_build(transformers, config, dtype, path), _longest(config), notes)


def _build(transformers: Any, config: Any, dtype: torch.dtype, path: Path) -> nn.Module:
    named = (config.architectures or [None])[0]
    made = getattr(transformers, named or "", None)
    try:
        with torch.device("meta"):
            if made is not None:
                return made._from_config(config, dtype=dtype)  # type: ignore[no-any-return]
            order = _AUTO[1:2] + _AUTO if getattr(config, "is_encoder_decoder", False) else _AUTO
            for auto in order:
                kind = getattr(transformers, auto)
                if type(config) in kind._model_mapping:
                    return kind.from_config(config, dtype=dtype)  # type: ignore[no-any-return]
    except Exception as error:  # sizes that do not go together, for instance
        raise AutoloraError(f"cannot build the model of {path}: {_brief(error)}") from error
    raise AutoloraError(f"{path}: transformers has no model for {type(config).__name__}")


def _longest(config: Any) -> int | None:
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_target_positions"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _image_size(config: Any) -> tuple[int, int]:
    size = getattr(config, "image_size", 224)
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _brief(error: Exception) -> str:
    return one_line(error) if not isinstance(error, (OSError, ValueError)) else str(error).strip()
