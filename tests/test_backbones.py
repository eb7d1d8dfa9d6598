"""timm networks as backbones: measured widths, maps at several scales, and names that open or fetch nothing."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from lightning_faces.backbones import Backbone
from lightning_faces.errors import ConfigurationError
from lightning_faces.methods import Zhao2016
from lightning_faces.methods.base import term_means, weighted_sum
from tests.methods.test_zhao2016 import face_batch

# Pooled width, and side of the coarsest map, at 64 pixels: from the layers that follow the pooling, in timm's source.
QUICK = {
    "resnet10t": (512, 2),
    "mobilenetv3_small_050": (1024, 2),
    "mobilenetv4_conv_small": (1280, 2),
    "ghostnet_100": (1280, 2),
    "efficientvit_b0": (1280, 2),
    "lcnet_035": (1280, 2),
    "convnext_atto": (320, 2),
    "vit_tiny_patch16_224": (192, 4),
}
MORE = {
    "resnet18": 512, "vgg11": 4096, "efficientvit_m0": 192, "deit_tiny_patch16_224": 192,
    "swin_tiny_patch4_window7_224": 768, "swinv2_tiny_window8_256": 768, "convnextv2_atto": 320,
    "efficientnet_b0": 1280, "tf_efficientnetv2_b0": 1280, "regnetx_002": 368, "densenet121": 1024, "dla34": 512,
    "hrnet_w18_small": 2048, "mobileone_s0": 1024, "levit_128s": 384, "mixer_s32_224": 512, "poolformer_s12": 512,
    "maxvit_rmlp_pico_rw_256": 256, "pvt_v2_b0": 256, "fastvit_t8": 768, "hgnetv2_b0": 2048, "rexnet_100": 1280,
    "mambaout_femto": 1152, "lambda_resnet26t": 2048, "convmixer_768_32": 768, "eva02_tiny_patch14_224": 192,
    "repghostnet_050": 1280, "caformer_s18": 512,
}  # fmt: skip


def trained(name: str) -> Backbone:
    """The backbone, after the method that uses it took a step that lowers the loss of a batch."""
    torch.manual_seed(0)
    method = Zhao2016(image_size=64, encoder=name, squared=False).train()
    batch = face_batch(2, image_size=64)
    optimizer = torch.optim.SGD(method.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        terms = method.landmark_head.terms(method.landmark_head(method.backbone.extract(batch["image"])), batch)
        loss = weighted_sum(terms, term_means(terms))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]
    assert isinstance(method.backbone, Backbone)
    return method.backbone


@pytest.mark.parametrize("name", list(QUICK))
def test_a_network_of_each_family_trains_at_64_pixels(name: str) -> None:
    width, side = QUICK[name]
    assert trained(name).num_features == width
    check_maps(name, width, side)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MORE))
def test_more_families(name: str) -> None:
    assert trained(name).num_features == MORE[name]
    check_maps(name, MORE[name], None)


def check_maps(name: str, width: int, side: int | None) -> None:
    """Maps get coarser by the declared sides, and come with the same pooled features as alone."""
    torch.manual_seed(0)
    backbone = Backbone("option encoder", name, 64, maps=True).eval()
    shape = backbone.shape
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        pooled, maps = backbone.extract(image)
        assert pooled is not None
        assert shape.pooled == width
        assert [tuple(level.shape) for level in maps] == [
            (2, channels, side, side) for channels, side in zip(shape.channels, shape.sides)
        ]
        assert list(shape.sides) == sorted(set(shape.sides), reverse=True)
        assert side is None or shape.sides[-1] == side
        torch.testing.assert_close(pooled, backbone(image))
        for level, again in zip(maps, backbone.features(image)):
            torch.testing.assert_close(level, again)


def test_measuring_changes_neither_statistics_nor_random_numbers() -> None:
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    backbone = Backbone("option encoder", "resnet10t", 64)
    assert torch.equal(torch.rand(3), expected)
    assert backbone.training
    for key, value in network.state_dict().items():
        assert torch.equal(backbone.network.state_dict()[key], value), key


def test_two_channels_go_in_where_asked() -> None:
    """As Richardson's network sees an image and a shading."""
    backbone = Backbone("option encoder", "resnet10t", 64, in_chans=2)
    assert backbone(torch.rand(2, 2, 64, 64)).shape == (2, 512)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "convnext_atto", "efficientnet_b0"])
def test_encoders_of_earlier_checkpoints_load(name: str) -> None:
    """They were made by timm's wrapper for features, which joins the names of layers."""
    torch.manual_seed(0)
    before = timm.create_model(name, features_only=True, out_indices=(-1,)).eval()
    backbone = Backbone("option encoder", name, 64, pooled=False, maps=True).eval()
    backbone.load_state_dict({f"network.{key}": value for key, value in before.state_dict().items()})
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = before((image - backbone.mean) / backbone.std)[-1]
        torch.testing.assert_close(backbone.features(image)[-1], expected)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hf-hub:timm/resnet18", {}, "option encoder is 'hf-hub:timm/resnet18': use a timm model's name"),
        ("hf_hub:a/b", {}, "is 'hf_hub:a/b'"),
        ("local-dir:model", {}, "is 'local-dir:model'"),
        ("resnet_of_mine", {}, "use a timm model's name, for instance resnet"),
        ("resnet18", {"checkpoint_path": "/etc/passwd"}, "'resnet18' does not take 'checkpoint_path' here: leave it"),
        ("resnet18", {"pretrained_cfg": {"url": "http://a"}}, "does not take 'pretrained_cfg' here"),
        ("resnet18", {"cache_dir": "x"}, "does not take 'cache_dir' here"),
        ("resnet18", {"chanels": [1]}, "does not take {'chanels': \\[1\\]}"),
        ("inception_v3", {}, "cannot be used on images of 64 pixels .*: choose another image_size or model"),
        ("vit_tiny_patch16_224", {"img_size": 224}, "cannot be used on images of 64 pixels"),
        ("halonet26t", {}, "cannot be used on images of 64 pixels"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        Backbone("option encoder", name, 64, **options)
    assert "\n" not in str(caught.value)


def test_published_weights_are_fetched_on_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def create(name: str, pretrained: bool, **options: Any) -> torch.nn.Module:
        asked.append(pretrained)
        if pretrained:
            raise OSError("no route to the host")
        return timm.models.create_model(name, **options)

    monkeypatch.setattr("lightning_faces.backbones.timm.create_model", create)
    Backbone("option encoder", "resnet10t", 64)
    assert asked == [False]
    with pytest.raises(ConfigurationError, match=r"fetched \(no route to the host\): set pretrained to false"):
        Backbone("option encoder", "resnet10t", 64, True)
