"""HAKSNet-T from random weights on UCAS-AOD: cars and planes in optical images, a second data set for SSDD's recipe.

The same optimiser, schedule and averaging as `ssdd.py`. What differs is the size of the images (1280 x 659 to
1372 x 941 in the release, fitted into 1024 x 704), and that there are few: more epochs, and sizes and exposures drawn
more widely. What was measured with it stands in docs/results.md.

Data: folders in DOTA's format, `SPLIT/images` and `SPLIT/labelTxt` below --config.data.root. The release labels one
class in an image (cars beside an airport are background), which costs cars precision.

    python -m haksnet_jax.main --config=configs/ucas_aod.py --config.data.root=DIR
"""

from configs import ssdd
from haksnet_jax.labels.classes import CLASSES


def get_config():
    """All values of the experiment: those of `ssdd`, but for the lines here."""
    config = ssdd.get_config()
    with config.unlocked():
        config.name = "ucas_aod"
        config.num_epochs = 400  # 3,200 steps with 60 images
        config.batch_size_per_device = 8
        config.eval_every = 400

        config.data.class_names = CLASSES["ucas_aod"]
        config.data.root = "data/ucas_aod"
        config.data.image_size = (704, 1024)  # cars are then 22 pixels wide in the median, and never less than 14
        config.data.max_boxes = 128

        # 60 images are few: other sizes and exposures make more of them.
        config.augment.scale_range = (0.6, 1.5)
        config.augment.gain_range = (0.7, 1.4)

        config.detection.max_candidates = 1024  # two classes for each of 512 proposals
        config.evaluation.protocol = "UCAS-AOD val"
        config.evaluation.batch_size_per_device = 8
    return config
