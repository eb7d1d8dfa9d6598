"""Multi-task training as a method: a timm backbone, and heads of the configuration's choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_faces.backbones import Backbone
from lightning_faces.batch import FaceBatch, FacePrediction, FaceSpec
from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.geometry.frames import unit_to_image
from lightning_faces.heads import Features, Term
from lightning_faces.heads.base import autocast_off
from lightning_faces.heads.landmark_marks import MarkedLandmarks
from lightning_faces.methods.base import FaceMethod, weighted_sum
from lightning_faces.methods.checkpoint import read_checkpoint, unfit
from lightning_faces.methods.multitask.fusion import MESHES, fuse
from lightning_faces.methods.multitask.gradients import gradient_conflicts
from lightning_faces.methods.multitask.heads import MARKS, OF_MAPS, OF_MODEL, check_heads, make_heads, sources_of
from lightning_faces.methods.torch_file import BROKEN
from lightning_faces.morphable import MorphableModel

DEFAULT_HEADS = ("landmarks", "coefficients", "visibility", "uncertainty")
FUSION = "fusion"
Heads = Mapping[str, dict[str, Any]]


class MultiTask(FaceMethod):
    """One network for landmarks, depth, shape, pose, facial actions, visibility, uncertainty, and maps of positions.

    Each sample trains the heads whose targets it has. Predictions are named after the heads that place a face, with
    what "visibility" and "uncertainty" say of their landmarks; the last one, "fusion", is made of all, as
    :func:`.fuse` says.

    Args:
        image_size: Side of the input in pixels.
        encoder: Name of a timm model.
        encoder_args: Further arguments of ``timm.create_model``.
        pretrained: Whether it starts from its published weights.
        heads: By name, with the options of its class in ``lightning_faces/heads``: "landmarks" (Zhao 2016's), "depth"
            (of these landmarks, Zhao 2016's), "coefficients" (with pose), "visibility", "uncertainty", "position_map"
            (PRNet's) and "geometry_images" (Pix2face's). None takes landmarks, coefficients, visibility and
            uncertainty.
        weights: What the loss of a head counts; 1 where none is given.
        balancing: "fixed" weights, or "uncertainty": each head's loss L becomes ``exp(-s) L / 2 + s / 2`` with a learnt
            s (Kendall et al. 2018, section 3.2), beside the fixed weight. The head "uncertainty" keeps its weight: its
            loss is a likelihood already.
        gradient_interval: Steps between two measurements of the norms and cosines of the heads' gradients in the
            backbone (``gradient/...``); 0 measures none.
        compiled: Whether ``torch.compile`` makes the backbone faster.
        freeze: "backbone" and names of heads that are not trained; their running statistics stay as they are too.
        start_from: Checkpoint of a MultiTask, from which the backbone and all heads of the same name take their
            weights. Heads that it does not have start anew.
        face_model: Name or path of the morphable model of the data.
        optimizer: Makes the optimizer.
        lr_scheduler: Makes the learning-rate schedule.
        lr_scheduler_interval: Whether the schedule advances by epoch or by step.

    Raises:
        ConfigurationError: If a head or an option does not exist, or the backbone does not give what a head reads.

    Example:
        >>> method = MultiTask(64, "test_resnet", heads={"landmarks": {}, "coefficients": {}}).eval()
        >>> method.prediction_names
        ('landmarks', 'coefficients', 'fusion')
        >>> method(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 68, 3])
    """

    def __init__(
        self,
        image_size: int = 112,
        encoder: str = "resnet18",
        encoder_args: dict[str, Any] | None = None,
        pretrained: bool = False,
        heads: dict[str, dict[str, Any]] | None = None,
        weights: dict[str, float] | None = None,
        balancing: Literal["fixed", "uncertainty"] = "fixed",
        gradient_interval: int = 0,
        compiled: bool = False,
        freeze: list[str] | None = None,
        start_from: str | None = None,
        face_model: str = "embedded",
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__(optimizer, lr_scheduler, lr_scheduler_interval)
        chosen = check_heads({name: {} for name in DEFAULT_HEADS} if heads is None else heads)
        self.weights = _check_weights(weights or {}, chosen)
        if gradient_interval < 0:
            raise ConfigurationError(
                f"MultiTask option gradient_interval is {gradient_interval}: give 0 or more steps."
            )
        self.image_size, self.gradient_interval, self.compiled = image_size, gradient_interval, compiled
        self.backbone = Backbone(
            "MultiTask option encoder", encoder, image_size, pretrained,
            pooled=any(name not in OF_MAPS for name in chosen), maps=any(name in OF_MAPS for name in chosen),
            **(encoder_args or {}),
        )  # fmt: skip
        self.heads = make_heads(chosen, self.backbone.shape, face_model)
        self.requires = frozenset().union(*(self._head(name).requires for name in chosen))
        of_model = [name for name in chosen if name in OF_MODEL]
        self.face_model: MorphableModel | None = self._head(of_model[0]).face_model if of_model else None
        if of_model:
            self.scores = frozenset({"vertices", "coefficients", "pose"})
        self.prediction_names = (*(name for name in chosen if name not in MARKS), FUSION)
        self.log_variances = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(())) for name in chosen if name != "uncertainty"}
            if balancing == "uncertainty"
            else {}
        )
        self._head_of_term: dict[str, str] = {}
        self._extract: Callable[[Tensor], Features] | None = None
        if start_from is not None:
            self._start_from(Path(start_from).expanduser())
        self.frozen = self._freeze(freeze or [])

    def _head(self, name: str) -> Any:
        return self.heads[name]

    def _freeze(self, names: list[str]) -> list[nn.Module]:
        frozen: list[nn.Module] = []
        for name in names:
            if name != "backbone" and name not in self.heads:
                raise ConfigurationError(
                    f"MultiTask option freeze names {name!r}: use backbone or one of the heads {', '.join(self.heads)}."
                )
            frozen.append((self.backbone if name == "backbone" else self.heads[name]).requires_grad_(False).eval())
        if not any(parameter.requires_grad for parameter in self.parameters()):
            raise ConfigurationError("MultiTask option freeze leaves nothing to train: name fewer parts.")
        return frozen

    def _start_from(self, path: Path) -> None:
        try:
            weights = read_checkpoint(path)["state_dict"]
            parts: dict[str, nn.Module] = {"backbone.": self.backbone}
            parts |= {f"heads.{name}.": head for name, head in self.heads.items()}
            for prefix, part in parts.items():
                own = {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
                if own or part is self.backbone:
                    part.load_state_dict(own)
        except (ConfigurationError, DataError) as error:
            raise ConfigurationError(f"MultiTask option start_from is {path}, which cannot be used: {error}") from error
        except BROKEN as error:
            raise ConfigurationError(f"MultiTask option start_from: {unfit(path, error)}") from error

    def train(self, mode: bool = True) -> MultiTask:
        """Switch to training; frozen parts keep their running statistics."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """A copy compiles its own backbone."""
        return {**super().__getstate__(), "_extract": None}

    @property
    def spec(self) -> FaceSpec:
        """Crops of ``image_size`` with 68 landmarks, of the same face model where a head speaks of one."""
        model = self.face_model
        return FaceSpec(
            image_size=self.image_size,
            landmark_scheme="68",
            face_model=None if model is None else model.name,
            face_model_hash=None if model is None else model.hash,
            num_identity=None if model is None else model.num_identity,
            num_expression=None if model is None else model.num_expression,
            num_vertices=None if model is None else model.num_vertices,
            position_map_size=self._head("position_map").map_size if "position_map" in self.heads else None,
        )

    def forward(self, image: Tensor) -> Tensor:
        """Images ``[B, 3, S, S]`` in [0, 1] to the fused landmarks ``[B, 68, 3]``, image frame."""
        return self.predict_faces({"image": image}).landmarks  # type: ignore[typeddict-item]

    def outputs(self, image: Tensor) -> dict[str, Any]:
        """What each head gives for images ``[B, 3, S, S]``, by its name."""
        if self.compiled and self._extract is None:
            self._extract = torch.compile(self.backbone.extract)
        features = (self._extract or self.backbone.extract)(image)
        found: dict[str, Any] = {}
        # Depth and marks after the heads that they work on.
        for name in sorted(self.heads, key=("depth", *MARKS).__contains__):
            if name == "depth":
                found[name] = self._head(name)(found["landmarks"])
            elif name in MARKS:
                found[name] = self._head(name)((features, self._places(found)))
            else:
                found[name] = self._head(name)(features)
        return found

    def _places(self, outputs: Mapping[str, Any]) -> Tensor:
        """Landmarks ``[B, S, 68, 2]`` in pixels, of the heads that can be marked."""
        places = []
        for name in sources_of(outputs):
            output = outputs[name]
            if name == "landmarks":
                places.append(unit_to_image(output, self.image_size))
                continue
            with autocast_off(outputs[name][0].device):
                if name == "coefficients":
                    places.append(self._head(name).landmarks(output))
                else:
                    places.append(self._head(name).uv.landmarks(output * self.image_size)[..., :2])
        return torch.stack(places, dim=1)

    def terms(self, batch: FaceBatch) -> dict[str, Term]:
        """The terms of all heads; of "uncertainty" balancing also ``balance_HEAD``, the half of its s."""
        outputs = self.outputs(batch["image"])
        terms: dict[str, Term] = {}
        for name in self.heads:
            own: dict[str, Term] = self._head(name).terms(outputs[name], batch)
            self._head_of_term.update(dict.fromkeys(own, name))
            factor: float | Tensor = self.weights.get(name, 1.0)
            if name in self.log_variances:
                s = self.log_variances[name]
                factor = factor * 0.5 * torch.exp(-s)
                there = torch.stack([term.count > 0 for term in own.values()]).any(dim=0).to(s.dtype)
                # Where no sample has the target, s stays.
                terms[f"balance_{name}"] = Term(0.5 * s * there, there)
            terms |= {key: replace(term, weight=factor * term.weight) for key, term in own.items()}
        return terms

    def _term_means(self, terms: Mapping[str, Term]) -> dict[str, Tensor]:
        means = super()._term_means(terms)
        shared = [p for p in self.backbone.parameters() if p.requires_grad]
        if self.gradient_interval and shared and self.global_step % self.gradient_interval == 0:
            by_head: dict[str, dict[str, Term]] = {}
            for key, name in self._head_of_term.items():
                by_head.setdefault(name, {})[key] = terms[key]
            losses = {name: weighted_sum(own, means) for name, own in by_head.items()}
            found = gradient_conflicts(losses, shared)
            self.log_dict({f"gradient/{key}": value for key, value in found.items()}, batch_size=1, sync_dist=True)
        return means

    def _read(self, batch: FaceBatch, every: bool) -> dict[str, FacePrediction]:
        outputs = self.outputs(batch["image"])
        sure: MarkedLandmarks | None = outputs.get("uncertainty")
        # The fit to images takes far longer than the network, and fusion needs it only where nothing else gives a mesh.
        fitted = every or not any(name in self.heads for name in MESHES[:-1])
        faces: dict[str, FacePrediction] = {}
        for name in self.prediction_names[:-1]:
            if name != "geometry_images" or fitted:
                faces[name] = self._head(name).read(outputs[name], batch)
        sources = sources_of(self.heads)
        visible = (
            self._head("visibility").read(outputs["visibility"], batch).visible if "visibility" in outputs else None
        )
        fused = fuse(faces, sure, visible)
        if not fitted and "geometry_images" in outputs:
            with autocast_off(batch["image"].device):
                pncc, offsets, mask = self._head("geometry_images").millimetres(outputs["geometry_images"])
            fused = replace(fused, dense={**fused.dense, "pncc": pncc, "offsets": offsets}, dense_mask=mask)
        for place, name in enumerate(sources):
            if sure is not None:
                faces[name] = replace(faces[name], uncertainty=sure.values[:, place])
            if place == 0:
                faces[name] = replace(faces[name], visible=visible)
        return {**faces, FUSION: fused}

    def predict_named(self, batch: FaceBatch) -> dict[str, FacePrediction]:
        """The faces of each head that places one, and of all together."""
        found = self._read(batch, every=True)
        return {name: found[name] for name in self.prediction_names}

    def predict_faces(self, batch: FaceBatch) -> FacePrediction:
        """The faces of all heads together; see :func:`.fuse`."""
        return self._read(batch, every=False)[FUSION]


def _check_weights(weights: Mapping[str, float], heads: Heads) -> dict[str, float]:
    for name, weight in weights.items():
        if name not in heads:
            raise ConfigurationError(f"MultiTask option weights names {name!r}: use the heads {', '.join(heads)}.")
        if not 0 <= weight < float("inf"):
            raise ConfigurationError(f"MultiTask option weights.{name} is {weight}: give a number of at least 0.")
    return dict(weights)
