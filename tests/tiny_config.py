"""The configuration of runs that tests make: steps of milliseconds."""

from configs import demo


def tiny_config(**changes):
    """The demonstration's configuration, narrowed until a step takes milliseconds."""
    config = demo.get_config()
    with config.unlocked():
        config.batch_size_per_device = 4
        config.num_steps = 4
        config.checkpoint_every = 2
        config.eval_every = 0
        config.log_every = 2
        config.ema_decay = 0.9
        config.model.channels = (4, 4, 8, 8)
        config.model.fpn_channels = 8
        config.model.hidden = 16
        config.model.drop_path_rate = 0.1
        config.data.image_size = (64, 64)
        config.data.max_boxes = 8
        config.data.train.size = 64
        config.data.train.num_scenes = 24
        config.data.val.size = 64
        config.data.val.num_scenes = 6
        config.rpn.num_samples = 32
        config.rpn.candidates_per_level = 32
        config.rpn.max_proposals = 32
        config.roi.num_samples = 16
        config.detection.max_candidates = 64
        config.detection.max_detections = 32
        config.evaluation.num_pictures = 1
        for name, value in changes.items():
            config[name] = value
    return config
