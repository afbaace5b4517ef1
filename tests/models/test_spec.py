from __future__ import annotations

import pytest
import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from brd_edge.models.build import model_class
from brd_edge.models.spec import ARCHITECTURES, has_matrix_products

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product_flash_attention_for_cpu"}
ENCODERS = (
    *("resnet10t", "seresnext26t_32x4d", "mobilenetv3_small_050", "mobilenetv4_conv_small", "tf_efficientnet_lite0"),
    *("convnext_atto", "fastvit_t8", "mobilevitv2_050", "poolformer_s12", "ese_vovnet19b_dw", "lowformer_e1"),
    *(
        "convnext_tiny",
        "fastvit_sa12",
        "mobilevit_xxs",
        "mobilenetv4_hybrid_medium_075",
        "swin_tiny_patch4_window7_224",
    ),
    *(
        "vit_tiny_patch16_224",
        "pvt_v2_b0",
        "efficientvit_b0",
        "edgenext_xx_small",
        "gcresnext26ts",
        "lowformer_b0",
        "efficientnet_cc_b0_4e",
    ),
)


class Products(TorchDispatchMode):
    """Notes whether matrices are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        del types
        self.found |= func._schema.name.split("::")[1] in PRODUCTS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_what_multiplies_matrices_is_known_by_its_name(encoder: str) -> None:
    # shapes alone: nothing is computed
    with torch.device("meta"), torch.no_grad(), Products() as products:
        timm.create_model(encoder, features_only=True).eval()(torch.empty(1, 3, 224, 224))
    assert has_matrix_products("FPN", f"tu-{encoder}") == products.found


def test_decoders_and_encoders_of_smp() -> None:
    assert has_matrix_products("MAnet", "resnet18")
    assert has_matrix_products("Segformer", "mit_b0")
    assert not has_matrix_products("Segformer", "resnet18")
    assert not has_matrix_products("UnetPlusPlus", "mobileone_s0")
    # with 1x1 convolutions in place of linear layers
    assert not has_matrix_products("FPN", "tu-convnext_tiny", {"conv_mlp": True})


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_heads_end_in_is_known(arch: str) -> None:
    with torch.device("meta"):
        _, last, _ = model_class(arch)(encoder_name="resnet18", encoder_weights=None, classes=3).segmentation_head
    assert ARCHITECTURES[arch].upsamples == (getattr(last, "mode", None) == "bilinear")
