"""The base of all data modules: explicit ranks, exact plans, and a position that is stored in the checkpoint."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from lightning.pytorch import LightningDataModule

from safe_rlhf_v.data_modules.loader import PlannedLoader
from safe_rlhf_v.data_modules.plan import Plan, Position, nested_subset
from safe_rlhf_v.data_modules.source import ImageOptions, OnBadSample, Sample, Source
from safe_rlhf_v.records.taxonomy import Taxonomy
from safe_rlhf_v.shards import Manifest, ShardedSplit

STATE_VERSION = 1


class ShardDataModule(LightningDataModule):
    """Splits of one shard folder, in the exact order of a plan.

    Training order depends on seed and epoch only; evaluation reads every sample once with equal steps on all ranks (the last
    batch is padded with masked rows). The position is saved in the checkpoint: a run that was killed within an epoch continues
    with the next sample, on any number of ranks with the same global batch size.
    """

    def __init__(
        self,
        path: str,
        train_split: str = "train",
        validation_splits: tuple[str, ...] = ("validation",),
        test_splits: tuple[str, ...] = ("test",),
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        max_samples: int | None = None,
        categories: tuple[str, ...] | None = None,
        on_bad_sample: OnBadSample = "error",
        images: ImageOptions | None = None,
        verify: Literal["size", "sha256"] = "size",
    ) -> None:
        """Choose the options; shards are opened later.

        Args:
            path: Shard folder (with ``manifest.json``).
            train_split: Split to train on.
            validation_splits: Splits for validation, each with its own loader.
            test_splits: Splits for testing, each with its own loader.
            batch_size: Records per device and training step.
            eval_batch_size: Records per device and evaluation step; ``None`` is ``batch_size``.
            num_workers: Number of worker processes for reading and decoding; with 0 the main process reads, and decodes large
                pictures in several threads.
            seed: Seed of the training order.
            max_samples: Train on this many samples only; a smaller subset is part of a larger one.
            categories: Train on these harm categories only; prompts without category, or with an unknown one, are left out.
            on_bad_sample: ``error`` or ``skip-and-count`` (a masked row, named in the log).
            images: Decoding limits and size.
            verify: Compare shards with the manifest by ``size`` or by every byte (``sha256``).

        Raises:
            ValueError: Naming a number that is too small.
        """
        super().__init__()
        images = images or ImageOptions()
        minima = {
            "batch_size": (batch_size, 1),
            "eval_batch_size": (eval_batch_size, 1),
            "num_workers": (num_workers, 0),
            "max_samples": (max_samples, 1),
            "images.size": (images.size, 1),
            "images.cache": (images.cache, 0),
            "images.max_pixels": (images.max_pixels, 1),
        }
        for name, (value, minimum) in minima.items():
            if value is not None and value < minimum:
                raise ValueError(f"data.{name} is {value}; it must be at least {minimum}")
        self.path = path
        self.train_split = train_split
        self.splits = {"validate": tuple(validation_splits), "test": tuple(test_splits)}
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.max_samples = max_samples
        self.categories = categories
        self.on_bad_sample: OnBadSample = on_bad_sample
        self.images = images
        self.verify: Literal["size", "sha256"] = verify
        self._loader: PlannedLoader | None = None
        self._position = Position(0, 0)
        self._open: dict[str, ShardedSplit] = {}

    @abstractmethod
    def collate(self, split: ShardedSplit) -> Callable[[list[Sample]], Any]:
        """The function that turns samples of a split into a typed batch."""

    def split(self, name: str) -> ShardedSplit:
        """An opened split."""
        if name not in self._open:
            self._open[name] = ShardedSplit(self.path, name, verify=self.verify)
        return self._open[name]

    @property
    def taxonomy(self) -> Taxonomy:
        """Harm categories of the data set."""
        return Manifest.load(self.path).taxonomy  # not from a split: a folder may hold test splits only

    def evaluation_splits(self, stage: str) -> tuple[str, ...]:
        """Names of the loaders of a stage (``validate`` or ``test``), in order."""
        return self.splits[stage]

    gives: ClassVar[type]
    """Type of its batches."""

    def setup(self, stage: str) -> None:
        """Check the data; a new run starts at the first sample, and a trainer that fits again continues at its position.

        Raises:
            ValueError: Before a model is built: if the module needs other batches, a split does not exist or is damaged, or no
                record has the chosen categories.
        """
        if self.trainer is not None:
            check: Any = getattr(self.trainer.lightning_module, "check_data", None)
            if check is not None:
                check(self)
            self.check_splits(stage)
        if stage == "fit" and self.trainer is not None and self.trainer.global_step == 0:
            self._loader = None
            self._position = Position(0, 0)

    def train_dataloader(self) -> PlannedLoader:
        """The training loader, at the position of the previous loader or of the checkpoint."""
        split = self.split(self.train_split)
        rows = nested_subset(self._chosen(split), self.max_samples, self.seed)
        position = self._loader.position if self._loader else self._position
        self._loader = self._make(split, rows, self.batch_size, self.seed)
        self._loader.position = position
        return self._loader

    def train_samples(self) -> PlannedLoader:
        """The training samples, each once and in stored order, to count what training reads."""
        split = self.split(self.train_split)
        rows = nested_subset(self._chosen(split), self.max_samples, self.seed)
        return self._make(split, rows, self.eval_batch_size, None)

    def val_dataloader(self) -> list[PlannedLoader]:
        """One loader per validation split."""
        return [self._evaluation(name) for name in self.splits["validate"]]

    def test_dataloader(self) -> list[PlannedLoader]:
        """One loader per test split."""
        return [self._evaluation(name) for name in self.splits["test"]]

    def predict_dataloader(self) -> list[PlannedLoader]:
        """The test loaders."""
        return self.test_dataloader()

    def check_splits(self, stage: str) -> None:
        """Open the splits that a stage will read.

        Raises:
            ValueError: Naming the option, if a split does not exist or is empty, no record has the chosen categories, or data
                that are for testing only would be trained on.
        """
        validating = stage == "validate" or (
            stage == "fit" and self.trainer is not None and self.trainer.enable_validation
        )
        needed = [("train_split", name) for name in (self.train_split,) if stage == "fit"]
        needed += [("validation_splits", name) for name in self.splits["validate"] if validating]
        needed += [("test_splits", name) for name in self.splits["test"] if stage in ("test", "predict")]
        for option, name in needed + self.other_splits(stage):
            splits = Manifest.load(self.path).splits
            if name not in splits:
                raise ValueError(f"data.{option} names {name!r}, but {self.path} has only {', '.join(splits)}")
            if not len(self.split(name)):
                raise ValueError(
                    f"data.{option} names {name!r}, which holds no records in {self.path}; name another split"
                )
        if stage == "fit":
            Manifest.load(self.path).check_training(self.path)
            self._chosen(self.split(self.train_split))

    def other_splits(self, stage: str) -> list[tuple[str, str]]:
        """(option, split) of further splits that a stage will read."""
        return []

    def _evaluation(self, name: str) -> PlannedLoader:
        split = self.split(name)
        return self._make(split, list(range(len(split))), self.eval_batch_size, None)

    def _chosen(self, split: ShardedSplit) -> list[int]:
        """Rows with the chosen categories.

        Raises:
            ValueError: If there are none, or a category is unknown.
        """
        if self.categories is None:
            return list(range(len(split)))
        try:
            rows = split.rows_of(self.categories)
        except ValueError as error:
            raise ValueError(f"data.categories: {error}") from None
        if not rows:
            raise ValueError(
                f"data.categories: split {split.name!r} of {self.path} has no record of the categories {self.categories}"
            )
        return rows

    def _make(
        self,
        split: ShardedSplit,
        rows: list[int],
        batch_size: int,
        seed: int | None,
        collate: Callable[[list[Sample]], Any] | None = None,
        option: str = "batch_size",
    ) -> PlannedLoader:
        # Rank and world size are passed explicitly: read inside spawned workers they would be silently wrong.
        world = self.trainer.world_size if self.trainer else 1
        rank = self.trainer.global_rank if self.trainer else 0
        source = Source(split, rows, collate or self.collate(split), self.images, self.on_bad_sample)
        plan = Plan(len(rows), batch_size, world, rank, seed, split.name, option)
        # The records are cached where they are decoded: in workers that live as long as the loader.
        return PlannedLoader(source, plan, workers=self.num_workers, persistent=self.images.cache > 0)

    def _stream(self) -> dict[str, Any]:
        """Settings that must be equal for a position to mean the same sample."""
        world = self.trainer.world_size if self.trainer else 1
        return {
            "seed": self.seed,
            "global_batch": self.batch_size * world,
            "train_split": self.train_split,
            "max_samples": self.max_samples,
            "categories": list(self.categories) if self.categories else None,
            "manifest": self.split(self.train_split).manifest.digest,
        }

    def state_dict(self) -> dict[str, Any]:
        """The position, and the settings that it refers to."""
        position = self._loader.position if self._loader else self._position
        return {"version": STATE_VERSION, **position._asdict(), "stream": self._stream()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at a saved position.

        Raises:
            ValueError: Naming the difference, if the position would mean another sample.
        """
        if self.trainer is not None and self.trainer.state.fn != "fit":
            return  # a checkpoint may be evaluated on other data
        if state_dict["version"] != STATE_VERSION:
            raise ValueError(f"the checkpoint's data position has version {state_dict['version']}, not {STATE_VERSION}")
        now = self._stream()
        for name, value in state_dict["stream"].items():
            if now[name] != value:
                hint = ""
                if name == "global_batch":
                    world = self.trainer.world_size if self.trainer else 1
                    hint = f": set batch_size to {value // world} on {world} rank(s)" if value % world == 0 else ""
                raise ValueError(
                    f"the checkpoint's data position was saved with {name} = {value!r}, now it is {now[name]!r}{hint}; "
                    "resume with the same data, or start a new run with init_from"
                )
        self._position = Position(state_dict["epoch"], state_dict["batch"])
        if self._loader is not None:  # some strategies restore after the loader was created
            self._loader.position = self._position
