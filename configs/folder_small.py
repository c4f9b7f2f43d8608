"""A small detector on a data set of your own, in minutes on two CPU cores: the first try before a GPU.

The narrow network of the demo, started from the demo's weights, so that a few hundred steps suffice. Folders, labels
and classes are those of `folder`, which trains HAKSNet-T and is what to take on a GPU.

    python -m haksnet_jax.main --config=configs/folder_small.py --config.data.root=mydata
"""

from configs import demo, folder


def get_config():
    """All values of the experiment: the model and optimiser of `demo`, the data of `folder`."""
    config, of_folder = demo.get_config(), folder.get_config()
    with config.unlocked():
        config.name = "folder_small"
        config.num_steps = 400
        config.eval_every = 200
        config.checkpoint_every = 200
        config.init = "demo"
        config.init_new_classes = True

        config.data = of_folder.data
        config.data.image_size = (320, 320)
        config.data.max_boxes = 200
        config.data.num_workers = 2

        # More than the objects of an image: each needs a proposal, most get several, and a detection. The weights do
        # not depend on these.
        config.rpn.candidates_per_level = 600
        config.rpn.max_proposals = 600
        config.detection.max_candidates = 1024
        config.detection.max_detections = 300

        config.augment.rotation_probability = of_folder.augment.rotation_probability
        config.evaluation.protocol = "val"
    return config
