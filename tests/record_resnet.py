"""Records outputs of torchvision's ResNet with narrow widths and known weights, for tests/models/test_resnet.py.

    python tests/record_resnet.py        (needs torch and torchvision; tests do not)

The weights are drawn by name from fixed seeds, as the test draws them again; what is stored are the outputs of the four
stages of a model in evaluation, and the losses' gradients of a few weights in training, and the names and shapes of
torchvision's ResNet-50 itself.
"""

import json
import pathlib

import numpy as np
from resnet_weights import IMAGE_SEED, make_weights

GOLDENS = pathlib.Path(__file__).parent / "goldens"
WIDTH, DEPTHS, SIZE = 8, (2, 1, 2, 1), (70, 90)


def maps_of(model, x):
    """The outputs of the four stages of a torchvision ResNet."""
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    maps = []
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = layer(x)
        maps.append(x)
    return maps


def narrow_resnet():
    """torchvision's ResNet with bottlenecks an eighth as wide as published."""
    from torch import nn
    from torchvision.models.resnet import Bottleneck, ResNet

    model = ResNet(Bottleneck, list(DEPTHS), num_classes=10)
    model.inplanes = WIDTH
    model.conv1 = nn.Conv2d(3, WIDTH, 7, stride=2, padding=3, bias=False)
    model.bn1 = nn.BatchNorm2d(WIDTH)
    for number, depth in enumerate(DEPTHS):
        layer = model._make_layer(Bottleneck, WIDTH * 2**number, depth, stride=2 if number else 1)
        setattr(model, f"layer{number + 1}", layer)
    model.fc = nn.Linear(WIDTH * 8 * 4, 10)
    return model


def main():
    """Writes resnet.npz and resnet.json."""
    import torch
    import torchvision

    model = narrow_resnet()
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    weights = make_weights(shapes)
    model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    image = np.random.default_rng(IMAGE_SEED).normal(size=(2, 3, *SIZE)).astype(np.float32)
    arrays = {}
    with torch.no_grad():
        for number, stage in enumerate(maps_of(model.eval(), torch.tensor(image))):
            arrays[f"eval/stage{number + 1}"] = stage.numpy()
    model.train()
    maps = maps_of(model, torch.tensor(image))
    loss = sum((stage**2).mean() for stage in maps)
    loss.backward()
    arrays["train/loss"] = loss.detach().numpy()
    for name in ("conv1.weight", "layer1.0.downsample.0.weight", "layer3.1.bn2.weight", "layer4.0.conv2.weight"):
        arrays[f"train/gradient/{name}"] = dict(model.named_parameters())[name].grad.numpy()
    for name in ("bn1.running_mean", "layer2.0.bn3.running_var"):
        arrays[f"train/{name}"] = dict(model.named_buffers())[name].numpy()
    np.savez_compressed(GOLDENS / "resnet.npz", **arrays)
    full = torchvision.models.resnet50()
    manifest = {
        "recorded_with": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        "width": WIDTH,
        "depths": DEPTHS,
        "shapes": shapes,
        "resnet50": {name: list(value.shape) for name, value in full.state_dict().items()},
    }
    (GOLDENS / "resnet.json").write_text(json.dumps(manifest) + "\n")


if __name__ == "__main__":
    main()
