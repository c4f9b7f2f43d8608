"""Generated aerial scenes with their boxes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from haksnet_jax.errors import UserError
from haksnet_jax.geometry.polygons import boxes_to_polygons
from haksnet_jax.pipeline import scene_objects, scenes
from haksnet_jax.wording import counted

SCENE_CLASSES = ("plane", "ship", "vehicle", "storage-tank", "building")


class SceneSource:
    """Generated aerial scenes: example `index` depends on (seed, index) and the arguments alone."""

    num_channels = 3

    def __init__(
        self,
        num_scenes: int,
        size: int | tuple[int, int] = 256,
        seed: int = 0,
        class_names: Sequence[str] = SCENE_CLASSES,
        *,
        objects_per_scene: tuple[int, int] = (3, 12),
    ) -> None:
        """Sets the scenes up; each is drawn when asked for (about 10 ms at 256 pixels).

        Args:
          num_scenes: how many.
          size: rows and columns in pixels; one number for squares.
          seed: another seed gives other scenes, such as a validation split.
          class_names: classes to draw, among `scene_objects.LOOKS` (DOTA's and a few more).
          objects_per_scene: smallest and largest number of objects.

        Raises:
          ValueError: a class that cannot be drawn, or a size or number out of range.
        """
        unknown = [name for name in class_names if name not in scene_objects.LOOKS]
        if unknown:
            raise UserError(f"cannot draw {', '.join(unknown)}; what can be drawn: {', '.join(scene_objects.LOOKS)}")
        if not class_names:
            raise UserError("class_names is empty; name at least one class to draw")
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 64:
            raise UserError(f"a scene needs at least 64 x 64 pixels, size is {size}")
        low, high = objects_per_scene
        if num_scenes < 1 or not 0 <= low <= high:
            raise UserError(
                f"expected num_scenes >= 1 and objects_per_scene (low, high) with 0 <= low <= high, "
                f"found {num_scenes} and {objects_per_scene}"
            )
        self.class_names = tuple(class_names)
        self.num_scenes, self.size, self.seed = num_scenes, (height, width), seed
        self.objects_per_scene = (low, high)

    def __len__(self) -> int:
        return self.num_scenes

    @property
    def image_ids(self) -> Sequence[str]:
        """Identifiers of the scenes."""
        return [f"scene_{self.seed}_{index:06d}" for index in range(self.num_scenes)]

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = range(len(self))[index]  # raises IndexError beyond the end
        looks = [scene_objects.LOOKS[name] for name in self.class_names]
        rng = np.random.default_rng([self.seed, index])
        image, boxes, labels = scenes.draw_scene(rng, self.size, looks, self.objects_per_scene)
        return {
            "image": image,
            "polygons": boxes_to_polygons(boxes).astype(np.float32),
            "labels": labels,
            "difficulty": np.zeros(len(labels), np.int32),
            "image_id": f"scene_{self.seed}_{index:06d}",
        }

    def labels(self, index: int) -> dict[str, np.ndarray]:
        """The example's polygons, labels and difficulty, as a dict. The scene is drawn for it."""
        example = self[index]
        return {name: example[name] for name in ("polygons", "labels", "difficulty")}

    def summary(self) -> str:
        """Text: how many scenes of which size."""
        return (
            f"{counted(self.num_scenes, 'generated scene')} of {self.size[0]} x {self.size[1]} pixels, seed {self.seed}"
        )
