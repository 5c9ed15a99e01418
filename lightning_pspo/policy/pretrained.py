"""A pretrained model as it is found, on the hub or in a folder: config, tokenizer, generation settings, weights."""

from __future__ import annotations

import functools
import json
import logging
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME

from lightning_pspo.errors import InputError

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
"""The tiny policy that comes with the package."""

ADAPTER_CONFIG = "adapter_config.json"
_ASSETS = Path(__file__).parents[1] / "assets" / "tiny_policy"
_GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
_STRETCH, _STRETCHES = 2**16, 64  # bytes, and how many such stretches are read of a weight file


class Pretrained:
    """All but the weights is read at once.

    Args:
        name: Hub id, local folder, or ``embedded``. A folder may hold a PEFT adapter, with its model or without.
        revision: Hub revision.
        trust_remote_code: Allow model code from the hub or folder to run.

    Attributes:
        location: ``name``, or the folder that ``embedded`` stands for.
        base: Where config and weights are, hub id or folder: elsewhere for an adapter without its model.
        revision: That of ``base``.
        config: With all dropout at 0.
        tokenizer: As the model's own files say.
        generation_config: The model's own settings.

    Raises:
        InputError: If something cannot be read, or cannot be used.
    """

    def __init__(self, name: str, revision: str | None, trust_remote_code: bool) -> None:
        self.name = name
        self.location = str(_ASSETS) if name == EMBEDDED else name
        self.base, self.revision = _base_of(Path(self.location), self.location, revision)
        self.trust_remote_code = trust_remote_code
        self._loading: dict[str, Any] = {"revision": self.revision, "trust_remote_code": trust_remote_code}
        self.config = self._read_config()
        self.tokenizer = self._read_tokenizer()
        self.generation_config = self._read_generation_config()

    def load(self, **more: Any) -> PreTrainedModel:
        """Read the weights.

        Args:
            more: Further arguments of ``from_pretrained``.

        Raises:
            InputError: If they cannot be read.
        """
        try:
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                self.location, config=self.config, **self._loading, **more
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError(f"Cannot load the weights of {self.name!r}: {first_line(error)}") from error
        logger.debug("Loaded %s, fingerprint %s.", self.name, self.fingerprint)  # of the files as they are now
        return model

    def skeleton(self) -> PreTrainedModel:
        """Return the model without memory for its weights."""
        with torch.device("meta"):
            make: Any = AutoModelForCausalLM.from_config
            model: PreTrainedModel = make(self.config, trust_remote_code=self.trust_remote_code)
        return model

    @property
    def folder(self) -> str | None:
        """Absolute path of a model that lies in a folder of the user's; None for any other."""
        path = Path(self.location)
        return str(path.resolve()) if path.is_dir() and self.name != EMBEDDED else None

    @property
    def holds_adapter(self) -> bool:
        """Whether the folder holds an adapter."""
        return (Path(self.location) / ADAPTER_CONFIG).is_file()

    @property
    def is_quantized(self) -> bool:
        """Whether the weights are stored quantised."""
        return getattr(self.config, "quantization_config", None) is not None

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a completion."""
        named = [self.tokenizer.eos_token_id, self.generation_config.eos_token_id, self.config.eos_token_id]
        flat = [id_ for entry in named for id_ in (entry if isinstance(entry, list | tuple) else [entry])]
        return tuple(sorted({id_ for id_ in flat if id_ is not None}))

    @functools.cached_property
    def fingerprint(self) -> str | None:
        """What tells config and weights from any others, wherever they lie: sixteen hexadecimal digits.

        Of each large file only some evenly spread stretches are read, a few megabytes: training moves every weight, so
        that another model is seen, but not a single changed byte. A model of the hub must have been loaded. None where
        the weights are in files of other names than transformers'.
        """
        config, weights = self.find(CONFIG_NAME), self._weight_files()
        if config is None or not weights:
            return None
        digest = sha256(config.read_bytes())
        for path in weights:
            size = path.stat().st_size
            digest.update(size.to_bytes(8, "little"))
            with path.open("rb") as file:
                for start in _stretches(size):
                    file.seek(start)
                    digest.update(file.read(_STRETCH))
        return digest.hexdigest()[:16]

    def find(self, name: str) -> Path | None:
        """Return a file beside the weights, from the folder or the hub's cache; None if there is none."""
        if Path(self.base).is_dir():
            path = Path(self.base) / name
            return path if path.is_file() else None
        found = try_to_load_from_cache(self.base, name, revision=self.revision)
        return Path(found) if isinstance(found, str) else None

    def _weight_files(self) -> list[Path]:
        for name in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME):
            whole, index = self.find(name), self.find(f"{name}.index.json")
            if whole is not None:
                return [whole]
            if index is not None:
                parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
                return [path for part in parts if (path := self.find(part)) is not None]
        return []

    def _read_config(self) -> PreTrainedConfig:
        try:
            config = AutoConfig.from_pretrained(self.base, **self._loading)
        except (OSError, ValueError) as error:
            raise InputError(
                f"`model_name_or_path` must be a hub id or a folder with a config.json, "
                f"got {self.name!r}: {first_line(error)}"
            ) from error
        for part in (config, config.get_text_config()):
            for name, value in part.to_dict().items():
                if "drop" in name and isinstance(value, float) and value > 0.0:
                    logger.info("Setting %s from %s to 0: train and rollout log-probs must agree.", name, value)
                    setattr(part, name, 0.0)
        return cast(PreTrainedConfig, config)

    def _read_tokenizer(self) -> PreTrainedTokenizerBase:
        try:
            declared = get_tokenizer_config(self.location, **self._loading).get("tokenizer_class")
            # AutoTokenizer rebuilds a generic tokenizer as the model type's own class, which may split differently.
            loader: Any = PreTrainedTokenizerFast if declared in _GENERIC_TOKENIZERS else AutoTokenizer
            tokenizer = loader.from_pretrained(self.location, **self._loading)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise InputError(f"No usable tokenizer in {self.name!r}: {first_line(error)}") from error
        if tokenizer.eos_token_id is None:
            raise InputError(f"The tokenizer of {self.name!r} must have an EOS token, it has none.")
        used = {tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id}
        idle = set(tokenizer.all_special_ids) - used  # the class may know a token that the model has no use for
        largest = max(id_ for id_ in tokenizer.get_vocab().values() if id_ not in idle)
        vocab_size = self.config.get_text_config().vocab_size
        if largest >= vocab_size:
            raise InputError(
                f"The tokenizer of {self.name!r} must fit the model's vocabulary of {vocab_size}, "
                f"it has the id {largest}."
            )
        return cast(PreTrainedTokenizerBase, tokenizer)

    def _read_generation_config(self) -> GenerationConfig:
        for place in (self.location, self.base):
            try:
                return GenerationConfig.from_pretrained(place, **self._loading)
            except OSError:  # a model need not have one; its config then names the special tokens
                continue
        return GenerationConfig.from_model_config(self.config)


def first_line(error: Exception) -> str:
    r"""Return the first line of an error's message.

    >>> first_line(ValueError("No weights.\nLook elsewhere."))
    'No weights.'
    """
    return str(error).strip().split("\n")[0]


def _base_of(folder: Path, location: str, revision: str | None) -> tuple[str, str | None]:
    """Return hub id or folder of config and weights, and their revision.

    Raises:
        InputError: If an adapter does not say what it belongs to.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file() or (folder / CONFIG_NAME).is_file():
        return location, revision
    entry = json.loads(path.read_text(encoding="utf-8"))
    if not entry.get("base_model_name_or_path"):
        raise InputError(f"{path} must name the model that the adapter belongs to, it names none.")
    return entry["base_model_name_or_path"], entry.get("revision") or revision


def _stretches(size: int) -> list[int]:
    """Return where the stretches of a file begin that are looked at: all of a small one's.

    >>> _stretches(150_000)
    [0, 65536, 131072]
    >>> found = _stretches(10**9)
    >>> len(found), found[0], found[-1] + _STRETCH
    (64, 0, 1000000000)
    """
    if size <= _STRETCH * _STRETCHES:
        return list(range(0, size, _STRETCH))
    return [(size - _STRETCH) * step // (_STRETCHES - 1) for step in range(_STRETCHES)]
