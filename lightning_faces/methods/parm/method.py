"""PARM (Parameter Augmented Regression Method): a cascade that alternates landmark and parameter updates."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lightning_faces.batch import FaceBatch, FacePrediction, FaceSpec
from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry.camera import Camera, weak_perspective
from lightning_faces.geometry.landmarks import num_landmarks
from lightning_faces.methods.base import FaceMethod
from lightning_faces.methods.parm.network import PatchNetwork
from lightning_faces.methods.parm.parameters import (
    POSE,
    FaceParameters,
    box_frame,
    denormalize_pose,
    gauss_newton_step,
    normalize_pose,
)
from lightning_faces.methods.parm.ranks import Ranks
from lightning_faces.methods.parm.regression import solve_ridge
from lightning_faces.methods.parm.updater import (
    Gathered,
    LandmarkUpdater,
    LocalBinaryFeatures,
    grey_bytes,
    in_plane_rotation,
    pixels_at_sites,
)
from lightning_faces.morphable import MorphableModel

Variant = Literal["parm", "prm", "pclm", "lbf"]
Updater = Literal["lbf", "cnn"]
ROWS = 2048
"""Rows whose landmark updates are computed together after a pass."""
MADE_FOR = 1024
"""Bytes of the text that says what a checkpoint was fitted for."""
LEAST = {"trees": 1, "tree_depth": 1, "sites": 2, "candidates": 1, "tree_faces": 1, "cnn_epochs": 1}
MOST = {"trees": 1000, "tree_depth": 7, "sites": 256}
"""Leaves and sites are numbered by bytes, and one leaf is that of hidden landmarks."""


@dataclass(frozen=True)
class _Row:
    """What a pass keeps of faces; see ``Gathered`` for the first four."""

    index: Tensor
    values: Tensor
    visible: Tensor
    offsets: Tensor
    rotation: Tensor
    state: Tensor
    target: Tensor


class PARM(FaceMethod):
    """Cascaded regression of the parameters of a face model, and the three methods that it is compared with.

    Each stage estimates a landmark update dx from the pixels around the current landmarks, and from it a parameter
    update dp: ``pclm`` by a Gauss-Newton step with a prior (eq. 9), ``prm`` linearly (eq. 10), ``parm`` linearly with
    the current parameters and a constant beside dx (eq. 12). ``lbf`` has no parameters: its landmarks move by dx, and
    their depth is that of the first shape.

    It is fitted without gradients: the first epoch measures the training mean that all faces start from, each further
    one fits a stage, and then the training ends. A pass runs the stages that are there on its faces anew, so nothing is
    kept of a face from one pass to the next, and augmentation may differ.

    Predictions are named by stage. Stages that are not fitted yet give what the last fitted one gives.

    Args:
        variant: "parm", "prm", "pclm" or "lbf".
        updater: What estimates the landmark updates (the paper's M1): "lbf", local binary features, or "cnn", a small
            network on patches around the landmarks.
        radii: How far from a landmark each stage looks, in ``sqrt(w h)`` of the face box; one per stage.
        trees: Trees of a landmark and stage.
        tree_depth: Splits from a tree's root to a leaf: 5, the paper's, makes 32 leaves. The known implementation of
            LBF counts levels, so that its depth 5 makes 16 leaves: 4 here.
        sites: Pixels around a landmark, whose differences the trees choose from.
        candidates: Differences that each level of a tree chooses from.
        tree_faces: Faces that a tree is grown on, drawn for each tree.
        landmark_ridge: Regularisation of the landmark regression per face; 0.5 is LIBLINEAR with C = 1/N.
        parameter_ridge: Regularisation of the parameter regression, as a share of the features' variance.
        prior: r in eq. 9 for identity and expression, where W is the inverse of the coefficients' mean square in
            training: best the mean square of a landmark update's error.
        vertex_weights: Weight each parameter's squared error by how far it moves the vertices (the paper's future
            work, after 3DDFA's weighted parameter distance cost).
        face_model: Name or path of the morphable model of the data.
        cnn_epochs: Epochs of the network of a stage, within one pass.
        cnn_lr: Its learning rate.
        seed: Seed of sites, trees and candidates, or of the network.
    """

    every_sample_once = True

    start: Tensor
    reference: Tensor
    square: Tensor
    passes: Tensor
    regressors: Tensor
    made_for: Tensor

    def __init__(
        self,
        variant: Variant = "parm",
        updater: Updater = "lbf",
        radii: tuple[float, ...] = (0.4, 0.3, 0.2, 0.15, 0.12),
        trees: int = 20,
        tree_depth: int = 5,
        sites: int = 64,
        candidates: int = 500,
        tree_faces: int = 1000,
        landmark_ridge: float = 0.5,
        parameter_ridge: float = 1e-3,
        prior: tuple[float, float] = (3e-3, 3e-3),
        vertex_weights: bool = False,
        face_model: str = "embedded",
        cnn_epochs: int = 20,
        cnn_lr: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__(None)
        _check(locals())
        self.variant, self.parameter_ridge, self.prior = variant, parameter_ridge, prior
        self.vertex_weights = vertex_weights
        self.num_stages = len(radii)
        self.prediction_names = tuple(f"stage_{stage + 1}" for stage in range(self.num_stages))
        if variant != "lbf":
            self.requires = frozenset({"landmarks", "pose", "coefficients"})
        landmarks = num_landmarks("68")
        self.face_model = MorphableModel.load(face_model)
        self.face = FaceParameters(self.face_model)
        self.updater: LandmarkUpdater
        if updater == "cnn":
            self.updater = PatchNetwork(radii, landmarks, cnn_epochs, cnn_lr, seed)
        else:
            self.updater = LocalBinaryFeatures(
                radii, landmarks, trees, tree_depth, sites, candidates, tree_faces, landmark_ridge, seed
            )
        size = 2 * landmarks if variant == "lbf" else self.face.count
        features = {"parm": 2 * landmarks + size + 1, "prm": 2 * landmarks + 1}.get(variant, 0)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.register_buffer("start", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("reference", torch.zeros((landmarks, 2), dtype=torch.float64))
        self.register_buffer("square", torch.ones(size, dtype=torch.float64))
        self.register_buffer("regressors", torch.zeros((self.num_stages, size, features), dtype=torch.float64))
        self.register_buffer("effect", self.face.effect(self.face_model), persistent=False)
        self.effect: Tensor
        made_for = {
            "variant": variant, "updater": updater, "radii": list(radii), "trees": trees, "tree_depth": tree_depth,
            "sites": sites, "seed": seed, "face_model": self.face_model.hash,
        }  # fmt: skip
        self.register_buffer(
            "made_for", torch.tensor(list(json.dumps(made_for).encode().ljust(MADE_FOR)), dtype=torch.uint8)
        )
        self._sums: list[Tensor] = []
        self._rows: list[_Row] = []

    @property
    def spec(self) -> FaceSpec:
        """Crops of any size; the coefficients of the same face model, but for landmarks alone."""
        if self.variant == "lbf":
            return FaceSpec(landmark_scheme="68")
        return FaceSpec(
            landmark_scheme="68",
            face_model=self.face_model.name,
            face_model_hash=self.face_model.hash,
            num_identity=self.face_model.num_identity,
            num_expression=self.face_model.num_expression,
        )

    @property
    def fitted(self) -> int:
        """Number of stages that are fitted."""
        return max(int(self.passes) - 1, 0)

    @property
    def converged(self) -> bool:
        """Whether all stages are fitted."""
        return self.fitted == self.num_stages

    def num_parameters(self) -> int:
        """Numbers in the trees and regressors."""
        return sum(value.numel() for value in self.updater.state_dict().values()) + self.regressors.numel()

    # The cascade ------------------------------------------------------------------------------------------------------

    def landmarks(self, state: Tensor) -> Tensor:
        """Landmarks ``[B, L, 2]`` of parameters ``[B, D]`` (of ``lbf``: of themselves), normalised frame."""
        return (
            state.reshape(len(state), *self.reference.shape)
            if self.variant == "lbf"
            else self.face.landmarks(state)[..., :2]
        )

    def look(self, stage: int, state: Tensor, grey: Tensor, box: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What a stage sees.

        Args:
            stage: The stage.
            state: ``[B, D]``.
            grey: uint8 ``[B, H, W]``.
            box: Face boxes ``[B, 4]``, float64.

        Returns:
            Pixels ``[B, L, P]`` and visibility ``[B, L]`` for the landmark updater, and the rotation ``[B, 2, 2]`` from
            its frame to the normalised one.
        """
        centre, size = box_frame(box)
        landmarks = self.landmarks(state)
        rotation = in_plane_rotation(landmarks, self.reference)
        places = (landmarks * size[..., None] + centre[:, None]).float()
        values = pixels_at_sites(grey, places, self.updater.sites(stage).float(), rotation.float(), size.float())
        if self.variant == "lbf":
            return values, torch.ones(values.shape[:2], dtype=torch.bool, device=values.device), rotation
        return values, self.face.visible(state), rotation

    def advance(self, stage: int, state: Tensor, update: Tensor) -> Tensor:
        """The next parameters from landmark updates ``[B, L, 2]``, normalised frame (eq. 9, 10 and 12)."""
        flat = update.flatten(1)
        if self.variant == "lbf":
            return state + flat
        if self.variant == "pclm":
            return state + gauss_newton_step(self.face.jacobian(state).flatten(1, 2), flat, state, self._prior())
        return state + self._features(flat, state) @ self.regressors[stage, :, :-1].T + self.regressors[stage, :, -1]

    def _features(self, update: Tensor, state: Tensor) -> Tensor:
        return torch.cat((update, state), dim=1) if self.variant == "parm" else update

    def _prior(self) -> Tensor:
        """The diagonal of r W: none for the pose."""
        weight = torch.zeros_like(self.square)
        expression = POSE + self.face_model.num_identity
        weight[POSE:expression] = self.prior[0]
        weight[expression:] = self.prior[1]
        return weight / self.square.clamp_min(1e-6)

    def run(self, grey: Tensor, box: Tensor, stages: int) -> list[Tensor]:
        """Parameters ``[B, D]`` after each of the first stages, the start before them."""
        states = [self.start.expand(len(grey), -1)]
        for stage in range(stages):
            values, visible, rotation = self.look(stage, states[-1], grey, box)
            update = self.updater(stage, values, visible).double() @ rotation.transpose(1, 2)
            states.append(self.advance(stage, states[-1], update))
        return states

    def predict_named(self, batch: FaceBatch) -> dict[str, FacePrediction]:
        """The faces after each stage; the vertices after the last one alone."""
        states = self.run(grey_bytes(batch["image"]), batch["box"].double(), self.fitted)[1:] or [
            self.start.expand(len(batch["box"]), -1)
        ]
        states += [states[-1]] * (self.num_stages - len(states))
        *others, last = zip(self.prediction_names, states)
        named = {name: self.read(state, batch["box"], vertices=False) for name, state in others}
        return {**named, last[0]: self.read(last[1], batch["box"])}

    def network_outputs(self, image: Tensor) -> dict[str, Tensor]:
        """Refused: there is more between image and face than a network."""
        raise ConfigurationError(
            "PARM reads pixels through trees between its regressions, so that it is no network alone and cannot be "
            "exported: export another method."
        )

    def predict_faces(self, batch: FaceBatch) -> FacePrediction:
        """The faces after the last stage."""
        state = self.run(grey_bytes(batch["image"]), batch["box"].double(), self.fitted)[-1]
        return self.read(state, batch["box"])

    def read(self, state: Tensor, box: Tensor, vertices: bool = True) -> FacePrediction:
        """Faces of parameters.

        Args:
            state: ``[B, D]``.
            box: ``[B, 4]``, image frame.
            vertices: Whether to give the vertices.

        Returns:
            Faces in the image frame.
        """
        box = box.double()
        if self.variant == "lbf":
            centre, size = box_frame(box)
            flat = self.landmarks(state) * size[..., None] + centre[:, None]
            depth = self._first_depth() * size
            return FacePrediction(landmarks=torch.cat((flat, depth[..., None]), dim=2).float())
        pose = denormalize_pose(state[:, :POSE], box)
        coefficients = state[:, POSE:].float()
        points = weak_perspective(self.face.shape(state), pose).float()
        dense = None
        if vertices:
            identity, expression = torch.tensor_split(coefficients, [self.face_model.num_identity], dim=1)
            shape = self.face_model.vertices(identity, expression)
            dense = weak_perspective(shape, pose.to(shape.dtype)).float()
        return FacePrediction(
            landmarks=points,
            vertices=dense,
            coefficients=coefficients,
            camera=Camera.from_pose(pose.float()),
            visible=self.face.visible(state).float(),
        )

    def _first_depth(self) -> Tensor:
        """Depth ``[L]`` of the mean face as large as the first landmarks, normalised frame."""
        mean = self.face.mean
        across = [(points - points.mean(dim=0)).norm() for points in (self.reference, mean[:, :2])]
        return mean[:, 2] * (across[0] / across[1])

    # Fitting ----------------------------------------------------------------------------------------------------------

    def start_pass(self) -> None:
        """Forget what an interrupted pass gathered."""
        self._sums, self._rows = [], []

    def fit_batch(self, batch: FaceBatch) -> None:
        """Gather what the pass needs of the faces that have all targets."""
        if self.converged:
            return
        has = batch["has"]
        rows = torch.stack([has[key] for key in sorted(self.requires)]).all(dim=0)
        rows = rows & batch["landmark_mask"][..., :2].all(dim=2).all(dim=1)
        box = batch["box"][rows].double()
        centre, size = box_frame(box)
        points = (batch["landmarks"][rows][..., :2].double() - centre[:, None]) / size[..., None]
        if self.variant == "lbf":
            target = points.flatten(1)
        else:
            pose = normalize_pose(batch["pose"][rows].double(), box)
            target = torch.cat((pose, batch["coefficients"][rows].double()), dim=1)
        if int(self.passes) == 0:
            self._sums.append(
                torch.stack((target.sum(dim=0), target.square().sum(dim=0), torch.ones_like(target).sum(dim=0)))
            )
            return
        grey = grey_bytes(batch["image"][rows])
        state = self.run(grey, box, self.fitted)[-1]
        values, visible, rotation = self.look(self.fitted, state, grey, box)
        offsets = (points - self.landmarks(state)) @ rotation
        self._rows.append(_Row(batch["index"][rows], values, visible, offsets.float(), rotation, state, target))

    def end_pass(self) -> None:
        """Measure the start, or fit a stage, with the faces of all processes."""
        if self.converged:
            return
        ranks = self._ranks()
        if int(self.passes) == 0:
            total = (
                torch.stack(self._sums).sum(dim=0)
                if self._sums
                else torch.zeros((3, len(self.start)), dtype=torch.float64, device=self.device)
            )
            total = ranks.sum(total)
            self._measure(total)
        else:
            self._fit_stage(ranks)
        self.passes += 1
        self.start_pass()
        if self.converged and self._trainer is not None:
            self._trainer.should_stop = True

    def _measure(self, total: Tensor) -> None:
        if float(total[2].min()) == 0:
            raise ConfigurationError(
                f"PARM trains on {', '.join(sorted(self.requires))}, and no training sample has all of them: choose "
                "data with them."
            )
        mean, self.square = total[0] / total[2], total[1] / total[2]
        if self.variant != "lbf":
            mean[1:4] = 0.0
            mean[POSE:] = 0.0
        self.start, self.reference = mean, self.landmarks(mean[None])[0]

    def _fit_stage(self, ranks: Ranks) -> None:
        rows = _Row(*(torch.cat([getattr(row, name) for row in self._rows]) for name in _Row.__dataclass_fields__))
        self._rows = []
        everyone = ranks.gather(rows.index).sort().values
        position = torch.searchsorted(everyone, rows.index)
        stage = self.fitted
        self.updater.fit(stage, Gathered(position, rows.values, rows.visible, rows.offsets), ranks)
        parts = zip(*(torch.split(part, ROWS) for part in (rows.values, rows.visible, rows.rotation)))
        updates = [self.updater(stage, v, seen).double() @ turn.transpose(1, 2) for v, seen, turn in parts]
        update = torch.cat(updates).flatten(1)
        if self.variant in ("prm", "parm"):
            wanted = rows.target - rows.state
            weights = None
            if self.vertex_weights:
                weights = (self.effect * wanted).square()
                weights = weights / weights.amax(dim=1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
            features = self._features(update, rows.state)
            self.regressors[stage] = solve_ridge(features, wanted, self.parameter_ridge, ranks, weights)

    def _ranks(self) -> Ranks:
        trainer = self._trainer
        if trainer is None or trainer.world_size == 1:
            return Ranks()
        return Ranks(trainer.global_rank, trainer.world_size, partial(trainer.strategy.reduce, reduce_op="sum"))

    def setup(self, stage: str) -> None:
        """Refuse weights in half precision: their sums over thousands of leaves would be noise."""
        super().setup(stage)
        if self.trainer.precision in ("16-true", "bf16-true"):
            raise ConfigurationError(
                f"PARM cannot be used with the trainer's precision {self.trainer.precision}: its regressors need "
                "float32, so use 32-true."
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(prefix + "made_for")
        if saved is not None:
            ours, theirs = _made_for(self.made_for), _made_for(saved)
            for key, value in ours.items():
                if theirs.get(key) != value:
                    raise ConfigurationError(
                        f"The checkpoint holds a PARM of {key} {theirs.get(key)!r}, but the method has {value!r}: use "
                        f"the checkpoint's {key}, or leave the model out, so that it is taken from the checkpoint."
                    )
        super()._load_from_state_dict(state_dict, prefix, *args)


def _made_for(text: Tensor) -> dict[str, Any]:
    """What a checkpoint was fitted for; nothing where it is not said."""
    try:
        read = json.loads(bytes(text.flatten()[:MADE_FOR].to(torch.uint8).tolist()))
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}


def _check(options: dict[str, Any]) -> None:
    """Refuse options of PARM that are out of range.

    Raises:
        ConfigurationError: Naming the option, its value and what it must be.
    """
    wrong = None
    for name, value in options.items():
        if name in LEAST and not LEAST[name] <= value <= MOST.get(name, value):
            most = f" and at most {MOST[name]}" if name in MOST else ""
            wrong = f"{name} is {value}; it must be at least {LEAST[name]}{most}"
        elif name in ("landmark_ridge", "parameter_ridge", "cnn_lr") and not 0 < value < math.inf:
            wrong = f"{name} is {value}; it must be positive"
    radii, prior = options["radii"], options["prior"]
    if not 1 <= len(radii) <= 20 or not all(0 < radius < 10 for radius in radii):
        wrong = f"radii is {list(radii)}; give 1 to 20 positive numbers, one per stage"
    if not all(0 < weight < math.inf for weight in prior):
        wrong = f"prior is {list(prior)}; give two positive numbers"
    for name, known in (("variant", get_args(Variant)), ("updater", get_args(Updater))):
        if options[name] not in known:
            wrong = f"{name} is {options[name]!r}; it must be one of {', '.join(known)}"
    if wrong:
        raise ConfigurationError(f"PARM option {wrong}.")
