"""Records goldens/end_to_end.*: what this package itself gives, for a clone that has no recordings of whole inference.

Run it with `JAX_PLATFORMS=cpu python tests/models/record_end_to_end.py` only after the parity report was green.
"""

import json
import pathlib
import sys

import cv2
import flax
import jax
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "goldens"), str(ROOT / "tests" / "models")]

SIZE, SEED = (192, 256), 11


def main():
    jax.config.update("jax_default_matmul_precision", "highest")
    from detectors import reference_detector

    from haksnet_jax.pipeline.sources import SceneSource

    goldens = ROOT / "tests" / "goldens"
    image = SceneSource(1, size=SIZE, seed=SEED)[0]["image"]
    cv2.imwrite(str(goldens / "end_to_end.png"), image[..., ::-1])
    model = reference_detector(goldens / "state_dict_tiny.json")
    found = jax.jit(lambda images, size: model.detect(images, size))(image[None], np.array([SIZE], np.int32))
    valid = np.asarray(found.valid[0])
    record = {
        "what": "Detections of this package, not of the reference, with the tiny reference weights on end_to_end.png, "
        "a generated scene; recorded when every row of the parity report was green.",
        "versions": {
            "jax": jax.__version__,
            "flax": flax.__version__,
            "numpy": np.__version__,
            "opencv": cv2.__version__,
        },
        "scene": {"size": SIZE, "seed": SEED},
        "boxes": [[round(float(x), 4) for x in box] for box in np.asarray(found.boxes[0])[valid]],
        "scores": [round(float(x), 6) for x in np.asarray(found.scores[0])[valid]],
        "labels": np.asarray(found.labels[0])[valid].tolist(),
    }
    (goldens / "end_to_end.json").write_text(json.dumps(record) + "\n")
    print(f"{valid.sum()} detections")


if __name__ == "__main__":
    main()
