"""Richardson et al. (2016) as a method: iterative error feedback from the shading of the present geometry."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lightning_faces.backbones import Backbone
from lightning_faces.batch import FaceBatch, FacePrediction, FaceSpec
from lightning_faces.errors import ConfigurationError
from lightning_faces.geometry import Camera
from lightning_faces.heads.geometry_loss import GeometryLoss
from lightning_faces.methods.base import FaceMethod, Term
from lightning_faces.methods.checkpoint import load_method
from lightning_faces.methods.richardson2016.network import Correction, PaperNetwork
from lightning_faces.morphable import MorphableModel
from lightning_faces.morphable.fit import fit_landmarks
from lightning_faces.refine.shape_from_shading import GREY
from lightning_faces.rendering.geometry_view import geometry_view


class Richardson2016(FaceMethod):
    """Coefficients of a face model, corrected pass by pass from the image and the shading of the last pass's geometry.

    The network sees a grey image, masked by the projection of the present geometry, and that geometry under a frontal
    light. Training draws the present geometry between a random one and the true one (section 6.2); prediction starts
    from the mean face. All passes share one pose, which is not the network's to find: it is the true one in training,
    and in prediction it comes from landmarks.

    Args:
        image_size: Side of the input in pixels; 200 in the paper.
        encoder: "paper", the network of figure 4, or the name of a timm model in its place.
        encoder_args: Further arguments of ``timm.create_model``.
        width: Channels of the first convolution of the paper's network.
        passes: How often the geometry is corrected in prediction, each a named prediction; about 3 in the paper.
        loss: "geometry" (eq. 3), or "coefficients": their squared difference, which the paper compares it with.
        masked: Whether the image is masked by the present geometry, as in the paper.
        num_identity: How many identity modes are predicted; None for all (section 4: far fewer do as well).
        num_expression: How many expression modes are predicted; None for all.
        pose_source: Where predictions take the pose from: None for the batch's own true pose, or the checkpoint of a
            method with 68 landmarks, to which the face model is fitted. No part of a checkpoint.
        face_model: Name or path of the morphable model of the data.
        optimizer: Makes the optimizer; Adam with a fixed rate in the paper.
        lr_scheduler: Makes the learning-rate schedule.
        lr_scheduler_interval: Whether the schedule advances by epoch or by step.

    Example:
        >>> method = Richardson2016(image_size=64, width=4, passes=2).eval()
        >>> method.prediction_names
        ('pass_1', 'pass_2')
        >>> pose = torch.tensor([[0.25, 0.0, 0.3, 0.0, 31.5, 31.5]])
        >>> [tuple(step.shape) for step in method.correct(torch.zeros(1, 3, 64, 64), pose)]
        [(1, 123), (1, 123)]
    """

    requires = frozenset({"landmarks", "coefficients", "pose"})
    scores = frozenset({"vertices"})

    def __init__(
        self,
        image_size: int = 200,
        encoder: str = "paper",
        encoder_args: dict[str, Any] | None = None,
        width: int = 32,
        passes: int = 3,
        loss: Literal["geometry", "coefficients"] = "geometry",
        masked: bool = True,
        num_identity: int | None = None,
        num_expression: int | None = None,
        pose_source: str | None = None,
        face_model: str = "embedded",
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__(optimizer, lr_scheduler, lr_scheduler_interval)
        if passes < 1 or width < 1:
            raise ConfigurationError(f"Richardson2016 options passes {passes} and width {width} must be at least 1.")
        if encoder == "paper" and encoder_args:
            raise ConfigurationError(
                f"Richardson2016 option encoder_args is {encoder_args}, but the encoder is the paper's: name a timm "
                "model."
            )
        self.image_size, self.loss, self.masked = image_size, loss, masked
        self.prediction_names = tuple(f"pass_{number + 1}" for number in range(passes))
        self.face_model = MorphableModel.load(face_model)
        self.num_identity = _count("num_identity", num_identity, self.face_model.num_identity)
        self.num_expression = _count("num_expression", num_expression, self.face_model.num_expression)
        count = self.num_identity + self.num_expression
        self.network: nn.Module
        if encoder == "paper":
            self.network, features = PaperNetwork(count, width), count
        else:
            self.network = Backbone(
                "Richardson2016 option encoder", encoder, image_size, own="paper", in_chans=2, **(encoder_args or {})
            )
            features = self.network.num_features
        self.correction = Correction(features, count)
        self.geometry = GeometryLoss(self.face_model, self.num_identity, self.num_expression)
        # In a tuple, so that it is no part of this method: neither trained nor saved with it.
        self.pose_source = () if pose_source is None else (self._load_pose_source(pose_source),)
        self.protocol = {"pose": f"landmarks of {type(self.pose_source[0]).__name__}" if self.pose_source else "true"}

    def _load_pose_source(self, path: str) -> FaceMethod:
        method = load_method(path)
        scheme, size = method.spec.landmark_scheme, method.spec.image_size
        if scheme not in (None, "68") or size not in (None, self.image_size):
            raise ConfigurationError(
                f"Richardson2016 option pose_source is {path}, a {type(method).__name__} of {scheme} landmarks in "
                f"images of {size} pixels: use one of 68 landmarks in images of {self.image_size} pixels."
            )
        if method.spec.face_model_hash not in (None, self.face_model.hash):
            raise ConfigurationError(
                f"Richardson2016 option pose_source is {path}, a {type(method).__name__} of the face model "
                f"{method.spec.face_model!r}, whose landmarks are other points than those of {self.face_model.name!r}: "
                "use a method of the same face model, or of none."
            )
        if isinstance(method, Richardson2016):
            raise ConfigurationError(
                f"Richardson2016 option pose_source is {path}, a Richardson2016, which needs a pose itself: use a "
                "method that finds landmarks."
            )
        return method.eval()

    @property
    def spec(self) -> FaceSpec:
        """Crops of ``image_size`` of the same face model."""
        return FaceSpec(
            image_size=self.image_size,
            landmark_scheme="68",
            face_model=self.face_model.name,
            face_model_hash=self.face_model.hash,
            num_identity=self.face_model.num_identity,
            num_expression=self.face_model.num_expression,
        )

    def forward(self, image: Tensor, pose: Tensor, previous: Tensor) -> Tensor:
        """One pass.

        Args:
            image: ``[B, 3, S, S]`` in [0, 1].
            pose: ``[B, 6]`` in the image frame.
            previous: The present coefficients ``[B, k]``, of the modes that are predicted.

        Returns:
            The corrected coefficients ``[B, k]``, in standard deviations.
        """
        mask, shading = geometry_view(self.face_model, self._all_modes(previous), pose, self.image_size)
        grey = (image * image.new_tensor(GREY)[:, None, None]).sum(dim=1, keepdim=True)
        seen = torch.cat((grey * mask.to(grey) if self.masked else grey, shading.to(grey)), dim=1)
        corrected: Tensor = previous + self.correction(self.network(seen), previous)
        return corrected

    def correct(
        self, image: Tensor, pose: Tensor, start: Tensor | None = None, passes: int | None = None
    ) -> list[Tensor]:
        """All passes, each from what the last one found.

        Args:
            image: ``[B, 3, S, S]`` in [0, 1].
            pose: ``[B, 6]`` in the image frame.
            start: Coefficients ``[B, K]`` to start from, such as the previous frame's of a video (section 9); None for
                the mean face.
            passes: How many; None for the option's number.

        Returns:
            Coefficients of each pass ``[B, K]``, in standard deviations; modes that are not predicted are 0.
        """
        present = pose.new_zeros(len(image), self.num_identity + self.num_expression)
        if start is not None:
            present = self._own_modes(start)
        found = []
        for _ in range(len(self.prediction_names) if passes is None else passes):
            present = self(image, pose, present)
            found.append(self._all_modes(present))
        return found

    def correct_sequence(self, images: Tensor, pose: Tensor, known: Tensor | None = None, passes: int = 1) -> Tensor:
        """The frames of a video, each from what the one before found (section 9).

        The first frame takes all passes from the mean face, each further one ``passes``. A frame without a pose keeps
        what the one before found; until there is one with a pose, the mean face.

        Args:
            images: ``[T, 3, S, S]`` in [0, 1], crops of one person's face in the order of time.
            pose: ``[T, 6]``, each in the frame of its image.
            known: Bool ``[T]``, which frames have a pose; None for all.
            passes: Of each frame after the first.

        Returns:
            Coefficients ``[T, K]``, in standard deviations.

        Example:
            >>> method = Richardson2016(image_size=64, width=4).eval()
            >>> pose = torch.tensor([[0.25, 0.0, 0.3, 0.0, 31.5, 31.5]]).expand(5, -1)
            >>> method.correct_sequence(torch.zeros(5, 3, 64, 64), pose).shape
            torch.Size([5, 123])
        """
        present: Tensor | None = None
        nothing = pose.new_zeros(1, self.face_model.num_identity + self.face_model.num_expression)
        found = []
        for frame in range(len(images)):
            if known is None or bool(known[frame]):
                image, place = images[frame : frame + 1], pose[frame : frame + 1]
                present = self.correct(image, place, present, None if present is None else passes)[-1]
            found.append(nothing if present is None else present)
        return torch.cat(found)

    def terms(self, batch: FaceBatch) -> dict[str, Term]:
        """``geometry`` (mm^2 per vertex) or ``coefficients``: of one pass in training, of the last one elsewhere."""
        target = self._own_modes(batch["coefficients"])
        known = batch["has"]["coefficients"] & batch["has"]["pose"]
        pose = _usable_pose(batch["pose"], known, self.image_size)
        if self.training:
            share = torch.rand(len(target), 1).to(target)
            present = share * target + (1 - share) * self._random_coefficients(len(target)).to(target)
            found = self(batch["image"], pose, present)
        else:
            found = self._own_modes(self.correct(batch["image"], pose)[-1])
        error = self.geometry(found, target) if self.loss == "geometry" else (found - target).square().mean(dim=1)
        return {self.loss: Term(error * known, known.to(error.dtype))}

    def predict_named(self, batch: FaceBatch) -> dict[str, FacePrediction]:
        """A prediction for each pass; without a pose a face is not valid."""
        pose, valid, reason = self.find_pose(batch)
        named = {}
        for name, coefficients in zip(self.prediction_names, self.correct(batch["image"], pose)):
            camera = Camera.from_pose(pose)
            identity = self.face_model.num_identity
            shapes = self.face_model.vertices(coefficients[:, :identity], coefficients[:, identity:])
            vertices = camera.project(shapes)
            named[name] = FacePrediction(
                landmarks=self.face_model.landmarks(vertices),
                vertices=vertices,
                coefficients=coefficients,
                camera=camera,
                valid=valid,
                reason=reason,
            )
        return named

    def network_outputs(self, image: Tensor) -> dict[str, Tensor]:
        """Refused: there is more between image and face than a network."""
        raise ConfigurationError(
            "Richardson2016 draws the face between the passes of its network, so that it is no network alone and "
            "cannot be exported: export another method."
        )

    def predict_faces(self, batch: FaceBatch) -> FacePrediction:
        """The last pass."""
        return self.predict_named(batch)[self.prediction_names[-1]]

    def find_pose(self, batch: FaceBatch) -> tuple[Tensor, Tensor, list[str]]:
        """Poses ``[B, 6]`` from the pose source, which faces have one, and why others do not.

        Raises:
            ConfigurationError: If no pose source was given and the batch has no poses.
        """
        if self.pose_source:
            with torch.no_grad():
                faces = self.pose_source[0].to(batch["image"].device).predict_faces(batch)
            there = None if faces.valid is None else faces.valid[:, None].expand(faces.landmarks.shape[:2])
            fit = fit_landmarks(faces.landmarks[..., :2], "68", self.face_model, there)
            known, pose, reason = fit.valid, fit.camera.pose, list(fit.reason)
        elif "pose" in batch:
            known, pose = batch["has"]["pose"], batch["pose"]
            reason = ["" if known_ else "the data have no pose of it" for known_ in known.tolist()]
        else:
            raise ConfigurationError(
                "Richardson2016 needs a pose, which these data do not have: set option pose_source to the checkpoint "
                "of a method that finds landmarks."
            )
        usable = _usable_pose(pose, known, self.image_size)
        points = Camera.from_pose(usable).project(self.face_model.landmarks(self.face_model.mean[None]).to(usable))
        inside = ((points[..., :2] >= 0) & (points[..., :2] <= self.image_size - 1)).all(dim=2).any(dim=1)
        reason = [
            "the face lies outside the image" if not text and not shown else text
            for text, shown in zip(reason, inside.tolist())
        ]
        return usable, known & inside, reason

    def _all_modes(self, coefficients: Tensor) -> Tensor:
        """Coefficients of the predicted modes ``[B, k]`` to those of all modes ``[B, K]``."""
        identity, expression = coefficients[:, : self.num_identity], coefficients[:, self.num_identity :]
        identity = nn.functional.pad(identity, (0, self.face_model.num_identity - self.num_identity))
        expression = nn.functional.pad(expression, (0, self.face_model.num_expression - self.num_expression))
        return torch.cat((identity, expression), dim=1)

    def _own_modes(self, coefficients: Tensor) -> Tensor:
        """The other way round."""
        first = self.face_model.num_identity
        return torch.cat(
            (coefficients[:, : self.num_identity], coefficients[:, first : first + self.num_expression]), dim=1
        )

    def _random_coefficients(self, count: int) -> Tensor:
        """Random geometries ``[B, k]``, drawn on the CPU: normal modes; of blendshapes three in ten, to any degree."""
        identity = torch.randn(count, self.num_identity)
        if self.face_model.expression_kind == "pca":
            return torch.cat((identity, torch.randn(count, self.num_expression)), dim=1)
        degree = torch.rand(count, self.num_expression)
        return torch.cat((identity, degree * (torch.rand(count, self.num_expression) < 0.3)), dim=1)


def _count(option: str, wanted: int | None, there: int) -> int:
    if wanted is None:
        return there
    if not 1 <= wanted <= there:
        raise ConfigurationError(
            f"Richardson2016 option {option} is {wanted}, and the face model has {there}: give 1 to {there}."
        )
    return wanted


def _usable_pose(pose: Tensor, known: Tensor, image_size: int) -> Tensor:
    """The pose of faces that have one, else a small frontal face in the middle, so that all can be drawn."""
    middle = (image_size - 1) / 2
    frontal = pose.new_tensor([image_size / 260, 0.0, 0.0, 0.0, middle, middle])
    return torch.where(known[:, None], pose, frontal)
