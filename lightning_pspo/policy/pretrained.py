"""A pretrained model on the hub or in a folder: config, tokenizer, generation settings, weights."""

from __future__ import annotations

import copy
import functools
import json
import logging
import pickle
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import try_to_load_from_cache
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
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME

from lightning_pspo.errors import InputError, is_panic
from lightning_pspo.files import foreign
from lightning_pspo.policy.download import Download
from lightning_pspo.policy.location import (
    ADAPTER_CONFIG,
    EMBEDDED,
    UNREADABLE,
    check_folder,
    check_layers,
    first_line,
    index_parts,
    read_entries,
)

logger = logging.getLogger(__name__)

_ASSETS = Path(__file__).parents[1] / "assets" / "tiny_policy"
_GENERIC_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
_CHUNK, _CHUNKS = 2**16, 64  # bytes of a chunk, and chunks of a weight file that the fingerprint reads
_CONTEXT_LIMITS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "max_seq_length", "seq_length"),
    *("max_sequence_len", "max_context_length", "max_target_positions", "model_max_length", "context_length"),
    *("seq_len", "n_ctx", "context_window", "max_context_len", "max_tokens"),
)


class Pretrained:
    """A model's files. Everything except the weights is read at once.

    Args:
        name: Hub id, local folder, or ``embedded``. A folder may hold a PEFT adapter, with or without its base model.
        revision: Hub revision.
        trust_remote_code: Allow model code from the hub or folder to run.

    Attributes:
        location: ``name``, or the folder of the embedded policy.
        base: Hub id or folder of config and weights; differs from ``location`` for an adapter without its base model.
        revision: Revision of ``base``.
        config: The model's config, with all dropout at 0.
        tokenizer: Of the class that the model's files name.
        generation_config: The model's own settings.

    Raises:
        InputError: If something cannot be read or used.
    """

    def __init__(self, *, name: str, revision: str | None = None, trust_remote_code: bool = False) -> None:
        self.name = name
        self.location = str(_ASSETS) if name == EMBEDDED else name
        check_folder(self.location)
        self.base, self.revision = _base_of(Path(self.location), self.location, revision)
        check_folder(self.base)
        self.trust_remote_code = trust_remote_code
        self._loading: dict[str, Any] = {"revision": self.revision, "trust_remote_code": trust_remote_code}
        self._download = None if Path(self.base).is_dir() else Download(self.base, self.revision)
        if self._download is not None:
            self._loading["local_files_only"] = self._download.has_everything(trust_remote_code)
        self.config = self._read_config()
        self.tokenizer = self._read_tokenizer()
        self.generation_config = self._read_generation_config()

    def load(self, **options: Any) -> PreTrainedModel:
        """Read the weights, from safetensors or else with torch's weights-only unpickler.

        The options are further arguments of ``from_pretrained``.
        """
        if self._download is not None:
            self._download.weights()
            options["adapter_kwargs"] = {"local_files_only": self._loading["local_files_only"]}
        read: Any = AutoModelForCausalLM.from_pretrained
        try:
            model, report = read(
                self.location,
                config=self.config,
                weights_only=True,
                output_loading_info=True,
                **self._loading,
                **options,
            )
        except pickle.UnpicklingError as error:
            raise InputError(
                f"Cannot load the weights of {self.name!r}: they hold Python objects, which could run code; convert "
                "them to safetensors where they were made."
            ) from error
        except UNREADABLE as error:
            reason = _foreign_weights(Path(self.location)) or first_line(error)
            if "ignore_mismatched_sizes" in reason:  # what transformers says of a list that it has printed
                reason = f"their shapes, in the list above, are not those that {CONFIG_NAME} asks for."
            raise InputError(f"Cannot load the weights of {self.name!r}: {reason}") from error
        if missing := sorted(report["missing_keys"]):  # transformers would draw them at random
            raise InputError(
                f"Cannot load the weights of {self.name!r}: {len(missing)} that {CONFIG_NAME} asks for are missing, "
                f"such as {missing[0]}; complete the weights, or correct the config."
            )
        logger.debug("Loaded %s, fingerprint %s.", self.name, self.fingerprint)  # of the files as they are now
        return cast(PreTrainedModel, model)

    def skeleton(self) -> PreTrainedModel:
        """Return the model on the meta device, without memory for its weights."""
        with torch.device("meta"):
            make: Any = AutoModelForCausalLM.from_config
            config = copy.deepcopy(self.config)  # which may name an attention that loading replaces
            try:
                model = make(config, attn_implementation="eager", trust_remote_code=self.trust_remote_code)
            except UNREADABLE as error:
                raise InputError(f"{CONFIG_NAME} of {self.name!r} gives no model: {first_line(error)}") from error
        return cast(PreTrainedModel, model)

    @property
    def folder(self) -> str | None:
        """Absolute path of a model in a folder of the user's; None for any other."""
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
    def context_length(self) -> int | None:
        """Number of positions that the model was made for; None if its config gives no limit.

        Model types name it differently, and a config can hold more than one of the names: the smallest counts. LongRoPE
        changes its frequencies where a pass exceeds the original length, and with them the log-probs of all its rows,
        so that the original length is the limit.
        """
        config = self.config.get_text_config()
        limits = [getattr(part, name, None) for part in (self.config, config) for name in _CONTEXT_LIMITS]
        return min(
            (limit for limit in [*limits, *_longrope_limits(config)] if isinstance(limit, int) and limit > 0),
            default=None,
        )

    @property
    def has_jitter(self) -> bool:
        """Whether the model's router adds noise in training mode."""
        entries = self.config.get_text_config().to_dict().items()
        return any("jitter" in name and isinstance(value, float) and value > 0.0 for name, value in entries)

    @functools.cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a completion."""
        entries = [self.tokenizer.eos_token_id, self.generation_config.eos_token_id, self.config.eos_token_id]
        flat = [id_ for entry in entries for id_ in (entry if isinstance(entry, list | tuple) else [entry])]
        if any(id_ is not None and type(id_) is not int for id_ in flat):
            raise InputError(f"`eos_token_id` of {self.name!r} must be the ids of tokens, got {flat!s:.80}.")
        vocab_size = self.config.get_text_config().vocab_size
        default = type(self.config)().eos_token_id  # GPT-2's, which models of its class with few tokens keep
        flat = [id_ for id_ in flat if id_ is not None and (id_ != default or id_ < vocab_size)]
        if outside := [id_ for id_ in flat if not 0 <= id_ < vocab_size]:
            raise InputError(
                f"`eos_token_id` of {self.name!r} must be in its vocabulary of {vocab_size}, got {outside[0]}: set it "
                f"to {self.tokenizer.eos_token_id}, the tokenizer's, in {CONFIG_NAME} and {GENERATION_CONFIG_NAME}."
            )
        return tuple(sorted({*flat}))

    def decoded_with_special_tokens(self, rows: Sequence[list[int]]) -> list[str | None]:
        """Decode completions with their special tokens, without those of beginning, end and padding.

        A completion without such a token gives None.
        """
        tokenizer = self.tokenizer
        dropped = {*self.eos_ids, tokenizer.pad_token_id, tokenizer.bos_token_id}
        special = set(tokenizer.all_special_ids) - dropped
        texts: list[str | None] = []
        for row in rows:
            ids = [id_ for id_ in row if id_ not in dropped]
            texts.append(None if special.isdisjoint(row) else str(tokenizer.decode(ids, skip_special_tokens=False)))
        return texts

    @functools.cached_property
    def fingerprint(self) -> str | None:
        """Sixteen hexadecimal digits that identify config and weights, wherever they are stored.

        Of each large file only evenly spread chunks are read, a few megabytes. Training moves every weight, so another
        model is recognised, but a single changed byte is not. A model of the hub must have been loaded before. None if
        the weights are in files that transformers would not name so.
        """
        config, weights = self.find(CONFIG_NAME), self._weight_files()
        if config is None or not weights:
            return None
        digest = sha256(config.read_bytes())
        for path in weights:
            size = path.stat().st_size
            digest.update(size.to_bytes(8, "little"))
            with path.open("rb") as file:
                for start in _chunk_starts(size):
                    file.seek(start)
                    digest.update(file.read(_CHUNK))
        return digest.hexdigest()[:16]

    def find(self, name: str) -> Path | None:
        """Return the path of a file beside the weights, in the folder or the hub's cache; None if it does not exist."""
        if Path(self.base).is_dir():
            path = Path(self.base) / name
            return path if path.is_file() else None
        cached = try_to_load_from_cache(self.base, name, revision=self.revision)
        return Path(cached) if isinstance(cached, str) else None

    def _weight_files(self) -> list[Path]:
        for name in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME):
            single, index = self.find(name), self.find(f"{name}.index.json")
            if single is not None:
                return [single]
            if index is not None:
                return [path for part in index_parts(index) if (path := self.find(part)) is not None]
        return []

    def _read_config(self) -> PreTrainedConfig:
        if (path := self.find(CONFIG_NAME)) is not None:
            check_layers(read_entries(path), path)
        try:
            config = AutoConfig.from_pretrained(self.base, **self._loading)
            _switch_off_dropout(config)
            stored: Any = getattr(config, "quantization_config", None)
            quantizers: Any = AutoHfQuantizer
            is_known = stored is None or quantizers.supports_quant_method(stored)
        except UNREADABLE as error:
            if not self.trust_remote_code and _names_own_code(path):
                raise InputError(
                    f"The model {self.base!r} brings its own Python code: read it, then set `trust_remote_code` if you "
                    "trust it."
                ) from error
            raise InputError(
                f"`model_name_or_path` must be a hub id or a folder with a model of transformers, "
                f"got {self.name!r}: {first_line(error)}"
            ) from error
        if not is_known:  # transformers would take the weights for what they are not
            raise InputError(
                f"`quant_method` in {CONFIG_NAME} of {self.name!r} must be one that transformers knows, got "
                f"{stored.get('quant_method')!r:.60}: remove `quantization_config` if the weights are not quantised."
            )
        for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
            attention = getattr(part, "_attn_implementation", None)
            if not isinstance(attention, str | None):
                raise InputError(f"`attn_implementation` of {self.name!r} must be a text, got {attention!r:.40}.")
            if "/" in (attention or "") and not self.trust_remote_code:
                raise InputError(
                    f"The config of {self.name!r} asks for attention code from the hub, {attention}: set "
                    "`trust_remote_code` if you trust it, or remove the entry."
                )
        config.return_dict = True
        if _longrope_limits(config):
            logger.warning(
                "%s uses LongRoPE, which changes all log-probs of a pass that exceeds its original length: prompts and "
                "completions are limited to %d tokens.",
                self.name,
                min(_longrope_limits(config)),
            )
        return cast(PreTrainedConfig, config)

    def _read_tokenizer(self) -> PreTrainedTokenizerBase:
        try:
            declared = get_tokenizer_config(self.location, **self._loading).get("tokenizer_class")
            # AutoTokenizer rebuilds a generic tokenizer as the model type's own class, which may split differently.
            loader: Any = PreTrainedTokenizerFast if declared in _GENERIC_TOKENIZERS else AutoTokenizer
            tokenizer = loader.from_pretrained(self.location, **self._loading)
            tokenizer.encode("1")
            merges: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
            if getattr(merges, "dropout", None):
                logger.info("Setting the tokenizer's dropout to 0: the same text must give the same prompt.")
                merges.dropout = None
        except BaseException as error:  # tokenizers has no type of its own, and Rust's panic is no Exception
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            raise InputError(f"No usable tokenizer in {self.name!r}: {first_line(error)}") from error
        if tokenizer.eos_token_id is None:
            raise InputError(f"The tokenizer of {self.name!r} must have an EOS token: set `eos_token` in its config.")
        used = {tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id}
        idle = set(tokenizer.all_special_ids) - used  # the class may define a token that the model never uses
        largest = max(id_ for id_ in tokenizer.get_vocab().values() if id_ not in idle)
        vocab_size = self.config.get_text_config().vocab_size
        if largest >= vocab_size:
            raise InputError(
                f"The tokenizer of {self.name!r} must fit the model's vocabulary of {vocab_size}, "
                f"it has the id {largest}."
            )
        return cast(PreTrainedTokenizerBase, tokenizer)

    def _read_generation_config(self) -> GenerationConfig:
        for location in (self.location, self.base):
            try:
                return GenerationConfig.from_pretrained(location, **self._loading)
            except OSError:  # optional; the model's config then names the special tokens
                continue
            except UNREADABLE as error:
                raise InputError(f"No usable {GENERATION_CONFIG_NAME} in {location!r}: {first_line(error)}") from error
        return GenerationConfig.from_model_config(self.config)


def _foreign_weights(folder: Path) -> str | None:
    """Return which file of weights is something else, such as a pointer of Git LFS, and what to do; None if none is."""
    for path in filter(Path.is_file, sorted(folder.rglob("*.safetensors"))):
        with path.open("rb") as file:
            head = file.read(1024)
        if b"\0" not in head[:8] and (reason := foreign(head)):  # where weights have the size of their header
            return f"{path.name}{reason}"
    return None


def _names_own_code(config: Path | None) -> bool:
    """Tell whether a config.json asks for the model's own Python code."""
    return config is not None and "auto_map" in json.loads(config.read_text(encoding="utf-8"))


def _rope_entries(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """Return the settings of a model's rotary frequencies, of all layers or by their type."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return [entry for entry in (rope, *rope.values()) if isinstance(entry, dict)]


def rope_types(config: PreTrainedConfig) -> set[str]:
    """Return the kinds of rotary frequencies that a model has, such as "default" or "dynamic"."""
    return {str(entry.get("rope_type")) for entry in _rope_entries(config)}


def _longrope_limits(config: PreTrainedConfig) -> list[int]:
    """Return the original lengths of a model with LongRoPE; none for any other model."""
    entries = [entry for entry in _rope_entries(config) if entry.get("rope_type") == "longrope"]
    lengths = [entry.get("original_max_position_embeddings") for entry in entries]
    return [length for length in lengths if isinstance(length, int)]


def _switch_off_dropout(config: PreTrainedConfig) -> None:
    """Switch off dropout, and the loss of routers, which this objective ignores and which fails beside a cache."""
    for part in (config, config.get_text_config()):
        if getattr(part, "output_router_logits", None):
            logger.info("Setting output_router_logits to false: a balancing loss is no part of this objective.")
            setattr(part, "output_router_logits", False)  # noqa: B010 - which no base class declares
        for name, value in part.to_dict().items():
            if "drop" in name and isinstance(value, float) and value > 0.0:
                logger.info("Setting %s from %s to 0: log-probs of training and rollout must agree.", name, value)
                setattr(part, name, 0.0)


def _base_of(folder: Path, location: str, revision: str | None) -> tuple[str, str | None]:
    """Return hub id or folder of config and weights, and their revision."""
    path = folder / ADAPTER_CONFIG
    if not path.is_file() or (folder / CONFIG_NAME).is_file():
        return location, revision
    entry = json.loads(path.read_text(encoding="utf-8"))
    base, own = entry.get("base_model_name_or_path"), entry.get("revision") or revision
    if not base or not isinstance(base, str) or not isinstance(own, str | None):
        raise InputError(
            f"The adapter config {path} must name its base model in `base_model_name_or_path`, and perhaps its "
            f"`revision`, got {base!r:.60} and {own!r:.60}."
        )
    return base, own


def _chunk_starts(size: int) -> list[int]:
    """Return the offsets of the chunks of a file that the fingerprint reads: all of a small one's.

    >>> _chunk_starts(150_000)
    [0, 65536, 131072]
    >>> starts = _chunk_starts(10**9)
    >>> len(starts), starts[0], starts[-1] + _CHUNK
    (64, 0, 1000000000)
    """
    if size <= _CHUNK * _CHUNKS:
        return list(range(0, size, _CHUNK))
    return [(size - _CHUNK) * step // (_CHUNKS - 1) for step in range(_CHUNKS)]
