"""The training job: images in, a proven and published bundle out. Enters serving by its bundle alone."""
