"""Change detection in minutes on two CPU cores: a narrow network on generated scenes at two dates.

It shows that the whole path works, not how good HAKSNet is.

    haksnet train --config=demo_change --workdir=runs/demo_change
"""

from configs import change_folder, demo_segmentation


def get_config():
    """All values of the experiment: those of `change_folder`, but for the lines here."""
    config = change_folder.get_config()
    with config.unlocked():
        config.name = "demo_change"
        demo_segmentation.small(config)
        demo_segmentation.on_scenes(config)
        config.augment.max_degrees = 0.0
    return config.lock()
