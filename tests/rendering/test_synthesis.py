"""Synthetic faces: the same from the same seed, exact targets, and options that do what they say."""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_faces.errors import ConfigurationError, DataError
from lightning_faces.geometry import box_of_points, euler_to_matrix, weak_perspective
from lightning_faces.morphable import MorphableModel
from lightning_faces.rendering import FaceSynthesizer, Scene, SynthesisOptions, rasterize_image
from lightning_faces.rendering.geometry_view import geometry_view, steady_vertices
from lightning_faces.rendering.maps import FaceMaps
from lightning_faces.rendering.renderer import sample_images
from lightning_faces.rendering.synthesis import EXTRA_TARGETS, PLAIN_TARGETS

SIZE = 64


@pytest.fixture(scope="module")
def synthesizer(embedded: MorphableModel) -> FaceSynthesizer:
    return FaceSynthesizer(embedded, SIZE, position_map_size=32)


def test_a_seed_gives_the_same_sample_in_any_batch(synthesizer: FaceSynthesizer) -> None:
    """Targets are the same but for the last bits; of a picture's 8-bit colours, one in a thousand may differ by 1."""
    targets = tuple(EXTRA_TARGETS)
    seeds = [3, 1 << 70, 5, 8, 11, 2, 4, 9, 12]
    together = synthesizer.render(synthesizer.sample(seeds), targets)
    alone = [synthesizer.render(synthesizer.sample([seed]), targets) for seed in seeds]
    each = list(synthesizer.render_each(synthesizer.sample(seeds), targets))
    for key, value in together.items():
        assert torch.equal(value, torch.cat([one[key] for one in each])), key
        one_by_one = torch.cat([one[key] for one in alone])
        if key == "image":
            steps = ((value * 255).round() - (one_by_one * 255).round()).abs()
            assert steps.max() <= 1.0
            assert (steps > 0.0).float().flatten(1).mean(1).max() < 1e-3
        elif key in ("landmarks", "pose", "coefficients", "vertices", "visible", "face_mask"):
            assert torch.equal(value, one_by_one), key
        else:
            assert (value - one_by_one).abs().max() < 1e-4, key


def test_seeds_that_share_their_low_bits_are_different_faces(synthesizer: FaceSynthesizer) -> None:
    scene = synthesizer.sample([7, 7 + (1 << 40), 7 + (2 << 40)])
    assert len({round(value, 5) for value in scene.identity[:, 0].tolist()}) == 3


def test_views_of_a_subject_share_who_it_is(synthesizer: FaceSynthesizer) -> None:
    scene = synthesizer.sample([1, 2, 3], subject=[77, 77, 78])
    for value in (scene.identity, *scene.person.tensors()):
        assert torch.equal(value[0], value[1])
    for value in (scene.identity, scene.person.skin.colour, scene.person.hair.line, scene.person.clothes.colour):
        assert not torch.equal(value[0], value[2])
    assert not torch.equal(scene.view.angles[0], scene.view.angles[1])
    # The views of a subject show one moment.
    assert torch.equal(scene.expression[0], scene.expression[1])
    assert not torch.equal(scene.expression[0], scene.expression[2])


def test_targets_have_the_contracts_shapes_and_ranges(synthesizer: FaceSynthesizer, embedded: MorphableModel) -> None:
    rendered = synthesizer.render(synthesizer.sample(range(4)), tuple(EXTRA_TARGETS))
    assert set(rendered) == EXTRA_TARGETS | PLAIN_TARGETS
    count, vertices = embedded.num_coefficients, embedded.num_vertices
    shapes = {
        "image": (3, SIZE, SIZE), "landmarks": (68, 3), "visible": (68,), "pose": (6,), "coefficients": (count,),
        "vertices": (vertices, 3), "pncc": (3, SIZE, SIZE), "offsets": (3, SIZE, SIZE), "face_mask": (1, SIZE, SIZE),
        "normals": (3, SIZE, SIZE), "position_map": (3, 32, 32),
    }  # fmt: skip
    for key, shape in shapes.items():
        assert tuple(rendered[key].shape) == (4, *shape), key
        assert bool(rendered[key].isfinite().all()), key
    assert rendered["image"].min() >= 0.0
    assert rendered["image"].max() <= 1.0
    assert rendered["image"].flatten(1).std(1).min() > 0.02
    assert set(rendered["face_mask"].unique().tolist()) == {0.0, 1.0}


def test_without_perspective_everything_follows_the_pose(embedded: MorphableModel) -> None:
    synthesizer = FaceSynthesizer(embedded, SIZE, SynthesisOptions(perspective=0.0))
    rendered = synthesizer.render(synthesizer.sample(range(6)), ("pncc", "offsets", "face_mask"))
    shapes = steady_vertices(embedded, rendered["coefficients"])
    assert torch.allclose(weak_perspective(shapes, rendered["pose"]), rendered["vertices"], atol=2e-3)
    assert torch.allclose(embedded.landmarks(rendered["vertices"]), rendered["landmarks"], atol=1e-4)
    box = box_of_points(rendered["landmarks"])
    assert ((box[:, 2:] - box[:, :2]).amax(1) / SIZE - 0.6).abs().max() < 0.1
    assert (0.5 * (box[:, :2] + box[:, 2:]) - (SIZE - 1) / 2).abs().max() < 0.05 * SIZE


def test_targets_are_those_of_their_own_geometry(embedded: MorphableModel) -> None:
    """Each computed once more from coefficients and pose."""
    synthesizer = FaceSynthesizer(embedded, SIZE, SynthesisOptions(perspective=0.0), position_map_size=32)
    rendered = synthesizer.render(synthesizer.sample(range(30, 34)), tuple(EXTRA_TARGETS))
    maps = FaceMaps(embedded, SIZE, position_map_size=32)
    identity, expression = rendered["coefficients"].split([embedded.num_identity, embedded.num_expression], dim=1)
    shapes = embedded.vertices(identity, expression)
    vertices = weak_perspective(shapes, rendered["pose"])
    raster = maps.face_region(vertices)
    expected = dict(zip(("pncc", "offsets", "face_mask"), maps.pncc(raster, shapes)))
    expected |= {"position_map": maps.position_map(vertices)}
    expected |= {"normals": maps.normal_map(raster, maps.view_normals(vertices))}
    assert set(expected) == EXTRA_TARGETS
    for key, value in expected.items():
        difference = (rendered[key] - value).abs()
        # A pixel of the outline may fall to the other side.
        assert (difference > 1e-2 * value.abs().max()).float().mean() < 1e-3, key
    # A network is shown the same face.
    mask, shading = geometry_view(embedded, rendered["coefficients"], rendered["pose"], SIZE)
    assert (mask - rendered["face_mask"]).abs().mean() < 1e-3
    assert (shading - rendered["normals"][:, 2:].clamp_min(0.0)).abs().mean() < 1e-3
    known, uv = embedded.faces[embedded.uv_face_ids].reshape(-1), embedded.uv[embedded.uv_faces.reshape(-1)]
    read = sample_images(rendered["position_map"], uv.repeat(4, 1), torch.arange(4).repeat_interleave(len(known)))
    assert (read.reshape(4, -1, 3) - rendered["vertices"][:, known]).norm(dim=-1).mean() < 1.0  # pixels


def test_what_lies_in_front_of_a_landmark_hides_it(embedded: MorphableModel) -> None:
    """A landmark is visible where it faces the viewer and no surface is nearer by 3 % of the face's height."""
    synthesizer = FaceSynthesizer(embedded, SIZE, SynthesisOptions(hair=False, glasses=0.0))
    rendered = synthesizer.render(synthesizer.sample(range(24)))
    landmarks, visible = rendered["landmarks"], rendered["visible"]
    raster = rasterize_image(rendered["vertices"], embedded.faces, SIZE)
    depth = raster.to_image(raster.interpolate(rendered["vertices"], embedded.faces)[:, 2:], -1e6)[:, 0]
    x, y = (landmarks[..., k].round().long().clamp(0, SIZE - 1) for k in (0, 1))
    tall = landmarks[..., 1].amax(1, keepdim=True) - landmarks[..., 1].amin(1, keepdim=True)
    nearer = (depth[torch.arange(24)[:, None], y, x] - landmarks[..., 2]) / tall
    facing = synthesizer.maps.visible_by_normal(rendered["vertices"])
    assert int((facing & (nearer > 0.05)).sum()) > 50
    assert not bool((visible & (nearer > 0.05)).any())
    assert int((~facing & (nearer < 0.01)).sum()) > 5
    assert not bool((visible & ~facing).any())
    # The scene has more than the face model has.
    assert visible[facing & (nearer < 0.01)].float().mean() > 0.97


def test_perspective_makes_the_nose_larger_and_moves_landmarks_with_the_vertices(embedded: MorphableModel) -> None:
    synthesizer = FaceSynthesizer(
        embedded, SIZE, SynthesisOptions(perspective=1.0, yaw_range=0.0, pitch_std=0.0, roll_std=0.0)
    )
    scene = synthesizer.sample(range(4))

    def seen_from(distance: float) -> Scene:
        return replace(scene, view=replace(scene.view, distance=torch.full((4, 1), distance)))

    near = synthesizer.render(seen_from(400.0))
    far = synthesizer.render(seen_from(1e6))
    assert torch.allclose(embedded.landmarks(near["vertices"]), near["landmarks"], atol=1e-4)

    def nose_over_jaw(landmarks: torch.Tensor) -> torch.Tensor:
        nose = landmarks[:, 35, 0] - landmarks[:, 31, 0]
        return nose / (landmarks[:, 16, 0] - landmarks[:, 0, 0])

    assert bool((nose_over_jaw(near["landmarks"]) > 1.1 * nose_over_jaw(far["landmarks"])).all())


def test_the_head_in_the_picture_is_where_the_landmarks_are(embedded: MorphableModel) -> None:
    """A bright face on a black ground, nothing in front: its silhouette surrounds the landmarks."""
    options = SynthesisOptions(hair=False, backgrounds=False, occluders=False, degradation=False, glasses=0.0, dark=0.0)
    synthesizer = FaceSynthesizer(embedded, SIZE, options)
    scene = synthesizer.sample(range(20, 28))
    black = replace(scene.background, first=torch.zeros(8, 3), second=torch.zeros(8, 3))
    rendered = synthesizer.render(replace(scene, background=black))
    bright = rendered["image"].amax(1) > 0.03
    x, y = (rendered["landmarks"][..., k].round().long().clamp(0, SIZE - 1) for k in (0, 1))
    on_face = torch.stack([bright[i, y[i], x[i]] for i in range(8)])
    seen = rendered["visible"]
    assert on_face[seen].float().mean() > 0.97
    assert seen.float().mean() > 0.3


def test_yaw_thirds_and_the_range_of_poses(synthesizer: FaceSynthesizer) -> None:
    seeds = [(5 << 40) + i for i in range(300)]
    yaw = synthesizer.sample(seeds, yaw_thirds=True).view.angles[:, 1].rad2deg().abs()
    counts = [int(((yaw >= low) & (yaw < low + 30)).sum()) for low in (0, 30, 60)]
    assert counts == [100, 100, 100]
    yaw = synthesizer.sample(seeds).view.angles[:, 1].rad2deg()
    assert yaw.abs().max() <= 92.0
    assert 40 < yaw.std() < 60
    assert (yaw > 0).float().mean().item() == pytest.approx(0.5, abs=0.1)


def test_each_option_removes_its_element(synthesizer: FaceSynthesizer) -> None:
    seeds = range(100, 106)
    full = synthesizer.sample(seeds)

    def scene(**options: object) -> Scene:
        other = copy.copy(synthesizer)
        other.options = SynthesisOptions(**options)
        return other.sample(seeds)

    bald = scene(hair=False)
    assert bool((bald.person.hair.line > 300).all())
    assert bald.person.hair.long.sum() == 0
    plain = scene(face_drawing=False)
    person = plain.person
    assert person.brows.strength.sum() == person.lids.lashes.sum() == person.beard.beard.sum() == 0
    assert scene(lights=False).light.colours[:, 3:].sum() == 0
    assert scene(backgrounds=False).background.noise.abs().sum() == 0
    assert scene(occluders=False).occlusion.shapes[:, 7].sum() == 0
    assert scene(degradation=False).exposure.jpeg.sum() == 0
    assert scene(glasses=0.0).person.glasses.worn.sum() == 0
    assert scene(grey=1.0).exposure.saturation.sum() == 0
    # Parts of the degradation, one by one: the softness of the pixels themselves stays.
    blur = full.exposure.blur
    assert bool((blur > 0.0).all())
    assert torch.equal(scene(blur=0.0).exposure.blur, torch.full((6, 2), 0.45))
    assert torch.allclose(scene(blur=3.0).exposure.blur[blur > 0.45], 3.0 * blur[blur > 0.45], atol=1e-6)
    for key in ("luma_noise", "chroma_noise"):
        strength = getattr(full.exposure, key)
        assert bool((strength > 0.0).all())
        assert getattr(scene(noise=0.0).exposure, key).sum() == 0
        assert torch.allclose(getattr(scene(noise=2.0).exposure, key), 2.0 * strength, atol=1e-6)
    assert bool((full.exposure.jpeg > 0.0).any())
    assert scene(jpeg=0.0).exposure.jpeg.sum() == 0
    assert bool((scene(jpeg=1.0).exposure.jpeg > 0.0).all())
    for part, drawn in (("blur", {"blur"}), ("noise", {"luma_noise", "chroma_noise"}), ("jpeg", {"jpeg"})):
        exposure = scene(**{part: 0.0}).exposure
        kept = {
            f.name for f in fields(exposure) if torch.equal(getattr(full.exposure, f.name), getattr(exposure, f.name))
        }
        assert {f.name for f in fields(exposure)} - kept <= drawn, part
    for other in (bald, plain):  # nothing else is drawn differently
        assert torch.equal(other.view.angles, full.view.angles)
        assert torch.equal(other.person.skin.colour, full.person.skin.colour)


def test_a_scene_goes_through_one_tensor(synthesizer: FaceSynthesizer) -> None:
    scene = synthesizer.sample([4, 9, 12])
    packed = scene.pack()
    for before, after in zip(scene.tensors(), synthesizer.unpack(packed).tensors(), strict=True):
        assert torch.equal(before, after)
    taken = synthesizer.unpack(packed[[2, 0]])
    assert torch.equal(taken.view.rotation, scene.view.rotation[[2, 0]])
    assert torch.equal(scene.take(torch.tensor([2, 0])).pack(), packed[[2, 0]])


def test_photographs_as_backgrounds(embedded: MorphableModel, tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 60, 3), (10, 200, 30), np.uint8)).save(tmp_path / "green.png")
    synthesizer = FaceSynthesizer(embedded, SIZE, SynthesisOptions(background_folder=str(tmp_path), degradation=False))
    scene = synthesizer.sample(range(3))
    nothing = scene.occlusion.map(torch.zeros_like)
    scene = replace(
        scene,
        background=replace(scene.background, photograph=torch.ones(3, 1)),
        occlusion=replace(nothing, cut=torch.tensor([[-9.0, 9.0, 9.0, 0.0]]).expand(3, 4)),
    )
    corner = synthesizer.render(scene)["image"][:, :, 0, 0]
    green = torch.tensor([10.0, 200.0, 30.0]) / 255
    assert ((corner - green).abs().amax(1) < 0.03).sum() >= 2


def test_a_background_folder_without_images_is_named(embedded: MorphableModel, tmp_path: Path) -> None:
    synthesizer = FaceSynthesizer(embedded, SIZE, SynthesisOptions(background_folder=str(tmp_path)))
    with pytest.raises(DataError, match="holds no images"):
        synthesizer.render(synthesizer.sample([0]))


def test_a_model_without_names_uv_and_regions_can_be_drawn(sphere_model: MorphableModel) -> None:
    synthesizer = FaceSynthesizer(sphere_model, 32)
    rendered = synthesizer.render(synthesizer.sample(range(2)), ("pncc", "offsets", "face_mask", "normals"))
    assert bool(rendered["image"].isfinite().all())
    assert rendered["face_mask"].mean() > 0.1


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("glasses", 2.0, "a number between 0 and 1"),
        ("jpeg", -0.1, "a number between 0 and 1"),
        ("yaw_range", "abc", "a number between 0 and 180"),
        ("yaw_range", 181.0, "a number between 0 and 180"),
        ("face_fraction", 0.05, "a number between 0.1 and 1"),
        ("pitch_std", -3.0, "a number of at least 0"),
        ("yaw_std", float("nan"), "a number of at least 0"),
        ("stretch", float("inf"), "a number of at least 0"),
        ("blur", True, "a number of at least 0"),
        ("noise", -1, "a number of at least 0"),
        ("hair", "no", "true or false"),
        ("degradation", 0, "true or false"),
        ("background_folder", 3, "the path of a folder, or none"),
    ],
)
def test_wrong_values_of_options_are_one_sentence(option: str, value: object, wanted: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        SynthesisOptions(**{option: value})
    assert str(caught.value) == f"Synthesis option {option} is {value!r}; it must be {wanted}."


def test_whole_numbers_are_numbers() -> None:
    options = SynthesisOptions(yaw_range=90, pitch_std=0, face_fraction=1)
    # And are written, and hashed, as such.
    assert str(options) == str(SynthesisOptions(yaw_range=90.0, pitch_std=0.0, face_fraction=1.0))


def test_what_cannot_be_drawn_is_one_sentence(synthesizer: FaceSynthesizer, embedded: MorphableModel) -> None:
    with pytest.raises(ConfigurationError, match="no target warts"):
        synthesizer.render(synthesizer.sample([0]), ("warts",))
    with pytest.raises(ConfigurationError, match="too small"):
        FaceSynthesizer(embedded, 8)
    with pytest.raises(ConfigurationError, match=r"'embedded' is in float64, .* float32"):
        FaceSynthesizer(copy.deepcopy(embedded).double(), SIZE)
    with pytest.raises(ConfigurationError, match="No seeds"):
        synthesizer.sample([])
    with pytest.raises(ConfigurationError, match="scene is empty"):
        synthesizer.render(synthesizer.sample([0]).take(torch.zeros(0, dtype=torch.int64)))


def test_paired_names_of_what_others_have_once_move_on_both_sides(embedded: MorphableModel) -> None:
    """ICT-FaceKit's names: every action that the embedded model's faces show occurs, and the pairs move together."""
    paired = ("browInnerUp", "cheekPuff")
    names = [
        name + side for name in embedded.expression_names for side in (("Left", "Right") if name in paired else ("",))
    ]
    rows = [embedded.expression_names.index(name.removesuffix("Left").removesuffix("Right"))
            if name.startswith(paired) else embedded.expression_names.index(name) for name in names]  # fmt: skip
    model = MorphableModel(
        name="paired", mean=embedded.mean, faces=embedded.faces,
        identity_basis=embedded.identity_basis[:4], identity_std=embedded.identity_std[:4],
        expression_basis=embedded.expression_basis[rows], expression_std=embedded.expression_std[rows],
        expression_kind="blendshapes", expression_names=names, landmark_embeddings=embedded.landmark_embeddings,
    )  # fmt: skip
    ours = FaceSynthesizer(embedded, 16).sample(range(400)).expression
    theirs = FaceSynthesizer(model, 16).sample(range(400)).expression
    shown = {name for name, column in zip(embedded.expression_names, ours.T) if column.max() > 0.0}
    assert len(shown) > 45
    assert set(paired) <= shown
    # A column's numbers are those of the embedded model's action, so that nothing is drawn differently.
    for name, row, column in zip(names, rows, theirs.T):
        assert torch.equal(column, ours[:, row]), name


def test_rotation_of_the_scene_is_that_of_the_pose(synthesizer: FaceSynthesizer) -> None:
    view = synthesizer.sample(range(5)).view
    assert torch.allclose(view.rotation, euler_to_matrix(view.angles), atol=1e-6)


def test_whole_batches_as_on_cuda_give_the_same_pictures(synthesizer: FaceSynthesizer) -> None:
    """The path that a device takes, all images at once, run on the CPU: equal up to rounding."""
    scene = synthesizer.sample(range(40, 48))
    alone = synthesizer.render(scene, tuple(EXTRA_TARGETS))
    together = synthesizer._draw(synthesizer._geometry(scene), EXTRA_TARGETS)
    for key, value in together.items():
        difference = (value.float() - alone[key].float()).abs()
        assert difference.mean() < 1e-3, key
        assert (difference > 0.02).float().mean() < 1e-3, key


def test_pictures_and_maps_pass_gradients_to_coefficients(synthesizer: FaceSynthesizer) -> None:
    """And the forms that autograd takes draw what OpenCV does."""
    scene = synthesizer.sample([3, 8])
    identity = scene.identity.clone().requires_grad_(True)
    rendered = synthesizer.render(replace(scene, identity=identity), ("offsets", "position_map"))
    with torch.no_grad():
        plain = synthesizer.render(scene)["image"]
    assert (rendered["image"] - plain).abs().mean() < 1e-4
    for key in ("image", "offsets", "position_map", "landmarks"):
        (gradient,) = torch.autograd.grad(rendered[key].square().sum(), identity, retain_graph=True)
        assert bool(gradient.isfinite().all()), key
        assert float(gradient.abs().max()) > 0.0, key


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_renders_the_pictures_of_the_cpu() -> None:
    synthesizer = FaceSynthesizer(MorphableModel.load("embedded"), SIZE, position_map_size=32)
    scene = synthesizer.sample(range(40, 48))
    on_cpu = synthesizer.render(scene, tuple(EXTRA_TARGETS))
    on_cuda = synthesizer.to("cuda").render(scene, tuple(EXTRA_TARGETS))
    for key, value in on_cpu.items():
        difference = (value.float() - on_cuda[key].cpu().float()).abs()
        assert difference.mean() < 5e-3, key
