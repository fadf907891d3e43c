"""Networks of real size: the main job beside the work that cannot be avoided."""
