"""An engine for a training: loaded, and with a twin of its model."""

from __future__ import annotations

from typing import Any

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.errors import TrainingError
from mlx_parallm.models.adapting.twin import twin_of
from mlx_parallm.models.loader import LoadedModel, load_model
from mlx_parallm.training.dataset import Dataset
from mlx_parallm.training.settings import TrainSettings

_VERSIONS = 2  # of the policy on the device: one that rows use, and the next


class Twin:
    """Makes a twin of a model while an engine loads it: `keep` is for the engine's thread."""

    def __init__(self) -> None:
        self.model: Any = None

    def keep(self, loaded: LoadedModel) -> None:
        """Remember a twin of what was loaded.

        Raises:
            TrainingError: it cannot write text.
        """
        if loaded.is_encoder:
            raise TrainingError(f"{loaded.path}: an encoder writes no text.", param="model")
        self.model = twin_of(loaded.model)


def start_engine(settings: TrainSettings) -> tuple[Engine, Any]:
    """A running engine that serves nobody else, and the twin of its model.

    Raises:
        ModelLoadError: the model cannot be loaded.
    """
    twin = Twin()

    def load() -> LoadedModel:
        loaded = load_model(settings.model, dtype=settings.dtype)
        twin.keep(loaded)
        return loaded

    config = EngineConfig(
        max_batch_size=settings.max_batch_size,
        max_queue=settings.prompts_per_step * settings.group_size,
        max_loras=_VERSIONS,
        max_lora_rank=settings.lora.rank,
    )
    engine = Engine(load, config)
    engine.start()
    engine.wait_ready()
    return engine, twin.model


def read_dataset(settings: TrainSettings, engine: Engine) -> Dataset:
    """The data, tokenized for the engine's model.

    Raises:
        TrainingError: it cannot be used.
    """
    loaded = engine.loaded
    assert loaded is not None
    longest = loaded.max_model_len - settings.max_tokens
    return Dataset.read(settings.data, loaded.tokenizer, settings.seed, longest)
