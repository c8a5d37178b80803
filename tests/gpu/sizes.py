"""How much each part does: the real amounts on a GPU, and small ones for the rehearsal on a CPU."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """Amounts of work. Times are seconds."""

    network: str  # torchvision's name of the large network
    side: int  # pixels of its square images
    batches: tuple[int, ...]  # of the bare loop and of the engine
    window_s: float  # of each
    in_flight: tuple[int, ...]  # requests to the server
    server_window_s: float
    clients: int  # processes that send requests
    workers: int  # processes that serve beside the device server
    mixed_requests: int  # of mixed batch sizes, after which memory is read again
    images_per_s_window_s: float  # of preparing JPEGs

    epoch_images: int  # of made-up CIFAR-10
    training_window_s: float
    recipes: tuple[tuple[str, tuple[str, ...]], ...]  # name and overrides
    compiles: bool  # torch.compile takes its time
    records: int  # runs of cifar10-fast on real images
    record_overrides: tuple[str, ...]

    spare_bytes: int  # of memory that is left free where memory has to run out
    batch: int  # of images that does not fit into it: each takes 13 MB
    digits: int  # whose labels are compared


ON_GPU = Sizes(
    network="resnet50",
    side=224,
    batches=(1, 8, 32, 64),
    window_s=0.3,
    in_flight=(1, 8, 32, 128),
    server_window_s=0.6,
    clients=6,
    workers=6,
    mixed_requests=10_000,
    images_per_s_window_s=0.7,
    epoch_images=45_000,
    training_window_s=0.4,
    recipes=(("cifar10-fast", ()), ("alexnet-bn-cifar10", ())),
    compiles=True,
    records=5,
    record_overrides=("training.precision=bfloat16", "training.compile=true"),
    spare_bytes=256 * 2**20,
    batch=64,
    digits=1000,
)

REHEARSAL = Sizes(
    network="squeezenet1_1",
    side=64,
    batches=(1, 4),
    window_s=0.03,
    in_flight=(4,),
    server_window_s=0.1,
    clients=1,
    workers=2,
    mixed_requests=100,
    images_per_s_window_s=0.03,
    epoch_images=1000,
    training_window_s=0.03,
    recipes=(("cifar10-fast", ("network.maps=[8, 16, 16]", "training.batch_size=25")),),
    compiles=False,
    records=1,
    record_overrides=(
        "network.maps=[8, 16, 16]",
        "network.views=1",
        "training.batch_size=25",
        "training.epochs=1",
    ),
    spare_bytes=96 * 2**20,
    batch=16,
    digits=1000,
)


def sizes_of(device: str) -> Sizes:
    """The amounts for cuda or cpu."""
    return ON_GPU if device == "cuda" else REHEARSAL
