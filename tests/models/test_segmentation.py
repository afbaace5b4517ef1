"""Models, their features, and their files; the oracles are smp, timm, safetensors and counting by hand."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from full_disk import full_disk
from safetensors.torch import load_file, save_file

from brd_edge.models.segmentation import (
    ARCHITECTURES,
    ModelSpec,
    build_model,
    check_size,
    count_macs,
    count_parameters,
    feature_table,
    forward_features,
    load_model,
    require_contract,
    required_multiple,
    save_model,
    trains_on_one_image,
)
from brd_edge.runtime.contract import SLIDING_WINDOW, InputContract
from brd_edge.runtime.errors import ContractError, ModelError

TINY = "tu-resnet10t"


def build(arch="FPN", encoder=TINY, *, classes=4, options=None, weights=None, seed=0):
    return build_model(ModelSpec(arch, encoder, classes, options or {}), encoder_weights=weights, seed=seed)


def images(height=64, width=96, seed=0):
    return torch.rand((1, 3, height, width), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_keeps_the_contract(arch):
    model, x = build(arch).eval(), images()
    with torch.no_grad():
        features = forward_features(model, x)
        assert torch.equal(features.logits, model(x))
        assert features.logits.shape == (1, 4, 64, 96)
        for stride, feature in features.encoder.items():
            assert feature.shape[2:] == (64 // stride, 96 // stride)
        # the decoder has not written into the features
        stages = model.encoder(x)
        assert torch.equal(features.encoder[max(features.encoder)], stages[-1])
        assert torch.equal(model.segmentation_head(features.decoder), features.logits)
    table = {row.name: row for row in feature_table(model, 64, 96)}
    assert list(table) == [*(f"encoder.{stride}" for stride in sorted(features.encoder)), "decoder", "logits"]
    for stride, feature in features.encoder.items():
        row = table[f"encoder.{stride}"]
        assert (row.stride, row.channels, row.height, row.width) == (stride, *feature.shape[1:])
    assert (table["decoder"].channels, table["decoder"].height) == features.decoder.shape[1:3]
    assert (table["logits"].channels, table["logits"].stride) == (4, 1)
    multiple = required_multiple(model)
    assert model.requires_divisible_input_shape == (multiple > 1)
    if multiple > 1:
        with pytest.raises(RuntimeError, match=f"divisible by {multiple}"):
            model(torch.zeros(1, 3, 64 + multiple // 2, 64))


def test_dilated_stages_share_a_stride_and_the_deepest_is_kept():
    model, x = build("DeepLabV3", "resnet18").eval(), images()
    with torch.no_grad():
        stages, features = model.encoder(x), forward_features(model, x)
    assert sorted(features.encoder) == [2, 4, 8]
    assert [stage.shape[-1] for stage in stages[3:]] == [12, 12, 12]
    assert torch.equal(features.encoder[8], stages[-1])


def test_image_and_empty_stages_are_no_features():
    with torch.no_grad():
        features = forward_features(build("UPerNet", "tu-convnext_atto").eval(), images())
    assert sorted(features.encoder) == [4, 8, 16, 32]


def test_gradients_flow_to_every_feature():
    features = forward_features(build("DeepLabV3Plus").eval(), images())
    loss = features.decoder.sum() + sum(feature.sum() for feature in features.encoder.values())
    (loss + features.logits.sum()).backward()
    assert features.logits.requires_grad
    assert all(feature.requires_grad for feature in features.encoder.values())


def test_weights_depend_on_the_seed_alone_and_random_state_is_kept():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first = build(seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    second, other = build(seed=3).state_dict(), build(seed=4).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["segmentation_head.0.weight"], other["segmentation_head.0.weight"])


@pytest.mark.parametrize("name", ["resnet10t", "tf_efficientnet_lite0", "convnext_atto"])
def test_encoder_weights_in_timms_naming_give_timms_features(name, tmp_path):
    whole = timm.create_model(name, pretrained=False).eval()
    path = tmp_path / "weights.safetensors"
    save_file(whole.state_dict(), path)
    model, x = build(encoder=f"tu-{name}", weights=path).eval(), images()
    with torch.no_grad():
        expected = whole.forward_intermediates(x, intermediates_only=True)[-1]
        assert torch.equal(forward_features(model, x).encoder[32], expected)
    plain = build(encoder=f"tu-{name}")
    assert torch.equal(plain.segmentation_head[0].weight, model.segmentation_head[0].weight)


def test_a_shallow_encoder_takes_a_whole_file(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("resnet10t", pretrained=False).state_dict(), path)
    model = build("PSPNet", weights=str(path))
    assert torch.equal(model.encoder.model.layer1[0].conv1.weight, load_file(path)["layer1.0.conv1.weight"])


def test_encoder_weights_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "weights.safetensors"
    state = timm.create_model("resnet10t", pretrained=False).state_dict()
    gone = state.pop("layer2.0.conv1.weight")
    save_file({**state, "layer9.weight": gone}, path)
    with pytest.raises(
        ModelError, match=r"missing model\.layer2\.0\.conv1\.weight; unexpected layer9\.weight"
    ) as error:
        build(weights=path)
    assert str(path) in str(error.value)
    save_file({**state, "layer2.0.conv1.weight": gone[:, :3].contiguous()}, path)
    with pytest.raises(ModelError, match=r"layer2\.0\.conv1\.weight"):
        build(weights=path)
    with pytest.raises(ModelError, match="use 'tu-tf_efficientnet_lite0'"):
        build(encoder="timm-tf_efficientnet_lite0", weights=path)


def test_encoder_weights_of_smps_own_encoders(tmp_path):
    path = tmp_path / "resnet.safetensors"
    head = {"fc.weight": torch.zeros(2, 512), "fc.bias": torch.zeros(2)}
    save_file({**build(encoder="resnet18", seed=9).encoder.state_dict(), **head}, path)
    model = build(encoder="resnet18", weights=path)
    assert torch.equal(model.encoder.conv1.weight, load_file(path)["conv1.weight"])


def test_weights_are_never_pickles(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({}, path)
    with pytest.raises(ModelError, match=r"\.safetensors"):
        build(weights=path)
    with pytest.raises(ModelError, match="no such file"):
        build(weights=tmp_path / "none.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x10\0\0\0\0\0\0\0 not json at all")
    with pytest.raises(ModelError, match=r"broken\.safetensors"):
        build(weights=broken)


@pytest.mark.parametrize("encoder", [TINY, "resnet18"])
def test_imagenet_without_a_network_says_what_to_do(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="local safetensors file"):
        build(encoder=encoder, weights="imagenet")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arch": "DeeplabV3Plus"}, "did you mean 'DeepLabV3Plus'.*there are .*PSPNet"),
        ({"encoder": "resnet81"}, "did you mean 'resnet18'"),
        ({"encoder": "tu-mobilnetv3_small_050"}, "did you mean 'tu-mobilenetv3_small_050'"),
        ({"encoder": "tu-vit_tiny_patch16_224"}, "cannot be built"),
        ({"classes": 256}, "2 to 255"),
        ({"options": {"classes": 3}}, "'classes' cannot be set"),
        ({"options": {"activation": "softmax"}}, "logits"),
        ({"options": {"decoder_dropot": 0.1}}, "decoder_dropot"),
        ({"options": {"decoder_dropot": 0.1}, "encoder": "resnet18"}, "did you mean 'decoder_dropout'"),
        ({"options": {"decoder_dropout": float("nan")}}, "JSON"),
    ],
)
def test_wrong_specs_are_refused(fields, message):
    with pytest.raises(ModelError, match=message):
        build(**fields)


def test_sizes_are_checked_before_training():
    with pytest.raises(ModelError, match=r"crop: FPN .* divisible by 32, got 90x100; .* 64x96 and 96x128"):
        check_size(build(), 90, 100, "crop")
    with pytest.raises(ModelError, match=r"nearest sizes are 32x64$"):
        check_size(build(), 7, 64)
    with pytest.raises(ModelError, match="divisible by 32"):
        forward_features(build(), images(48, 64))
    with pytest.raises(ModelError, match="upsampling"):
        feature_table(build(options={"upsampling": 2}), 64, 64)
    any_size = build("Unet").eval()
    check_size(any_size, 45, 71)
    assert (feature_table(any_size, 45, 71)[-1].height, required_multiple(any_size)) == (45, 1)
    with torch.no_grad():
        assert sorted(forward_features(any_size, images(45, 71)).encoder) == [2, 4, 8, 16, 32]


@pytest.mark.parametrize("encoder", ["tu-coatnet_pico_rw_224", "tu-gcvit_xxtiny"])
def test_an_encoder_of_a_fixed_size_refuses_every_other(encoder):
    model = build(encoder=encoder)
    refused = "FPN takes no images of 256x256: "

    assert (feature_table(model, 224, 224)[-1].height, trains_on_one_image(model, 224, 224)) == (224, True)
    with pytest.raises(ModelError, match=f"^student on data.size: {refused}"):
        feature_table(model, 256, 256, "student on data.size")
    with pytest.raises(ModelError, match=refused):
        count_macs(model, 256, 256)
    with pytest.raises(ModelError, match=refused):
        trains_on_one_image(model, 256, 256)


def test_a_feature_of_one_pixel_is_not_normalised_over_one_image():
    assert not trains_on_one_image(build("DeepLabV3", options={"decoder_channels": 16}), 64, 64)


def test_macs_and_parameters_equal_a_count_by_hand():
    model = build("DeepLabV3Plus", "tu-mobilenetv3_small_050")
    counted = []

    def hook(layer, _, output):
        if isinstance(layer, torch.nn.Conv2d):
            counted.append(output.numel() * layer.weight[0].numel())

    handles = [layer.register_forward_hook(hook) for layer in model.modules()]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 64, 96))
    for handle in handles:
        handle.remove()
    modes = [layer.training for layer in model.train().modules()]
    assert count_macs(model, 64, 96) == sum(counted)
    assert [layer.training for layer in model.modules()] == modes
    expected = sum(parameter.numel() for parameter in model.parameters())
    model.requires_grad_(False)
    assert count_parameters(model) == expected


def test_saved_models_come_back_and_smp_reads_them(tmp_path, capsys):
    spec = ModelSpec("DeepLabV3Plus", TINY, 5, {"decoder_channels": 32, "decoder_atrous_rates": (2, 4, 6)})
    model = build_model(spec, encoder_weights=None, seed=1).eval()
    contract = InputContract(height=64, width=96, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    save_model(model, spec, tmp_path / "model", contract=contract)
    loaded, found = load_model(tmp_path / "model")
    assert found == spec
    require_contract(tmp_path / "model", replace(contract, height=32, resize=SLIDING_WINDOW))
    with pytest.raises(ContractError, match=r"mean: \[0.4, 0.5, 0.5\] against \[0.5, 0.5, 0.5\]\): set data.mean"):
        require_contract(tmp_path / "model", replace(contract, mean=(0.4, 0.5, 0.5)))
    assert not loaded.training
    with torch.no_grad():
        expected = model(images())
        assert torch.equal(loaded(images()), expected)
        assert torch.equal(smp.from_pretrained(str(tmp_path / "model")).eval()(images()), expected)
    capsys.readouterr()
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "brd_edge.json",
        "config.json",
        "model.safetensors",
    ]


def test_a_published_smp_checkpoint_is_loaded(tmp_path):
    theirs = smp.FPN(
        TINY, encoder_weights=None, classes=3, decoder_dropout=0.5, activation="softmax2d", aux_params={"classes": 7}
    ).eval()
    theirs.save_pretrained(tmp_path)
    model, spec = load_model(tmp_path)
    assert spec == ModelSpec("FPN", TINY, 3, {"decoder_dropout": 0.5})
    with torch.no_grad():
        probabilities, _ = theirs(images())
        assert torch.equal(model(images()).softmax(1), probabilities)


def test_a_spec_of_another_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="its spec says"):
        save_model(build(), ModelSpec("FPN", TINY, 5, {}), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "model"
    save_model(build(), ModelSpec("FPN", TINY, 4, {}), directory)
    return directory


def edit(path: Path, **changes):
    values = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            del values[key]
        else:
            values[key] = value
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "no such directory"),
        (lambda d: (d / "model.safetensors").unlink(), r"model\.safetensors: no such file"),
        (lambda d: (d / "brd_edge.json").write_text("{"), r"brd_edge\.json: not readable as JSON"),
        (lambda d: edit(d / "brd_edge.json", format_version=99), r"brd_edge\.json: format_version"),
        (lambda d: edit(d / "brd_edge.json", spec={"arch": "FPN"}), r"brd_edge\.json: .*missing \['classes'"),
        (lambda d: edit(d / "brd_edge.json", weights_sha256="0"), r"model\.safetensors: SHA-256"),
        (lambda d: (d / "model.safetensors").write_bytes(b"x" * 100), "damaged or from another model"),
    ],
)
def test_damaged_directories_are_refused(damage, message, saved, tmp_path):
    directory = Path(shutil.copytree(saved, tmp_path / "model"))
    damage(directory)
    with pytest.raises(ModelError, match=message):
        load_model(directory)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), r"config\.json: no such file"),
        (lambda d: (d / "config.json").write_text("[]"), r"config\.json: expected a JSON object"),
        (lambda d: edit(d / "config.json", encoder_name=None), r"config\.json: key 'encoder_name' is missing"),
        (lambda d: edit(d / "config.json", _model_class="DPT"), r"config\.json: key '_model_class' is 'DPT'"),
        (lambda d: edit(d / "config.json", in_channels=1), r"config\.json: key 'in_channels'"),
        (lambda d: edit(d / "config.json", encoder_name="tu-nothing"), r"config\.json: unknown encoder"),
        (lambda d: edit(d / "config.json", classes=9), r"model\.safetensors: .*segmentation_head\.0\.weight"),
        (lambda d: (d / "model.safetensors").write_bytes(b"x" * 100), r"model\.safetensors: not a readable"),
    ],
)
def test_damaged_smp_directories_are_refused(damage, message, saved, tmp_path):
    directory = Path(shutil.copytree(saved, tmp_path / "model"))
    (directory / "brd_edge.json").unlink()
    damage(directory)
    with pytest.raises(ModelError, match=message):
        load_model(directory)


def test_a_full_disk_is_named_and_keeps_the_earlier_model(saved, tmp_path):
    directory = Path(shutil.copytree(saved, tmp_path / "model"))
    with (
        full_disk(100_000),
        pytest.raises(ModelError, match=r"/model\.safetensors: cannot be written \(.*too large.*free space"),
    ):
        save_model(build(seed=1), ModelSpec("FPN", TINY, 4, {}), directory)
    assert {path.name for path in directory.iterdir()} == {path.name for path in saved.iterdir()}
    load_model(directory)


def test_an_interrupted_save_is_noticed(saved, tmp_path, monkeypatch):
    directory = Path(shutil.copytree(saved, tmp_path / "model"))

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("brd_edge.models.storage.write_json_atomic", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_model(build(seed=1), ModelSpec("FPN", TINY, 4, {}), directory)
    with pytest.raises(ModelError, match="damaged or from another model"):
        load_model(directory)


def test_names_of_a_wrapper_are_told_as_such() -> None:
    from brd_edge.models.weights import load_strictly

    layer = torch.nn.Conv2d(3, 2, 1)
    wrapped = {f"module.{name}": values for name, values in layer.state_dict().items()}
    with pytest.raises(ModelError, match="every name begins with 'module', as a wrapper's do"):
        load_strictly(layer, wrapped, "t.safetensors: weights")


def test_the_readmes_way_from_a_state_dict_to_a_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (snippet,) = (text for text in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "save_pretrained" in text)
    snippet = snippet.replace("resnet50", "resnet18").replace("/path/to/teacher", "teacher")
    monkeypatch.chdir(tmp_path)
    weights = smp.FPN("resnet18", encoder_weights=None, classes=19).state_dict()
    torch.save(weights, "teacher.pt")

    exec(compile(snippet, "README.md", "exec"), {"smp": smp, "torch": torch})  # noqa: S102 - our own text

    model, spec = load_model(tmp_path / "teacher")
    assert (spec.arch, spec.encoder, spec.classes) == ("FPN", "resnet18", 19)
    assert all(torch.equal(values, weights[name]) for name, values in model.state_dict().items())
